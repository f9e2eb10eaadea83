"""CINEMA's path on nano (arXiv 2503.10391): an aligner learns to say of a VLM's hidden states what the text encoder
says of a caption, and is then tuned together with a low-rank adaptation of the DiT, whose references are VAE tokens.

A sentence that calls people by their looks so reaches a DiT that has never read one, without a tag on anybody. `text`
is what that is compared with: the same adaptation, clips, noise and steps with the plain text encoder on the same
sentences.
"""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...modules.aligner import Aligner, AlignerConfig, initialise
from ...training.adapter.batch import AdapterBatch
from ...training.aligner import alignment_loss, guided_text, pretraining
from ...training.loop import Trainer
from . import adapter, data, dit, guidance_data, text, vlm_net
from .core import device, use_comfyui

log = logging.getLogger("idcrafter.nano")
ALIGNER, LORA = "idcrafter_nano_aligner.safetensors", "idcrafter_nano_guidance.safetensors"
# What `benchmarks/guidance.py` compares, beside the two files above.
PRETRAINED, PLAIN = "aligner_pretrained.safetensors", "text_tuned.lora.safetensors"
SIZES = {"tokens": text.LENGTH, "latent_width": 128, "width": 128, "heads": 4, "depth": 4}
STEPS, BATCH, RATE = 1000, 32, 2e-3
TUNING_STEPS, TUNING_BATCH, TUNING_RATE = 250, 16, 6e-4
VAL_SHARDS = 1


class Sentences:
    """Stories of a split, the VLM's states of them (None without a VLM), and what the aligner should say."""

    def __init__(self, folder: Path, split: str, shards: int, vlm_folder: Path | None = None):
        self.told = [each for shard in range(shards) for each in guidance_data.told(split, shard)]
        self.states = vlm_folder and guidance_data.read(folder, vlm_folder, split, shards)
        tokenizer, encoder = text.load(folder / "idcrafter_nano_umt5.safetensors")
        made = [
            guidance_data.targets(tokenizer, encoder, [each.story.spec for each in self.told[i : i + 256]])
            for i in range(0, len(self.told), 256)
        ]
        self.said, self.words = (torch.cat(part) for part in zip(*made, strict=True))

    def batch(self, which: torch.Tensor):
        """The `AlignmentBatch` of these stories, by their numbers."""
        return self.states.batch(which.tolist(), self.said[which], self.words[which])


class Clips(adapter.Clips):
    """Training clips of which stories are told. `aligner` reads what the VLM has understood of them; None: the text
    encoder reads the stories themselves."""

    def __init__(self, rows: dict[str, torch.Tensor], encoder, tokenizer, seed: int, sentences: Sentences):
        chosen = torch.tensor(sorted({each.row for each in sentences.told}))
        place = {int(row): i for i, row in enumerate(chosen)}
        # Numbers of the stories of a clip; of the same clip they follow each other.
        self.numbers = torch.zeros(len(chosen), guidance_data.STORIES, dtype=torch.long)
        for i, each in enumerate(sentences.told):
            self.numbers[place[each.row], i % guidance_data.STORIES] = i
        tokens = torch.cat([tokenizer([each.story.text]) for each in sentences.told]).short()
        super().__init__({**{k: v[chosen] for k, v in rows.items()}, "tokens": tokens[self.numbers]}, encoder, seed)
        self.sentences, self.aligner = sentences, None

    def draw(self, n: int, size: int = TUNING_BATCH, count: int | None = None) -> AdapterBatch:
        """As of all clips, but with as many subjects as there are stories of."""
        if count is None:
            shares = np.array([len(group) for group in self.groups]) / len(self.numbers)
            count = 1 + int(np.random.default_rng((self.seed, n, 1)).choice(len(shares), p=shares))
        return super().draw(n, size, count)

    def read(self, index: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        if self.aligner is None:
            return super().read(index, which)
        return guided_text(self.aligner, self.sentences.batch(self.numbers[index, which])).float()


def build(width: int, seed: int) -> Aligner:
    """An untrained aligner for states of this width."""
    use_comfyui()
    import comfy.ops

    config = AlignerConfig(width, text.CONFIG["d_model"], **SIZES, reading=guidance_data.READING)
    aligner = Aligner(config, comfy.ops.disable_weight_init)
    initialise(aligner, seed)
    return aligner.to(device())


def train(folder: Path, seed: int = 61) -> Path:
    """All of it -> the aligner's file, which lies with the LoRA's in `folder`."""
    use_comfyui()
    tune(folder, Sentences(folder, "train", dit.TRAIN_SHARDS), seed, guided=False)
    sentences = Sentences(folder, "train", dit.TRAIN_SHARDS, folder / vlm_net.NAME)
    pretrain(folder, sentences, Sentences(folder, "val", VAL_SHARDS, folder / vlm_net.NAME), seed)
    return tune(folder, sentences, seed, guided=True)


def pretrain(folder: Path, sentences: Sentences, val: Sentences, seed: int, steps: int = STEPS) -> Path:
    """To say what the text encoder says: mean squared error and cosine."""
    aligner = build(sentences.states.width, seed)
    trainer = Trainer(
        aligner,
        folder,
        "aligner",
        steps,
        RATE,
        warmup=50,
        final=0.02,
        decay_from=0.4,
        adam=("latents",),
        facts={"config": aligner.config.dumps(), "stories": str(len(sentences.told))},
    )

    def batch_of(n: int):
        rng = np.random.default_rng((seed, n))
        return sentences.batch(torch.from_numpy(rng.integers(0, len(sentences.told), BATCH)))

    def on_step(trainer: Trainer) -> None:
        if trainer.n % 200 == 0:
            with trainer.averaged():
                log.info("aligner step %d: %s", trainer.n, json.dumps(evaluate(aligner, val)))

    trainer.run(pretraining(batch_of), on_step=on_step)
    return export(aligner, folder / PRETRAINED, steps, seed)


@torch.no_grad()
def evaluate(aligner: Aligner, val: Sentences, limit: int = 128) -> dict[str, float]:
    """The losses on stories of other people, and how often a part of the caption is nearest to the mean of the same
    words in that place, of all that are said there: `parts`, and `telling`, where captions differ."""
    which = torch.arange(min(limit, len(val.told)))
    batch = val.batch(which)
    tokens, _ = aligner(batch.states.to(aligner.latents), batch.keys)
    losses = alignment_loss(tokens, batch.text, batch.words)
    pieces = [dict(guidance_data.caption_parts(each.story.spec)) for each in val.told[: len(which)]]
    right: list[bool] = []
    telling: list[bool] = []
    starts = sorted({at for each in pieces for at in each})
    for at, end in pairwise([*starts, text.LENGTH]):
        rows = [i for i, each in enumerate(pieces) if at in each]
        kinds = sorted({pieces[i][at] for i in rows})
        wide = slice(at, end)
        means = torch.stack([batch.text[[i for i in rows if pieces[i][at] == k], wide].mean(0) for k in kinds])
        for i in rows:
            near = (tokens[i, wide].float() - means).square().sum((1, 2)).argmin()
            right.append(kinds[int(near)] == pieces[i][at])
            if len(kinds) > 1:
                telling.append(right[-1])
    sums = {name: round(float(value), 4) for name, value in losses.items()}
    return {**sums, "parts": round(sum(right) / len(right), 4), "telling": round(sum(telling) / len(telling), 4)}


class Tuned(nn.Module):
    """The parts that are tuned: a LoRA inside of `network`, and the aligner, if there is one."""

    def __init__(self, network, aligner: Aligner | None):
        super().__init__()
        self.network, self.aligner = network, aligner


def tune(folder: Path, sentences: Sentences, seed: int, guided: bool, steps: int = TUNING_STEPS) -> Path:
    """A LoRA for the DiT, and the aligner with it where it is `guided` -> the last of the files."""
    use_comfyui()
    from ...training.adapter.network import AdapterNetwork
    from ...training.adapter.objective import adapter_loss
    from ...training.lora import LoRA

    text_path = folder / "idcrafter_nano_umt5.safetensors"
    rows = data.prepare(folder, folder / "idcrafter_nano_vae.safetensors", text_path, "train", dit.TRAIN_SHARDS)
    tokenizer, encoder = text.load(text_path)
    model = adapter.load_model(folder / "idcrafter_nano_dit.safetensors")
    clips = Clips(rows, encoder, tokenizer, seed, sentences)
    if guided:
        clips.aligner = build(sentences.states.width, seed)
        clips.aligner.load_state_dict({k: v.float() for k, v in load_file(folder / PRETRAINED).items()})
    lora = LoRA(model.model.diffusion_model, adapter.RANK, seed)
    tuned = Tuned(AdapterNetwork(model, None, lora), clips.aligner)
    name = "guidance" if guided else "guidance-text"
    facts = {"guided": str(guided), "rank": str(adapter.RANK), "stories": str(len(sentences.told))}
    trainer = Trainer(
        tuned,
        folder,
        name,
        steps,
        TUNING_RATE,
        warmup=20,
        final=0.02,
        decay_from=0.4,
        ema=0.98,
        keep_float32=("lora_",),
        optimizer="adamw",
        facts=facts,
    )

    def step(tuned: Tuned, n: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + n)
        return adapter_loss(tuned.network, clips.draw(n, TUNING_BATCH), generator, dit.SHIFT)

    trainer.run(step)
    facts = _facts(steps, seed, TUNING_BATCH)
    path = folder / (LORA if guided else PLAIN)
    save_file(lora.export(), path, facts)
    return export(clips.aligner, folder / ALIGNER, steps, seed) if guided else path


def export(aligner: Aligner, path: Path, steps: int, seed: int) -> Path:
    if not all(torch.isfinite(p).all() for p in aligner.parameters()):
        raise ValueError("The aligner's weights are not finite; train it again with a lower rate.")
    weights = {k: v.detach().half().contiguous().cpu() for k, v in aligner.state_dict().items()}
    facts = {**_facts(steps, seed, BATCH), "idcrafter_aligner": aligner.config.dumps(), "vlm": vlm_net.NAME}
    save_file(weights, path, facts)
    return path


def _facts(steps: int, seed: int, batch: int) -> dict[str, str]:
    made = {"steps": steps, "seed": seed, "batch": batch}
    return {"format": "pt", "licence": "Apache-2.0", "made_by": "idcrafter.nano"} | {k: str(v) for k, v in made.items()}
