"""Phantom's references in a Phantom model that carries VACE's context blocks (as people merge them).

The references follow the video as with Phantom, so there is nothing to trim; VACE brings the control video and its
masks. Its context blocks see the same tokens as the main blocks, references included, so the context has as many
frames more; there it is empty, to be left alone (mask zero), and adds nothing, because `strength` is zero on those
tokens. That is core's `vace_strength` as a weight a token, which core multiplies in as it does a number.
"""

from __future__ import annotations

import dataclasses

import torch

from .phantom import append_in_time
from .shot import PIXEL_STEP, Conditioned, Rule, Shot, with_values, zero_latents
from .vace import encode_control


def condition(shot: Shot) -> Conditioned:
    """Phantom's three branches, each with the same control context."""
    conditioned = append_in_time(shot, RULE)
    count = conditioned.references.shape[0]
    control, mask = encode_control(shot)
    empty = control.new_zeros(shot.grid(16, count))
    control = torch.cat([control, torch.cat([zero_latents(empty), zero_latents(empty)], dim=1)], dim=2)
    mask = torch.cat([mask, torch.zeros_like(mask[:, :, :1]).expand(-1, -1, count, -1, -1)], dim=2)
    tokens = (shot.height // PIXEL_STEP) * (shot.width // PIXEL_STEP)
    weight = torch.zeros((1, (shot.frames + count) * tokens, 1))
    weight[:, : shot.frames * tokens] = shot.strength
    values = {"vace_frames": [control], "vace_mask": [mask], "vace_strength": [weight]}
    branches = ("positive", "negative_text", "negative_images")
    return dataclasses.replace(
        conditioned, **{name: with_values(getattr(conditioned, name), values, append=True) for name in branches}
    )


RULE = Rule(
    "phantom+vace",
    "Phantom + VACE",
    limit=4,
    kind="vace",
    condition=condition,
    strength=True,
    control=True,
    masks=True,
)
