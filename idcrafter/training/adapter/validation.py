"""Videos that an adapter makes while it is trained: always the same clips and noise, so that they can be compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from PIL import Image

from ...rewards.record import score_clip
from ...subjects.faces import FaceAnalyzer, extract_faces, to_uint8
from ..dataset.clip import TrainingDataset
from ..dataset.loading import clip_cast
from .batch import AdapterBatch
from .encodings import Encodings, move
from .network import AdapterNetwork

# Clips that are made each time.
CLIPS = 2


@dataclass(frozen=True, eq=False)
class Validation:
    """How the videos are made.

    vae       of the video model
    analyzer  scores them against the clips' references; None for no scores
    folder    gets step-N-clip-LINE.webp
    steps     of the sampler; guidance away from the branch without text and people; seed of the noise
    """

    vae: Any
    analyzer: FaceAnalyzer | None
    dataset: TrainingDataset
    folder: Path
    steps: int = 20
    guidance: float = 5.0
    seed: int = 0

    def run(
        self, network: AdapterNetwork, encodings: Encodings, n: int, on_frame: Callable[[], None] | None = None
    ) -> dict[str, float | None]:
        """Make the videos of step n and write them; the mean "similarity" and the number of "swaps" of their subjects.

        on_frame  called after every step and every scored frame, for interruption
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        device = next(network.parameters()).device
        records = []
        for i, entry in list(enumerate(encodings.entries))[:CLIPS]:
            batch = move(encodings.batch([i]), device)
            latents = sample(network, batch, encodings.empty, self.steps, self.guidance, self.seed + i, on_frame)
            with torch.no_grad():
                pixels = self.vae.decode(network.to_vae(latents[:, :, entry.trim :])).float().cpu()
            frames = pixels.reshape(-1, *pixels.shape[-3:]).clamp(0, 1)
            clip = next(clip for clip in self.dataset.clips if clip.line == entry.line)
            write_webp(frames, clip.fps, self.folder / f"step-{n:06}-clip-{entry.line}.webp")
            if self.analyzer is not None:
                cast = clip_cast(clip)
                cast = cast.with_faces(extract_faces(cast, self.analyzer, "skip", "largest"))
                if any(own is not None for own in cast.faces.subjects):
                    records.append(score_clip(frames, range(len(frames)), cast, on_frame))
        if not records:
            return {}
        seen = [record["similarity_mean"] for record in records]
        return {"similarity": sum(seen) / len(seen), "swaps": float(sum(record["swapped"] for record in records))}


@torch.no_grad()
def sample(
    network: AdapterNetwork,
    batch: AdapterBatch,
    empty: torch.Tensor,
    steps: int,
    guidance: float,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """A video like each of the batch, [B, C, T, h, w] in the model's space, by a deterministic sampler.

    Through the network itself, so that the inputs of the model are exactly those of training.
    """
    noising, clean = network.noising, batch.clean
    sigmas = comfy.samplers.calculate_sigmas(noising.sampling, "simple", steps).float().to(clean.device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    every = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
    without = batch.without(every, every, empty.to(clean.device))
    x = noising.noised(torch.zeros_like(clean), noise, sigmas[:1].expand(len(clean)))
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        level = sigma.expand(len(clean))
        velocity, _ = network(x, level, batch)
        if guidance != 1.0:
            away, _ = network(x, level, without)
            velocity = away + guidance * (velocity - away)
        x = noising.stepped(x, noising.clip(x, velocity.to(x), level), sigma, lower)
        if on_step is not None:
            on_step()
    return x


def write_webp(frames: torch.Tensor, fps: float, path: Path) -> None:
    """Frames [T, H, W, 3] in 0..1 as an animation."""
    pictures = [Image.fromarray(to_uint8(frame)) for frame in frames]
    part = path.with_name(f"{path.name}.part")
    duration = max(1, round(1000 / fps))
    pictures[0].save(part, "WEBP", save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=90)
    os.replace(part, path)
