"""The nano identity adapter and the rows of its ablation: on a text-to-video DiT that has never seen a reference, with
the pack's own training.

All rows start from the same DiT with the same low-rank adaptation, see the same clips, noise and captions in the same
order, and take the same number of steps; they differ in the modules that are added.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ...modules.identity_adapter import AdapterConfig, IdentityAdapter, initialise
from ...training.adapter.batch import AdapterBatch
from ...training.loop import Trainer
from . import data, dit, text
from .core import device, use_comfyui

log = logging.getLogger("idcrafter.nano")
FULL = AdapterConfig(
    "wan",
    dit.CONFIG["dim"],
    dit.CONFIG["num_layers"],
    every=2,
    id_width=512,
    visual_width=16,
    scales=1,
    extractor_width=128,
    extractor_depth=2,
    extractor_heads=4,
    extractor_head_width=32,
    tokens=16,
    id_tokens=4,
    token_width=128,
    heads=2,
    head_width=32,
    router=True,
    null=True,
    hierarchy=2,
    hierarchy_heads=4,
    on_references=True,
    order=text.MAX_SUBJECTS,
    context_width=text.CONFIG["d_model"],
    visual="vae",
    crop=data.CROP,
)
# Name of a row -> its adapter (None for none) and whether the router is told who is where.
ROWS = {
    "references": (None, True),
    "router": (replace(FULL, hierarchy=0), True),
    "hierarchy": (replace(FULL, router=False, null=False), True),
    "full": (FULL, True),
    "full_without_router_loss": (FULL, False),
}
RANK = 16
STEPS, BATCH, RATE = 500, 16, 2.5e-3
ROUTER_WEIGHT = 0.2
DROP_TEXT, DROP_PEOPLE, SECOND_PHOTO = 0.1, 0.1, 0.3


class Clips:
    """Training clips as an adapter's batches; `draw` depends on the step alone."""

    def __init__(self, rows: dict[str, torch.Tensor], encoder, seed: int):
        self.rows, self.encoder, self.seed = rows, encoder, seed
        self.groups = [torch.nonzero(rows["counts"] == c).flatten() for c in range(1, text.MAX_SUBJECTS + 1)]
        empty = torch.full((1, text.LENGTH), text.PAD)
        empty[:, 0] = text.END
        with torch.no_grad():
            self.empty = text.encode(encoder, empty.to(device()))[0]

    def draw(self, n: int, size: int = BATCH, count: int | None = None) -> AdapterBatch:
        """The batch of step n, all clips with as many subjects (drawn, unless given)."""
        rng = np.random.default_rng((self.seed, n))
        count = count or 1 + int(rng.choice(text.MAX_SUBJECTS, p=text.COUNTS))
        group = self.groups[count - 1]
        index = group[torch.from_numpy(rng.integers(0, len(group), size))]
        photo = torch.from_numpy(rng.integers(0, data.PHOTOS, (size, count)))
        # The photo that is the reference comes first.
        order = torch.stack([photo, (photo + 1) % data.PHOTOS], dim=2)
        clip, subject, move = index[:, None], torch.arange(count)[None], device()
        width = data.width_of(count) // 8
        which = torch.from_numpy(rng.integers(0, self.rows["tokens"].shape[1], size))
        second = torch.from_numpy(rng.uniform(size=(size, count)) < SECOND_PHOTO)
        context = self.read(index, which)
        people = clip[..., None], subject[..., None], order
        batch = AdapterBatch(
            clean=self.rows["latents"][index][..., :width].float().to(move),
            context=context,
            faces=self.rows["faces"][people].float().to(move),
            maps=(self.rows["crops"][people].float().to(move),),
            photos=torch.stack([torch.ones_like(second), second], dim=2).float().to(move),
            owners=self.rows["owners"][index][..., : width // 2].long().flatten(1).to(move),
            weights=self.rows["weights"][index][:, None, ..., :width].float().to(move),
            conds={
                "time_dim_concat": self.rows["references"][clip, subject, photo][..., :width]
                .transpose(1, 2)
                .float()
                .to(move)
            },
            references=tuple(range(count)),
        )
        lost = [torch.from_numpy(rng.uniform(size=size) < share).to(move) for share in (DROP_TEXT, DROP_PEOPLE)]
        return batch.without(*lost, self.empty)

    def read(self, index: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """What the DiT reads of these clips, the tokens of a caption of each: [B, M, D]."""
        with torch.no_grad():
            return text.encode(self.encoder, self.rows["tokens"][index, which].long().to(device()))


def load_model(path: Path):
    """The MODEL of a nano DiT for training, in bfloat16."""
    use_comfyui()
    import comfy.model_management
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.bfloat16})
    # Core computes in float32 on a CPU, which takes twice as long.
    model.model.manual_cast_dtype = torch.bfloat16
    comfy.model_management.load_models_gpu([model])
    return model


def build(config: AdapterConfig, seed: int) -> IdentityAdapter:
    import comfy.ops

    adapter = IdentityAdapter(config, comfy.ops.disable_weight_init)
    initialise(adapter, seed)
    return adapter.to(device())


def train(folder: Path) -> Path:
    """Trains all rows -> the folder of their files."""
    return [train_row(folder, name) for name in reversed(ROWS)][-1].parent


def train_row(folder: Path, name: str, seed: int = 51, steps: int = STEPS) -> Path:
    """Trains one row -> the last of its files."""
    use_comfyui()
    from ...training.adapter.network import AdapterNetwork
    from ...training.adapter.objective import adapter_loss
    from ...training.lora import LoRA

    config, told = ROWS[name]
    text_path = folder / "idcrafter_nano_umt5.safetensors"
    rows = data.prepare(folder, folder / "idcrafter_nano_vae.safetensors", text_path, "train", dit.TRAIN_SHARDS)
    _, encoder = text.load(text_path)
    model = load_model(folder / "idcrafter_nano_t2v.safetensors")
    clips = Clips(rows, encoder, seed)
    lora = LoRA(model.model.diffusion_model, RANK, seed)
    network = AdapterNetwork(model, None if config is None else build(config, seed), lora)
    trainer = Trainer(
        network,
        folder,
        f"adapter-{name}",
        steps,
        RATE,
        warmup=30,
        final=0.02,
        decay_from=0.4,
        ema=0.99,
        keep_float32=("lora_",),
        adam=("lora_", "latents", "null", "id_merge", "order"),
        facts={"row": name, "rank": str(RANK), "config": "" if config is None else config.dumps()},
    )

    def step(network, n: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        return adapter_loss(network, clips.draw(n), generator, dit.SHIFT, ROUTER_WEIGHT if told else 0.0)

    trainer.run(step)
    return export(folder, name, network, steps, seed, rows)


def export(folder: Path, name: str, network, steps: int, seed: int, rows: dict[str, torch.Tensor]) -> Path:
    """Writes what a row has trained: rows/<name>.lora.safetensors and, with modules, .adapter.safetensors."""
    target = folder / "rows"
    target.mkdir(exist_ok=True)
    count = sum(p.numel() for p in network.parameters())
    facts = {
        "format": "pt",
        "licence": "Apache-2.0",
        "made_by": "idcrafter.nano",
        "steps": str(steps),
        "batch": str(BATCH),
        "seed": str(seed),
        "parameters": str(count),
        "data": hashlib.sha256(rows["tokens"].numpy().tobytes()).hexdigest(),
        "recogniser": hashlib.sha256((folder / "idcrafter_nano" / "rec_nano.onnx").read_bytes()).hexdigest(),
    }
    path = target / f"{name}.lora.safetensors"
    save_file(network.lora.export(), path, facts)
    if network.adapter is not None:
        weights = {k: v.detach().half().contiguous().cpu() for k, v in network.adapter.state_dict().items()}
        path = target / f"{name}.adapter.safetensors"
        save_file(weights, path, {**facts, "idcrafter_adapter": network.adapter.config.dumps()})
    return path
