"""Videos that a policy makes while it is trained: always the same shots and noise, of casts and prompts of the
rollouts; and what a face analyzer that no reward has used says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..rewards.record import score_clip
from ..rollouts.dataset import Group, Rollouts
from ..rollouts.store import RolloutStore
from ..subjects.embeddings import cast_photos
from ..subjects.faces import FaceAnalyzer, extract_faces
from ..subjects.subject import Cast, Subject, make_cast, make_subject
from .adapter.validation import write_webp

# What the training's curve and the text call it.
NAME = "monitor"
FPS = 8.0
WHOSE = (
    "cannot tell who the people are: no group was stored with its photos. Connect the cast that the takes were made "
    "with, or collect with keep = conditioning and photos."
)


@dataclass(frozen=True, eq=False)
class Videos:
    """See the module.

    vae     of the video model
    shots   groups, whose conditioning, noise levels and guidance are used, and their casts with the monitor's faces;
            None where nothing is measured
    folder  gets step-N-shot-K.webp
    seed    of the noise
    on_step called after every step of the sampler and every scored frame, for interruption
    writes  whether this process writes the files
    """

    vae: Any
    shots: tuple[tuple[Group, Cast | None], ...]
    folder: Path
    seed: int = 0
    on_step: Callable[[], None] | None = None
    writes: bool = True

    def make(self, policy, n: int) -> list[torch.Tensor]:
        """Write the videos of step n; their frames [T, H, W, 3] in 0..1. The policy is on its device again."""
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
        found = []
        for i, (group, _) in enumerate(self.shots):
            latents = sample(policy, group, self.seed + i, self.on_step)
            leading = group.facts["shot"].get("leading", 0)
            pixels = self.vae.decode(policy.to_vae(latents[:, :, leading:])).float().cpu()
            frames = pixels.reshape(-1, *pixels.shape[-3:])[..., :3].clamp(0, 1)
            if self.writes:
                write_webp(frames, FPS, self.folder / f"step-{n:06}-shot-{i + 1}.webp")
            found.append(frames)
        policy.load()
        return found

    def measure(self, policy, n: int) -> float:
        """The mean similarity of the subjects in the videos of step n, 0 where somebody is not seen."""
        scores = [
            score_clip(frames, range(len(frames)), cast, self.on_step)["similarity_mean"]
            for (_, cast), frames in zip(self.shots, self.make(policy, n), strict=True)
        ]
        return float(np.mean(scores))


@torch.no_grad()
def sample(policy, group: Group, seed: int, on_step: Callable[[], None] | None = None) -> torch.Tensor:
    """A take like those of the group, [1, C, T, h, w] in the model's space: its noise levels, conditioning and
    guidance, without random steps.
    """
    noising, device = policy.noising, policy.device
    sigmas = group.sigmas().to(device)
    shape = (1, *group.facts["shot"]["shape"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    x = noising.noised(torch.zeros_like(noise), noise, sigmas[:1])
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        velocity = policy.velocity(x, sigma[None], group, guided=True)
        x = noising.stepped(x, noising.clip(x, velocity.to(x), sigma[None]), sigma, lower)
        if on_step is not None:
            on_step()
    return x


def choose_shots(
    rollouts: Rollouts,
    count: int,
    analyzer: FaceAnalyzer | None,
    cast: Cast | None = None,
    faces: FaceAnalyzer | None = None,
) -> tuple[tuple[Group, Cast | None], ...]:
    """`count` groups, spread over all, with their casts.

    analyzer  the monitor; without one there are no casts
    cast      stands for the photos of groups that were made with exactly these; others need photos in the rollouts
    faces     what the training itself looks at, if it does
    Raises ValueError for a monitor whose recogniser has made the reward, or without any photos to compare with.
    """
    groups: Sequence[Group] = rollouts.groups
    casts: dict[str, Cast] = {}
    if analyzer is not None:
        _require_other(analyzer, groups, faces)
        casts = casts_of(rollouts, cast)
        groups = [group for group in groups if group.name in casts]
        if not groups:
            raise ValueError(f"The monitor {WHOSE}")
    chosen = [groups[i * len(groups) // count] for i in range(min(count, len(groups)))] if count else []
    if analyzer is None:
        return tuple((group, None) for group in chosen)
    found = {g.name: extract_faces(casts[g.name], analyzer, "skip", "largest") for g in chosen}
    return tuple((group, casts[group.name].with_faces(found[group.name])) for group in chosen)


def casts_of(rollouts: Rollouts, cast: Cast | None = None) -> dict[str, Cast]:
    """The casts of groups by their names: `cast` where its photos are the group's, or from stored photos."""
    given = None if cast is None else cast_photos(cast)
    found = {}
    for group in rollouts.groups:
        own = cast if given == _photo_names(group) else _stored_cast(rollouts, group)
        if own is not None:
            found[group.name] = own
    return found


def _require_other(analyzer: FaceAnalyzer, groups: Sequence[Group], faces: FaceAnalyzer | None) -> None:
    own = analyzer.describe()["name"]
    used = {entry["name"] for group in groups for entry in group.facts["licences"] if entry["what"] == "face analyzer"}
    if faces is not None:
        used.add(faces.describe()["name"])
    if own in used:
        raise ValueError(
            f"The monitor '{own}' has made the rewards, so it would only tell what is trained; connect another face "
            "analyzer."
        )


def _photo_names(group: Group) -> list[list[str]]:
    return [subject["photos"] for subject in group.facts["shot"].get("subjects") or ()]


def _stored_cast(rollouts: Rollouts, group: Group) -> Cast | None:
    """From the photos in the rollouts' folder, None where one is missing."""
    store, subjects = RolloutStore(rollouts.folder), []
    for subject in group.facts["shot"].get("subjects") or ():
        paths = [store.photo(name) for name in subject["photos"]]
        if not paths or not all(path.is_file() for path in paths):
            return None
        # One at a time, because photos differ in size.
        made = [make_subject(subject["name"], subject["kind"], "", _read(path)) for path in paths]
        photos, masks = (tuple(each for one in made for each in getattr(one, key)) for key in ("photos", "masks"))
        subjects.append(Subject(made[0].name, made[0].kind, "", photos, masks))
    return make_cast(subjects) if subjects else None


def _read(path: Path) -> torch.Tensor:
    """[1, H, W, 3] in 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]
