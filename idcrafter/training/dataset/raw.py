"""Raw clips: the video files of a folder, what is written beside them, and the moments of them that are looked at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...rewards.evidence import VideoFrames
from ...subjects.subject import MAX_SUBJECTS, normalise_name

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_NAMES = re.compile(r"\s*subjects\s*:(?P<entries>.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Caption:
    """What a .txt beside a clip says.

    text         the caption; empty where there is none
    names        of the people from left to right, and a description of each; empty where nobody gave them
    """

    text: str = ""
    names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RawClip:
    """One video file.

    path     the file
    name     unique among the clips and fit for file names
    file     its path relative to the folder of clips, for people
    sha256   of the file
    indices  the frames that are looked at, ascending: all, or those nearest to even steps of 1 / fps
    fps      of these frames
    """

    path: Path
    name: str
    file: str
    sha256: str
    source: VideoFrames
    indices: tuple[int, ...]
    fps: float
    caption: Caption


def find_clips(folder: Path) -> list[Path]:
    """All video files below a folder, in the order of their paths. Raises FileNotFoundError where there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"'{folder}' has no clips; put files of {', '.join(SUFFIXES)} into it.")
    return files


def clip_names(files: Sequence[Path], folder: Path) -> list[str]:
    """A name for each file: letters, digits and dashes of its path; a digest tells equal ones apart."""
    paths = [file.relative_to(folder).as_posix() for file in files]
    names = [re.sub(r"[^a-z0-9]+", "-", path.rsplit(".", 1)[0].lower()).strip("-") or "clip" for path in paths]
    return [
        f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:6]}" if names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]


def open_clip(path: Path, folder: Path, name: str, fps: float | None) -> RawClip:
    """Open a clip, to be looked at `fps` times a second (None: at every frame).

    Raises ValueError for a file that is no video, does not say how fast it is or is slower, or has a bad caption.
    """
    source = VideoFrames(path)
    if not source.fps:
        raise ValueError("it does not say how many frames a second it has; re-encode it as mp4.")
    if fps is None:
        indices, fps = tuple(range(source.length)), source.fps
    else:
        if fps > source.fps * 1.01:
            raise ValueError(f"it has {source.fps:g} frames a second, fewer than the {fps:g} that are wanted.")
        step = source.fps / fps
        count = int((source.length - 1) / step + 1e-6) + 1
        indices = tuple(min(round(i * step), source.length - 1) for i in range(count))
    relative = path.relative_to(folder).as_posix()
    return RawClip(path, name, relative, _sha256(path), source, indices, float(fps), read_caption(path))


def read_caption(path: Path) -> Caption:
    """The caption in the .txt of the same name. Its first line may name the people from left to right:

        subjects: Ada = a woman in red; Bo
        Ada hugs Bo.

    Raises ValueError for text that is not UTF-8, and for names that are empty, doubled or too many.
    """
    file = path.with_suffix(".txt")
    if not file.is_file():
        return Caption()
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"its caption '{file.name}' is not UTF-8 text; save it as UTF-8.") from error
    names, descriptions = [], []
    first = _NAMES.fullmatch(lines[0]) if lines else None
    if first:
        for entry in first["entries"].split(";"):
            name, _, description = entry.partition("=")
            names.append(normalise_name(name))
            descriptions.append(" ".join(description.split()))
        if len({name.casefold() for name in names}) < len(names) or len(names) > MAX_SUBJECTS:
            raise ValueError(f"its caption '{file.name}' needs 1 to {MAX_SUBJECTS} different names after 'subjects:'.")
    return Caption(" ".join(" ".join(lines[1 if first else 0 :]).split()), tuple(names), tuple(descriptions))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
