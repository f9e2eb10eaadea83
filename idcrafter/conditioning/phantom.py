"""The Phantom rule: references are clean latent frames behind the video on the time axis.

Each reference is letterboxed on white at the video's size, encoded alone (one latent frame) and all of them are
concatenated in time as `time_dim_concat`; core's WanModel appends them to the noisy video and drops them from its
output. Their order is `references.order_photos`: the first photo of every subject in cast order, then second photos.

Three branches guide a step (Liu et al., "Phantom", arXiv 2502.11079, and the released sampler):

    v = v(negative text, zero references)
        + g_images * (v(negative text, references) - v(negative text, zero references))
        + g_text   * (v(prompt, references)        - v(negative text, references))

with g_images = 5.0, g_text = 7.5 and a schedule shift of 5.0 in the release. This is core's DualCFGGuider in its
"regular" style: cond1 = positive, cond2 = negative_text, negative = negative_images, cfg_conds = g_text,
cfg_cond2_negative = g_images. "Zero references" are zeros in the model's latent space, so they pass through
`process_out` here because core applies `process_in` to `time_dim_concat`.
"""

from __future__ import annotations

import torch

from ..backbones.wan import REFERENCE_NAMES
from .shot import Conditioned, Rule, Shot, empty_latent, encode_references, names_of, with_values, zero_latents


def condition(shot: Shot) -> Conditioned:
    """Encode the cast's references with a Wan 2.1 VAE and attach them to the conditioning (inputs stay unchanged)."""
    return append_in_time(shot, RULE)


def append_in_time(shot: Shot, rule: Rule, slots: int = 0) -> Conditioned:
    """The references behind the video; with `slots`, zero references fill them up to that many."""
    references = encode_references(shot, rule)
    latents = torch.cat(references.latents, dim=2)
    names = names_of(shot.cast, references.used)
    if slots > latents.shape[2]:
        empty = latents.new_zeros(shot.grid(latents.shape[1], slots - latents.shape[2]))
        latents = torch.cat([latents, zero_latents(empty)], dim=2)
        names += [None] * empty.shape[2]
    with_references = {"time_dim_concat": latents, REFERENCE_NAMES: names}
    without = {"time_dim_concat": zero_latents(latents), REFERENCE_NAMES: names}
    return Conditioned(
        positive=with_values(shot.positive, with_references),
        negative_text=with_values(shot.negative, with_references),
        negative_images=with_values(shot.negative, without),
        latent=empty_latent(shot),
        references=torch.cat(references.frames),
        used=references.used,
        left_out=references.left_out,
        model=shot.model,
    )


RULE = Rule("phantom", "Phantom", limit=4, kind="t2v", condition=condition)
