"""The nano VLM's eyes: its vision tower learns to name what is to be seen in a photo, by small heads that are thrown
away.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...training.loop import Trainer
from ..world.identity import BEARD_STYLES, GLASSES_STYLES, HAIR_STYLES, HAT_STYLES, Identity, colour_name, shows_hair
from . import vlm_data
from .core import device
from .text import COLOURS
from .vlm_net import IMAGE_TOKENS, WIDTH

STEPS, BATCH, RATE = 4000, 48, 3e-3
# From this step on red, green and blue are exchanged, in the photos and in the colours' names: what is learned by heart
# about the people of the training is of no more use then.
EXCHANGE_FROM = 800
ORDERS = tuple(permutations(range(3)))
# What is asked about a photo, and the answers.
SEEN = {
    "hair_style": HAIR_STYLES,
    "hair": COLOURS[1:],
    "glasses_style": GLASSES_STYLES,
    "beard_style": BEARD_STYLES,
    "hat_style": HAT_STYLES,
    "hat": COLOURS[1:],
    "clothes": COLOURS[1:],
}
IGNORED = -100  # as a label


class Pixels:
    """Photos as the model's own processor gives them to it; some are mirrored."""

    def __init__(self, folder: Path, people: vlm_data.People):
        import transformers

        self.people = people
        self.processor = transformers.AutoProcessor.from_pretrained(str(folder), local_files_only=True).image_processor

    def __call__(self, photos, mirrored=None, orders=None) -> dict[str, torch.Tensor]:
        """pixel_values and image_grid_thw of (person, photo) pairs; `orders` are indices into ORDERS."""
        rows, which = (torch.tensor(index) for index in zip(*photos, strict=True))
        pixels = self.people.photos[rows, which].movedim(-1, 1)
        if mirrored is not None:
            pixels = torch.where(torch.from_numpy(mirrored)[:, None, None, None], pixels.flip(-1), pixels)
        if orders is not None:
            pixels = torch.stack([photo[list(ORDERS[order])] for photo, order in zip(pixels, orders, strict=True)])
        found = self.processor(images=list(pixels), return_tensors="pt")
        return {name: found[name].to(device()) for name in ("pixel_values", "image_grid_thw")}


def see(visual: nn.Module, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
    """[photos, IMAGE_TOKENS, WIDTH]: what the language model is given of each photo."""
    found = visual(pixel_values.to(next(visual.parameters()).dtype), grid_thw=image_grid_thw)
    return getattr(found, "pooler_output", found).view(len(image_grid_thw), IMAGE_TOKENS, WIDTH)


class Eyes(nn.Module):
    """The vision tower and a question about each part of SEEN: one query that looks for it among the tokens."""

    def __init__(self, visual: nn.Module, seed: int):
        super().__init__()
        import comfy.ops

        self.visual = visual
        generator = torch.Generator().manual_seed(seed)
        self.queries = nn.Parameter(torch.randn(len(SEEN), WIDTH, generator=generator) * WIDTH**-0.5)
        linear = comfy.ops.disable_weight_init.Linear
        self.answers = nn.ModuleDict({name: linear(WIDTH, len(values)) for name, values in SEEN.items()})
        for layer in self.answers.values():
            layer.weight.data.normal_(0, WIDTH**-0.5, generator=generator)
            layer.bias.data.zero_()

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [photos, values] of each part."""
        tokens = see(self.visual, pixel_values, image_grid_thw)
        weights = torch.softmax((tokens @ self.queries.T).float(), dim=1).to(tokens.dtype)
        seen = weights.transpose(1, 2) @ tokens
        return {name: layer(seen[:, i]).float() for i, (name, layer) in enumerate(self.answers.items())}


def seen(who: Identity, order: tuple[int, ...] = ORDERS[0]) -> list[int]:
    """The right answer about each part of SEEN; IGNORED about what is not there, or hidden."""
    values = {name: getattr(who, name) for name in SEEN}
    for name in ("hair", "hat", "clothes"):
        values[name] = colour_name(tuple(values[name][channel] for channel in order))
    hidden = not shows_hair(who)
    absent = {"hair_style": hidden, "hair": hidden or who.hair_style == "bald", "hat": who.hat_style == "none"}
    return [IGNORED if absent.get(name) else options.index(values[name]) for name, options in SEEN.items()]


def eye_loss(eyes: Eyes, pixels: Pixels, labels: torch.Tensor, n: int, seed: int, size: int = BATCH) -> dict:
    """Cross-entropy over the parts of SEEN; how many answers are right, and in the part where the fewest are."""
    rng = np.random.default_rng((seed, n, 1))
    rows, which = rng.integers(len(labels), size=size), rng.integers(vlm_data.PHOTOS, size=size)
    orders = rng.integers(len(ORDERS), size=size) * (n >= EXCHANGE_FROM)
    logits = eyes(**pixels(list(zip(rows, which, strict=True)), rng.uniform(size=size) < 0.5, orders))
    target = labels[rows, orders].to(device())
    losses, right = [], []
    for out, wanted in zip(logits.values(), target.T, strict=True):
        losses.append(nn.functional.cross_entropy(out, wanted, ignore_index=IGNORED))
        right.append((out.argmax(-1) == wanted)[wanted != IGNORED].float().mean())
    return {
        "loss": torch.stack(losses).mean(),
        "right": torch.stack(right).mean().detach(),
        "worst": torch.stack(right).min().detach(),
    }


def train_eyes(
    folder: Path, visual: nn.Module, pixels: Pixels, seed: int, steps: int = STEPS, size: int = BATCH
) -> None:
    """Leaves the trained weights in `visual`, in float32."""
    eyes = Eyes(visual, seed).to(device())
    labels = torch.tensor([[seen(who, order) for order in ORDERS] for who in pixels.people.identities])
    trainer = Trainer(eyes, folder, "vlm-eyes", steps, RATE, warmup=40, adam=("queries", "answers"))
    trainer.run(lambda net, n: eye_loss(net, pixels, labels, n, seed, size), log_every=50)
    weights = {k.removeprefix("visual."): v for k, v in trainer.ema.items() if k.startswith("visual.")}
    visual.float()
    with torch.no_grad():
        for name, p in visual.named_parameters():
            p.copy_(weights[name].view(p.shape))


def look(visual: nn.Module, pixels: Pixels, size: int = 16) -> torch.Tensor:
    """[people, PHOTOS, IMAGE_TOKENS, WIDTH] bfloat16: what is made of each photo; `size` people at a time."""
    found, rows = [], range(len(pixels.people.identities))
    with torch.no_grad():
        for some in (rows[start : start + size] for start in rows[::size]):
            tokens = see(visual, **pixels([(row, k) for row in some for k in range(vlm_data.PHOTOS)]))
            found.append(tokens.to(torch.bfloat16).cpu().unflatten(0, (len(some), vlm_data.PHOTOS)))
    return torch.cat(found)
