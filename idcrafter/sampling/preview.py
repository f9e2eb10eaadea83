"""The score of a take that is not finished: a few frames of its x0 preview, against the cast.

The score is `rewards.identity.score_identity`, the same that ranks finished takes, on fewer frames. The test for still
pictures is left out: an early preview hardly moves, whatever becomes of it.

A video VAE is causal: what the first latent frame shows depends on nothing, what another one shows on those before it.
So a latent frame in the middle of a clip is decoded together with the one before it, as a clip of two whose first part
is thrown away. Decoded all alone it would be taken for the first one: one blurred frame instead of four, and a worse
prediction of the final score (`bench takes` states how well previews predict it, the finished take included: rho at
sigma 0).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from ..rewards.identity import FrameFaces, score_identity
from ..rewards.scorecard import scored_faces, spread_frames
from ..subjects.subject import Cast

LATENT_FRAMES = 5


class PreviewScorer:
    """Scores latents against a cast.

    vae      of the model that makes the takes
    leading  latent frames before the video, which are references
    wanted   latent frames to decode, spread over the clip
    seconds  {"decode", "score"}: time spent so far
    Raises ValueError when the cast has not been through face extraction or nobody in it has a face.
    """

    def __init__(self, vae, cast: Cast, leading: int = 0, wanted: int = LATENT_FRAMES):
        faces, known = scored_faces(cast)
        self.vae = vae
        self.analyzer = faces.analyzer
        self.subjects = np.stack([own.mean for _, own in known])
        self.leading, self.wanted = leading, wanted
        self.seconds = {"decode": 0.0, "score": 0.0}

    def __call__(self, samples: torch.Tensor, on_frame: Callable[[], None] | None = None) -> float | None:
        """0..1, or None for a preview that holds NaN or infinite values.

        samples   latent in the VAE's space
        on_frame  called after each frame, for interruption
        """
        if not torch.isfinite(samples).all():
            return None
        start = time.perf_counter()
        video = samples[:, :, self.leading :] if self.leading else samples
        frames = decode_some(self.vae, video, self.wanted).to("cpu", torch.float32)
        decoded = time.perf_counter()
        self.seconds["decode"] += decoded - start
        if not torch.isfinite(frames).all():
            return None
        found = self.analyzer.analyze_frames(frames, on_frame)
        score = score_identity([FrameFaces.of(faces, self.subjects.shape[1]) for faces in found], self.subjects).score
        self.seconds["score"] += time.perf_counter() - decoded
        return score


def decode_some(vae, samples: torch.Tensor, wanted: int) -> torch.Tensor:
    """The frames [T', H, W, 3] of at most `wanted` latent frames spread over the clip, in time order.

    samples  [1, C, T, h, w]; a picture's latent [1, C, h, w] is decoded whole
    """
    if samples.ndim != 5:
        return _frames(vae.decode(samples))
    chosen = spread_frames(samples.shape[2], wanted)
    first = _frames(vae.decode(samples[:, :, :1]))
    if len(chosen) == 1:
        return first
    # All of the others in one batch.
    windows = torch.cat([samples[:, :, t - 1 : t + 1] for t in chosen[1:]])
    later = vae.decode(windows)[:, len(first) :]
    return torch.cat([first, _frames(later)])


def _frames(images: torch.Tensor) -> torch.Tensor:
    """What a VAE decodes, [B, T, H, W, C] or [T, H, W, C], as frames [B T, H, W, 3]."""
    return images.reshape(-1, *images.shape[-3:])[..., :3]
