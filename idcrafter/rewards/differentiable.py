"""How alike the faces of clips are to the photos of their cast, with a gradient down to the pixels (the reward of IPRO,
arXiv 2510.14255).

Where faces are and whose they are is found without a gradient, as all scores find it. Then each face is cut out of its
frame once more, by an interpolation that has a gradient, and embedded by the recogniser in torch. IPRO compares with
all faces of a real clip of the person; here these are all photos of the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from ..subjects.faces import ARCFACE_TEMPLATE, CastFaces, similarity_transform
from .assignment import assign_faces


class FaceReward:
    """Mean cosine of a cast's faces in clips; a subject who is not seen in a frame counts 0 there.

    analyzer  finds the faces; must have a recogniser with a gradient
    Raises ValueError where it has none.
    """

    def __init__(self, analyzer):
        self._analyzer = analyzer
        self._embed = analyzer.recogniser.with_gradient()
        self._size = analyzer.recogniser.crop_size

    def __call__(
        self, clips: torch.Tensor, faces: CastFaces, on_frame: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """clips [B, T, H, W, 3] in 0..1 and the faces of their cast, by the same analyzer -> [B] float32."""
        pools = [
            np.stack([face.embedding for face in subject.faces if face is not None])
            for subject in faces.subjects
            if subject is not None
        ]
        rewards = [self._of_clip(clip, pools, on_frame) for clip in clips]
        return torch.stack(rewards)

    def _of_clip(self, frames: torch.Tensor, pools: Sequence[np.ndarray], on_frame) -> torch.Tensor:
        shown = frames.detach().float().cpu().clamp(0, 1)
        which, matrices, wanted = [], [], []
        scale = self._size / 112
        for t, found in enumerate(self._analyzer.analyze_frames(shown, on_frame)):
            if not found:
                continue
            embeddings = np.stack([face.embedding for face in found])
            likeness = np.stack([(pool @ embeddings.T).mean(0) for pool in pools])
            for pool, column in zip(pools, assign_faces(likeness), strict=True):
                if column >= 0:
                    which.append(t)
                    matrices.append(similarity_transform(found[column].landmarks, ARCFACE_TEMPLATE * scale))
                    wanted.append(pool.mean(0))
        if not which:
            # Nothing to follow, but still a number that belongs to the clip.
            return frames.float().sum() * 0.0
        pixels = frames.float().movedim(-1, 1)[which]
        embedded = functional.normalize(self._embed(cut(pixels, np.stack(matrices), self._size)), dim=1)
        # The mean of the cosines with a pool is the product with the pool's mean.
        similarity = (embedded * torch.from_numpy(np.stack(wanted)).to(embedded)).sum(1)
        return similarity.sum() / (len(pools) * len(frames))


def cut(pixels: torch.Tensor, matrices: np.ndarray, size: int) -> torch.Tensor:
    """Squares [N, 3, size, size] of pictures [N, 3, H, W] as cv2.warpAffine cuts them, black outside; with a gradient.

    matrices  [N, 2, 3] from a picture's pixels to the square's
    """
    height, width = pixels.shape[-2:]
    full = np.concatenate([matrices, np.tile([[[0.0, 0.0, 1.0]]], (len(matrices), 1, 1))], 1)
    back = torch.from_numpy(np.linalg.inv(full)[:, :2]).to(pixels)
    line = torch.arange(size, device=pixels.device, dtype=pixels.dtype)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], -1)
    found = torch.einsum("nij,yxj->nyxi", back, places)
    grid = found * 2 / found.new_tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
    return functional.grid_sample(pixels, grid, "bilinear", "zeros", align_corners=True)
