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

from dataclasses import dataclass

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import node_helpers
import torch

from ..subjects.references import PhotoRef, choose_photos, letterbox
from ..subjects.subject import Cast

MAX_REFERENCES = 4
LATENT_CHANNELS = 16
SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4
# The DiT's patches are 2x2 latents, so a side must be a multiple of this many pixels.
PIXEL_STEP = SPATIAL_STRIDE * 2


@dataclass(frozen=True, eq=False)
class PhantomConditioning:
    """What CastToVideo hands to the graph.

    positive, negative_text  CONDITIONING with the references
    negative_images          CONDITIONING with zero references
    latent                   [1, 16, T, height / 8, width / 8] zeros, T = (length - 1) / 4 + 1
    references               [N, height, width, 3] the frames as the VAE saw them, in order
    used, left_out           which photos those are, and which did not fit
    """

    positive: list
    negative_text: list
    negative_images: list
    latent: dict
    references: torch.Tensor
    used: list[PhotoRef]
    left_out: list[PhotoRef]


def condition(
    positive: list, negative: list, vae, cast: Cast, width: int, height: int, length: int
) -> PhantomConditioning:
    """Encode the cast's references with a Wan 2.1 VAE and attach them to the conditioning (inputs stay unchanged)."""
    check_size(width, height, length)
    check_vae(vae)
    used, left_out = choose_photos(cast, MAX_REFERENCES, "Phantom")
    # Its update is also where an interrupt takes effect.
    progress = comfy.utils.ProgressBar(len(used))
    frames, latents = [], []
    for ref in used:
        subject = cast.subjects[ref.subject]
        frame = letterbox(subject.photos[ref.photo], subject.masks[ref.photo], width, height).unsqueeze(0)
        frames.append(frame)
        latents.append(vae.encode(frame))
        progress.update(1)
    references = torch.cat(latents, dim=2)
    no_references = comfy.latent_formats.Wan21().process_out(torch.zeros_like(references))
    samples = torch.zeros(
        [1, LATENT_CHANNELS, (length - 1) // TEMPORAL_STRIDE + 1, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE],
        device=comfy.model_management.intermediate_device(),
    )
    return PhantomConditioning(
        positive=node_helpers.conditioning_set_values(positive, {"time_dim_concat": references}),
        negative_text=node_helpers.conditioning_set_values(negative, {"time_dim_concat": references}),
        negative_images=node_helpers.conditioning_set_values(negative, {"time_dim_concat": no_references}),
        latent={"samples": samples},
        references=torch.cat(frames),
        used=used,
        left_out=left_out,
    )


def check_size(width: int, height: int, length: int) -> None:
    """ValueError unless both sides are multiples of 16 px and the length is 4n + 1 frames."""
    for side, pixels in (("width", width), ("height", height)):
        if pixels < PIXEL_STEP or pixels % PIXEL_STEP:
            raise ValueError(f"The {side} is {pixels} px; a Wan model needs a multiple of {PIXEL_STEP} px.")
    if length < 1 or (length - 1) % TEMPORAL_STRIDE:
        lower = max(1, (length - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
        raise ValueError(
            f"The length is {length} frames; a Wan model makes 4n + 1, so use {lower} or {lower + TEMPORAL_STRIDE}."
        )


def check_vae(vae) -> None:
    """ValueError unless the VAE has the Wan 2.1 latent layout (16 channels, 8 px, video)."""
    channels, strides = vae.latent_channels, vae.spacial_compression_encode()
    if vae.latent_dim != 3 or channels != LATENT_CHANNELS or strides != SPATIAL_STRIDE:
        raise ValueError(
            f"The Phantom rule needs the Wan 2.1 VAE (video, {LATENT_CHANNELS} channels, {SPATIAL_STRIDE} px); "
            f"the connected one has {channels} channels and {strides} px. Load wan_2.1_vae.safetensors or a bundle."
        )
