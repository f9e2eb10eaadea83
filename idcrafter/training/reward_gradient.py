"""What IPRO raises: how alike the faces in decoded takes are to the photos, with a gradient through the model's VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ..rewards.differentiable import FaceReward
from ..rollouts.dataset import Group, Rollouts
from ..subjects.faces import CastFaces, FaceAnalyzer, extract_faces
from ..subjects.subject import Cast
from .kernels import freeze, training_kernels
from .rl_validation import WHOSE, casts_of


def reward_of_faces(
    vae: Any,
    analyzer: FaceAnalyzer | None,
    rollouts: Rollouts,
    cast: Cast | None = None,
    on_frame: Callable[[], None] | None = None,
) -> Callable[[Any, torch.Tensor, Group], torch.Tensor]:
    """(policy, clips [B, C, T, h, w] in the model's space, their group) -> [B].

    cast      stands for the photos of groups that were made with exactly these; others need photos in the rollouts
    on_frame  called after each frame in which faces were looked for
    Raises ValueError without a VAE or an analyzer, for a recogniser without gradients, and for a group without photos.
    """
    if vae is None or analyzer is None:
        raise ValueError(
            "IPRO needs the VAE of the MODEL, and the face analyzer by which the takes become more like the photos; "
            "connect both."
        )
    faces_of, casts = {}, casts_of(rollouts, cast)
    for group in rollouts.groups:
        if group.name not in casts:
            raise ValueError(f"Of group {group.name[:12]} one {WHOSE}")
        faces_of[group.name] = _some_faces(casts[group.name], analyzer, group)
    reward = FaceReward(analyzer)
    freeze(vae.first_stage_model)

    def judge(policy: Any, clips: torch.Tensor, group: Group) -> torch.Tensor:
        leading = group.facts["shot"].get("leading", 0)
        # Both, because the gradient goes through the MODEL when the VAE is done.
        comfy.model_management.load_models_gpu([policy.model, vae.patcher])
        latents = policy.to_vae(clips[:, :, leading:]).to(vae.device, vae.vae_dtype)
        with training_kernels():
            pixels = vae.process_output(vae.first_stage_model.decode(latents).float())
        return reward(pixels.movedim(1, -1), faces_of[group.name], on_frame).to(clips.device)

    return judge


def _some_faces(cast: Cast, analyzer: FaceAnalyzer, group: Group) -> CastFaces:
    found = extract_faces(cast, analyzer, "skip", "largest")
    if not any(subject is not None for subject in found.subjects):
        raise ValueError(f"No photo of group {group.name[:12]} ('{group.prompt[:40]}') shows a face; leave it out.")
    return found
