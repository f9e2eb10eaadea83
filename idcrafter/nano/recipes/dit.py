"""The nano DiT: core's ``WanModel`` with width 256 and 6 blocks, trained by rectified flow with references by the
Phantom rule.

References are clean latent frames behind the noisy video (``time_dim_concat``), in cast order. For guidance,
references and text are dropped now and then. The loss counts heads more.

Who stands where is said by the text alone. To copy a reference to its place, a video token must first read from the
text which subject is there, and then look that reference up: neither half lowers the loss without the other, and
training stays for thousands of steps on the mixture of the subjects. So a linear readout, thrown away after
training, must tell from the tokens in the middle of the model which subject they show; Ingredients supervises its
router in the same way (arXiv 2501.01790, the routing loss).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...training.loop import Trainer
from . import data, text
from .core import device, use_comfyui

log = logging.getLogger("idcrafter.nano")
CONFIG = {
    "dim": 256,
    "ffn_dim": 1024,
    "num_heads": 4,
    "num_layers": 6,
    "text_dim": text.CONFIG["d_model"],
    "freq_dim": 256,
}
SHIFT = 3.0
STEPS, TEXT_TO_VIDEO_STEPS, BATCH, RATE = 1000, 2400, 24, 1.2e-3
READ_AFTER, READ_WEIGHT = 3, 0.2  # blocks in front of the readout; weight of its cross-entropy
TRAIN_SHARDS, VAL_SHARDS = 16, 1
DROP_TEXT, DROP_REFERENCES = 0.1, 0.1
KEEP_FLOAT32 = ("patch_embedding", "modulation")


def build(operations=None):
    use_comfyui()
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    return WanModel(**CONFIG, operations=operations or comfy.ops.disable_weight_init, dtype=torch.float32)


def _initialise(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("modulation"):
            p.data.normal_(0, p.shape[-1] ** -0.5, generator=generator)
        elif "head.head" in name:
            p.data.zero_()
        elif p.ndim > 1:
            fan_in = p[0].numel()
            p.data.normal_(0, 0.02 if "time_" in name else fan_in**-0.5, generator=generator)
        elif name.endswith("bias"):
            p.data.zero_()
        else:
            p.data.fill_(1)


def sigmas(u: torch.Tensor) -> torch.Tensor:
    """Uniform u in 0..1 -> noise levels with the shift that the model is sampled with."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


class Supervised(torch.nn.Module):
    """The DiT and the readout that names the subject of a token (none of it is kept after training)."""

    def __init__(self):
        super().__init__()
        self.dit = build()
        import comfy.ops

        self.readout = comfy.ops.disable_weight_init.Linear(CONFIG["dim"], text.MAX_SUBJECTS)


def make_forward(model: Supervised, compiled: bool = False):
    """A function (noisy [B, 16, T, h, w], sigma [B], context, references [B, 16, S, h, w]) -> velocity like noisy, and
    logits [B, T * h/2 * w/2, MAX_SUBJECTS] of the readout.

    ``WanModel.forward`` without its wrappers, which keep torch.compile from seeing one graph. Computes in the dtype
    of the model's blocks; float32 in and out.
    """
    dit = model.dit

    def forward(noisy, sigma, context, references):
        dtype = dit.blocks[0].ffn[0].weight.dtype
        x = torch.cat([noisy, references], dim=2).to(dtype)
        freqs = dit.rope_encode(*x.shape[2:], device=x.device, dtype=x.dtype)
        middle = []

        def watch(args, extra):
            out = extra["original_block"](args)
            middle.append(out["img"])
            return out

        options = {"patches_replace": {"dit": {("double_block", READ_AFTER - 1): watch}}}
        out = dit.forward_orig(x, sigma * 1000, context.to(dtype), freqs=freqs, transformer_options=options)
        tokens = middle[0][:, : noisy[0, 0].numel() // 4]
        named = model.readout(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]))
        return out[:, :, : noisy.shape[2]].float(), named.float()

    return torch.compile(forward, fullgraph=True, dynamic=False) if compiled else forward


class Batches:
    """Training rows grouped by the number of subjects, because references lengthen the sequence."""

    def __init__(self, rows: dict[str, torch.Tensor]):
        self.rows = rows
        self.groups = [torch.nonzero(rows["counts"] == c).flatten() for c in range(1, text.MAX_SUBJECTS + 1)]

    def draw(self, rng: np.random.Generator, size: int, count: int | None = None):
        count = count or 1 + int(rng.choice(text.MAX_SUBJECTS, p=text.COUNTS))
        group = self.groups[count - 1]
        index = group[torch.from_numpy(rng.integers(0, len(group), size))]
        photo = torch.from_numpy(rng.integers(0, data.PHOTOS, (size, count)))
        references = self.rows["references"][index[:, None], torch.arange(count)[None], photo]  # [B, S, 16, h, w]
        tokens = self.rows["tokens"][index, torch.from_numpy(rng.integers(0, data.CAPTIONS, size))].long()
        move, width = device(), data.width_of(count) // 8
        return (
            self.rows["latents"][index][..., :width].float().to(move),
            references[..., :width].transpose(1, 2).float().to(move),
            tokens.to(move),
            self.rows["weights"][index][..., :width].float().to(move),
            self.rows["owners"][index][..., : width // 2].long().flatten(1).to(move),
        )


def _loss(forward, encoder, batches: Batches, n: int, seed: int, with_references: bool) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng((seed, n))
    clean, references, tokens, weights, owners = batches.draw(rng, BATCH)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
    keep_text = torch.from_numpy(rng.uniform(size=BATCH) >= DROP_TEXT).to(clean.device)
    keep_references = torch.from_numpy(rng.uniform(size=BATCH) >= DROP_REFERENCES).to(clean.device)
    empty = torch.full_like(tokens, text.PAD)
    empty[:, 0] = text.END
    with torch.no_grad():
        context = text.encode(encoder, torch.where(keep_text[:, None], tokens, empty))
    references = references * keep_references[:, None, None, None, None]
    if not with_references:
        references = references[:, :, :0]
    sigma = sigmas((torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH).to(
        clean.device
    )  # stratified
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    s = sigma[:, None, None, None, None]
    velocity, named = forward((1 - s) * clean + s * noise, sigma, context, references)
    weights = (weights / weights.mean())[:, None]
    flow = (weights * (velocity - (noise - clean)).pow(2)).mean()
    # without its text a clip does not say who stands where
    owners = torch.where(keep_text[:, None], owners, -1)
    reading = torch.nn.functional.cross_entropy(named.flatten(0, 1), owners.flatten(), ignore_index=-1)
    return {"loss": flow + READ_WEIGHT * reading, "flow": flow, "reading": reading}


@torch.no_grad()
def probe(forward, encoder, rows: dict[str, torch.Tensor], seed: int = 5) -> dict[str, float]:
    """Relative x0 error in heads at three noise levels with a clip's own references, with the two swapped, and with
    other people's.

    Two-subject clips. The error is relative to that with own references, so ``own`` is absolute and the others are
    factors. ``read`` is the share of tokens whose subject the readout names, at the highest noise level.
    """
    batches, rng = Batches(rows), np.random.default_rng(seed)
    clean, references, tokens, weights, owners = batches.draw(rng, 96, count=2)
    context = text.encode(encoder, tokens)
    head = (weights > 1)[:, None].float()
    errors, read = {}, 0.0
    for name, refs in (("own", references), ("swapped", references.flip(2)), ("others", references.roll(1, 0))):
        total = 0.0
        for level in (0.5, 0.75, 0.9):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean.device)
            noisy = (1 - level) * clean + level * noise
            velocity, named = forward(noisy, torch.full((len(clean),), level, device=clean.device), context, refs)
            if name == "own":
                read = float((named.argmax(-1) == owners)[owners >= 0].float().mean())
            total += float(((noisy - level * velocity - clean).pow(2) * head).sum() / head.sum() / clean.shape[1])
        errors[name] = total / 3
    return {
        "own": round(errors["own"], 4),
        "swapped": round(errors["swapped"] / errors["own"], 3),
        "others": round(errors["others"] / errors["own"], 3),
        "read": round(read, 3),
    }


def train(folder: Path, start: Path | None = None) -> Path:
    """start: an earlier DiT of this size to go on from; without it, training takes about three times as many steps."""
    return _train(folder, "dit", STEPS, 41, True, start)


def train_text_to_video(folder: Path) -> Path:
    """A DiT that has never seen a reference and knows from the text who is where, for adapters to begin with."""
    return _train(folder, "t2v", TEXT_TO_VIDEO_STEPS, 43, False, None)


def _train(folder: Path, name: str, steps: int, seed: int, with_references: bool, start: Path | None) -> Path:
    vae_path, text_path = folder / "idcrafter_nano_vae.safetensors", folder / "idcrafter_nano_umt5.safetensors"
    batches = Batches(data.prepare(folder, vae_path, text_path, "train", TRAIN_SHARDS))
    val = data.prepare(folder, vae_path, text_path, "val", VAL_SHARDS)
    _, encoder = text.load(text_path)
    model = Supervised()
    _initialise(model, seed)
    if start is not None:
        model.dit.load_state_dict({k: v.float() for k, v in load_file(start).items()})
    model.to(device())
    trainer = Trainer(
        model,
        folder,
        name,
        steps,
        RATE,
        warmup=100,
        final=0.02,
        decay_from=0.4,
        weight_decay=0.01,
        ema=0.997,
        keep_float32=KEEP_FLOAT32,
        adam=("modulation", "head.head", "readout"),
    )
    forward, plain = make_forward(model, compiled=True), make_forward(model)

    def step(_, n: int) -> dict[str, torch.Tensor]:
        if with_references and n and n % 500 == 0:
            log.info("dit step %d probe %s", n, json.dumps(probe(plain, encoder, val)))
        return _loss(forward, encoder, batches, n, seed, with_references)

    from ...training.kernels import training_kernels

    with training_kernels():
        trainer.run(step)
    if with_references:
        log.info("dit probe of the averaged weights %s", json.dumps(probe(plain, encoder, val)))
    return export(model.dit, folder / f"idcrafter_nano_{name}.safetensors")


def export(model, path: Path) -> Path:
    config = {"transformer": {k: CONFIG[k] for k in ("num_heads", "text_dim", "freq_dim")}}
    save_file(
        {k: v.half().contiguous().cpu() for k, v in model.state_dict().items()},
        path,
        {"format": "pt", "config": json.dumps(config), "licence": "Apache-2.0", "made_by": "idcrafter.nano"},
    )
    return path
