"""Which published model a file is, beyond its network: Phantom and others have the tensors of plain text-to-video.

What tells them apart, in this order: the choice of the user, a tensor that only one release carries, the names of the
file and of its two folders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

AUTO = "auto"
PLAIN = "wan-t2v"


class Family(NamedTuple):
    """How a family is called in a sentence, and the licence that its weights were published under."""

    title: str
    licence: str


FAMILIES = {
    PLAIN: Family("Wan text-to-video", "Apache-2.0"),
    "wan-i2v": Family("Wan image-to-video", "Apache-2.0"),
    "wan-ti2v": Family("Wan 2.2 text-and-image-to-video 5B", "Apache-2.0"),
    "phantom": Family("Phantom-Wan", "Apache-2.0"),
    "vace": Family("Wan VACE", "Apache-2.0"),
    "humo": Family("HuMo", "Apache-2.0"),
    "bernini": Family("Bernini-R", "Apache-2.0"),
    "skyreels-v3": Family("SkyReels-V3-R2V", "Skywork Community License"),
    "refalign": Family("RefAlign", "MIT"),
    "cogvideox": Family("CogVideoX", "CogVideoX License (commercial use needs a registration)"),
    "cogvideox-i2v": Family("CogVideoX image-to-video", "CogVideoX License (commercial use needs a registration)"),
}
# The families whose files have exactly the tensors of plain text-to-video, and what a name must hold to be one.
SAME_LAYOUT = {
    "phantom": re.compile(r"phantom", re.I),
    "skyreels-v3": re.compile(r"sky.?reels.?v?3", re.I),
    "refalign": re.compile(r"ref.?align", re.I),
    "bernini": re.compile(r"bernini", re.I),
}
CHOICES = (AUTO, PLAIN, *SAME_LAYOUT)

# Fingerprints of released files (see `fingerprint`), as DiffSynth-Studio's model_configs.py lists them.
RELEASES = {
    "9269f8db9040a9d860eaca435be61814": "Wan2.1-T2V-1.3B",
    "aafcfd9672c3a2456dc46e1cb6e52c70": "Wan2.1-T2V-14B or Wan2.2-T2V-A14B",
    "6bfcfb3b342cb286ce886889d519a77e": "Wan2.1-I2V-14B",
    "3ef3b1f8e1dab83d5b71fd7b617f859f": "Wan2.1-FLF2V-14B",
    "5b013604280dd715f8457c6ed6d6a626": "Wan2.2-I2V-A14B",
    "1f5ab7703c6fc803fdded85ff040c316": "Wan2.2-TI2V-5B",
    "a61453409b67cd3246cf0c3bebad47ba": "Wan2.1-VACE-1.3B",
    "7a513e1f257a861512b1afd387a8ecd9": "Wan2.1-VACE-14B",
}


def fingerprint(shapes: Mapping[str, tuple[int, ...] | torch.Size]) -> str:
    """md5 over the sorted names and shapes of all tensors, in the form under which DiffSynth-Studio lists releases."""
    keys = []
    for name, shape in shapes.items():
        keys += [name, f"{name}:{'_'.join(map(str, shape))}"]
    return hashlib.md5(",".join(sorted(keys)).encode(), usedforsecurity=False).hexdigest()


def choose(found: str, what: str, choice: str, path: Path, names: Mapping) -> str:
    """The family of a file whose tensors are those of `found`.

    what    `found` as a noun phrase
    choice  one of CHOICES
    Raises ValueError when the choice does not fit the tensors.
    """
    if choice not in CHOICES:
        raise ValueError(f"The family '{choice}' is unknown; choose one of {', '.join(CHOICES)}.")
    if found != PLAIN:
        if choice != AUTO:
            raise ValueError(f"'{path.name}' holds {what}, so it cannot be {title(choice)}; set family to 'auto'.")
        return found
    if choice != AUTO:
        return choice
    if "freqs" in names:
        # Of the models with these tensors, only the released Phantom-Wan-1.3B.pth was saved with its rotation table.
        return "phantom"
    label = "/".join(path.parts[-3:])
    return next((family for family, pattern in SAME_LAYOUT.items() if pattern.search(label)), PLAIN)


def title(family: str) -> str:
    return FAMILIES[family].title


def published_licence(family: str) -> str:
    return f"{FAMILIES[family].licence} (as {title(family)} was published; the file does not say)"
