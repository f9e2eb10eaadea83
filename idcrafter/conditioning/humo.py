"""The HuMo rule: references are clean latent frames behind the video, in a conditioning key of their own.

The release letterboxes each on white, encodes it alone and joins them in time (Phantom-video/HuMo,
humo/generate.py, `load_image_latent_ref_id`); core's HumoWanModel takes that as the last of `reference_latents`.

In place of no references the 1.7B model gets zeros (generate_1_7B.py, `latents_ref_neg`) and the 17B model, whose
input also holds a clip to go on from, a late frame of an encoded grey video (generate.py, `zero_vae`). The 17B release
guides without sound by v = v0 + g (v(prompt, references) - v0): for the first 2 % of the noise v0 has the references
and g = 5, then v0 has none and g = 3. That is core's KSampler with positive and negative_text, or negative_images.

HuMo also listens: where no audio has been attached before (core's HuMo node, without its image, does that), silence
is: zeros for each latent frame of the video, [1, T, 8, 5, 1280]; the model itself adds the frames of the references.
"""

from __future__ import annotations

import comfy.model_management
import torch

from ..backbones.wan import REFERENCE_NAMES
from .shot import Conditioned, Rule, Shot, empty_latent, encode_references, names_of, with_values, zero_latents

# Windows of 8 audio frames, 5 levels of the Whisper encoder, 1280 features.
AUDIO_SHAPE = (8, 5, 1280)
# Three latent frames: from the third one on, a grey video is the same everywhere (core's WAN21_HuMo holds the numbers).
GREY_FRAMES = 9


def condition(shot: Shot) -> Conditioned:
    """References for prompt and negative_text; what stands for none of them for negative_images."""
    references = encode_references(shot, RULE)
    latents = torch.cat(references.latents, dim=2)
    positive, negative = (_with_audio(conditioning, shot) for conditioning in (shot.positive, shot.negative))
    positive, negative = (
        with_values(conditioning, {REFERENCE_NAMES: names_of(shot.cast, references.used)})
        for conditioning in (positive, negative)
    )
    with_references = {"reference_latents": [latents]}
    without = {"reference_latents": [no_references(shot, latents)]}
    return Conditioned(
        positive=with_values(positive, with_references, append=True),
        negative_text=with_values(negative, with_references, append=True),
        negative_images=with_values(negative, without, append=True),
        latent=empty_latent(shot),
        references=torch.cat(references.frames),
        used=references.used,
        left_out=references.left_out,
        model=shot.model,
    )


def no_references(shot: Shot, like: torch.Tensor) -> torch.Tensor:
    """What the release gives in their place, in the VAE's space; without a MODEL, that of 17B."""
    if shot.model is not None and shot.model.model.model_config.unet_config["in_dim"] == like.shape[1]:
        return zero_latents(like)
    grey = torch.full((GREY_FRAMES, shot.height, shot.width, 3), 0.5)
    return shot.vae.encode(grey)[:, :, -1:].repeat(1, 1, like.shape[2], 1, 1)


def _with_audio(conditioning: list, shot: Shot) -> list:
    if all("audio_embed" in options for _, options in conditioning):
        return conditioning
    device = comfy.model_management.intermediate_device()
    return with_values(conditioning, {"audio_embed": torch.zeros((1, shot.frames, *AUDIO_SHAPE), device=device)})


# The release takes a list without naming a maximum; four is what its sister model Phantom was trained with.
RULE = Rule("humo", "HuMo", limit=4, kind="humo", condition=condition)
