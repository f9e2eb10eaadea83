"""A data set folder -> `TrainingDataset`, with everything that is wrong with it said at once."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...rewards.evidence import VideoFrames
from ...subjects.regions import Box
from ...subjects.subject import KINDS, MAX_SUBJECTS, MIN_SIDE, normalise_name
from .clip import METADATA, Boxes, TrainingClip, TrainingDataset, TrainingSubject
from .mask_files import open_masks

# Problems that one error lists; the first ones say what is wrong with the rest.
SHOWN_PROBLEMS = 20

_CLIP_FIELDS = ("video", "caption", "licence", "subjects", "fps", "source")
_SUBJECT_FIELDS = ("name", "references", "kind", "description", "faces", "track", "masks", "mask_source")


class _ProblemError(ValueError):
    """One thing that is wrong, without saying where."""


def read_dataset(folder: Path | str, on_clip: Callable[[int, int], None] | None = None) -> TrainingDataset:
    """Read and check a data set; see the package for its format.

    on_clip  called with (clips done, clips in all) after each clip, for progress and interruption
    Videos are opened, pictures decoded and masks measured, nothing is kept in memory.
    Raises FileNotFoundError where there is no data set, ValueError that lists what is wrong: line, subject, what to do.
    """
    folder = Path(folder).resolve()
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' is no data set: it has no {METADATA}. Make one by `python -m idcrafter build-dataset`."
        )
    raw = path.read_bytes()
    try:
        lines = [(n, line) for n, line in enumerate(raw.decode("utf-8-sig").splitlines(), 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text ({error}); save it as UTF-8.") from error
    if not lines:
        raise ValueError(f"'{path}' has no clips.")
    problems: list[str] = []
    clips = []
    for done, (number, line) in enumerate(lines, 1):
        clip = _read_line(folder, number, line, problems)
        if clip is not None:
            clips.append(clip)
        if on_clip:
            on_clip(done, len(lines))
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        more = f"\n... and {len(problems) - len(shown)} more." if len(problems) > len(shown) else ""
        raise ValueError(f"The data set '{folder}' cannot be trained on:\n" + "\n".join(shown) + more)
    return TrainingDataset(folder, tuple(clips), hashlib.sha256(raw).hexdigest())


def _read_line(folder: Path, number: int, line: str, problems: list[str]) -> TrainingClip | None:
    """The clip of one line, or None after its problems have been added."""
    where = f"line {number}"
    before = len(problems)

    def checked(make: Callable, *arguments, what: str = ""):
        try:
            return make(*arguments)
        except ValueError as error:
            problems.append(f"{where}{what}: {error}")
            return None

    record = checked(_record, line)
    if record is None:
        return None
    where = f"line {number} ({record['video']})" if isinstance(record.get("video"), str) else where
    checked(_known_fields, record, _CLIP_FIELDS)
    texts = {key: checked(_text, record, key) for key in ("caption", "licence")}
    source = checked(_text, record, "source", "")
    video = checked(_file, folder, record.get("video"), "video")
    shot = checked(_measure, video, record.get("fps")) if video else None
    people = checked(_subject_list, record) or []
    subjects, names = [], {}
    for k, entry in enumerate(people, 1):
        name = checked(_name, entry, k, names)
        what = f", subject '{name}'" if name else f", subject {k}"
        if not isinstance(entry, dict):
            continue
        checked(_known_fields, entry, _SUBJECT_FIELDS, what=what)
        kind = checked(_kind, entry, what=what)
        words = [checked(_text, entry, key, "", what=what) for key in ("description", "mask_source")]
        references = checked(_references, folder, entry, what=what)
        length = shot[0] if shot else None
        faces, track = (checked(_boxes, entry, key, length, what=what) for key in ("faces", "track"))
        masks = checked(_masks, folder, entry, shot, what=what)
        subjects.append((name, references, kind, words[0], faces, track, masks, words[1]))
    if len(problems) > before:
        return None
    length, height, width, fps = shot
    made = tuple(TrainingSubject(*values) for values in subjects)
    return TrainingClip(number, video, texts["caption"], made, length, width, height, fps, texts["licence"], source)


def _record(line: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _ProblemError(f"it is no JSON ({error}).") from error
    if not isinstance(record, dict):
        raise _ProblemError("it is no JSON object; write one clip a line, in braces.")
    return record


def _known_fields(record: dict, known: tuple[str, ...]) -> None:
    unknown = [key for key in record if key not in known]
    if unknown:
        raise _ProblemError(f"'{unknown[0]}' is no field; there are {', '.join(known)}.")


def _text(record: dict, key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise _ProblemError(f"the {key} is missing or no text; give it one.")
    return " ".join(unicodedata.normalize("NFC", value).split())


def _file(folder: Path, value: Any, what: str, directory: bool = False) -> Path:
    """An existing file (or folder) below the data set's folder."""
    if not isinstance(value, str) or not value:
        raise _ProblemError(f"the path of the {what} is missing; give one relative to the folder.")
    windows, plain = PureWindowsPath(value), PurePosixPath(value)
    if windows.drive or windows.root or "\\" in value or ".." in plain.parts:
        raise _ProblemError(
            f"the path '{value}' leaves the folder, or has backslashes; copy the {what} into the folder."
        )
    path = (folder / plain).resolve()
    if folder not in path.parents:
        raise _ProblemError(f"the path '{value}' leads out of the folder; copy the {what} into the folder.")
    if not (path.is_file() or directory and path.is_dir()):
        raise _ProblemError(f"the {what} '{value}' does not exist; put it there, or correct the path.")
    return path


def _measure(video: Path, fps: Any) -> tuple[int, int, int, float]:
    """Frames, height, width, frames a second."""
    frames = VideoFrames(video)
    if fps is None:
        fps = frames.fps
        if not fps:
            raise _ProblemError("the video does not say how many frames a second it has; add fps to the line.")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (math.isfinite(fps) and fps > 0):
        raise _ProblemError(f"fps is '{fps}'; give the frames a second as a number above 0.")
    try:
        height, width = next(frames.read([0])).shape[:2]
    except RuntimeError as error:
        raise _ProblemError(str(error)) from error
    return frames.length, height, width, float(fps)


def _subject_list(record: dict) -> list:
    people = record.get("subjects")
    if not isinstance(people, list) or not 1 <= len(people) <= MAX_SUBJECTS:
        count = len(people) if isinstance(people, list) else "no list of"
        raise _ProblemError(f"there are {count} subjects; give a list of 1 to {MAX_SUBJECTS}.")
    return people


def _name(entry: Any, position: int, names: dict[str, int]) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise _ProblemError(f"subject {position} has no name; write an object with name and references.")
    name = normalise_name(entry["name"])
    key = unicodedata.normalize("NFC", name.casefold())
    if key in names:
        raise _ProblemError(f"subjects {names[key]} and {position} are both named '{name}'; rename one.")
    names[key] = position
    return name


def _kind(entry: dict) -> str:
    kind = entry.get("kind", KINDS[0])
    if kind not in KINDS:
        raise _ProblemError(f"the kind '{kind}' is unknown; choose one of {', '.join(KINDS)}.")
    return kind


def _references(folder: Path, entry: dict) -> tuple[Path, ...]:
    values = entry.get("references")
    if not isinstance(values, list) or not values:
        raise _ProblemError("it has no references; give at least one picture that is not a frame of the clip.")
    paths = tuple(_file(folder, value, "reference") for value in values)
    for value, path in zip(values, paths, strict=True):
        try:
            with Image.open(path) as picture:
                picture.load()
                size = picture.size
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise _ProblemError(f"the reference '{value}' is no readable picture ({error}); replace it.") from error
        if min(size) < MIN_SIDE:
            raise _ProblemError(f"the reference '{value}' is {size[0]}x{size[1]} px; use one of {MIN_SIDE} px or more.")
    return paths


def _boxes(entry: dict, key: str, length: int | None) -> Boxes | None:
    """Boxes of every frame of the clip; `length` is None where the clip could not be measured."""
    values = entry.get(key)
    if values is None:
        return None
    if not isinstance(values, list):
        raise _ProblemError(f"{key} is no list; give a box or null for each frame.")
    if length is not None and len(values) != length:
        longer = "longer" if len(values) > length else "shorter"
        raise _ProblemError(
            f"{key} is {longer} than the clip: {len(values)} entries for {length} frames; give a box or null for each."
        )
    boxes = tuple(_box(value, key, frame) for frame, value in enumerate(values, 1))
    if all(box is None for box in boxes):
        raise _ProblemError(f"{key} has no box; leave the field out where nobody knows.")
    return boxes


def _box(value: Any, key: str, frame: int) -> Box | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not numbers or not (-1 <= value[0] < value[2] <= 2 and -1 <= value[1] < value[3] <= 2):
        raise _ProblemError(
            f"{key} has {value} in frame {frame}, which is no box; give left, top, right, bottom in fractions of the "
            "frame (divide pixels by the video's width and height)."
        )
    return tuple(float(v) for v in value)


def _masks(folder: Path, entry: dict, shot: tuple[int, int, int, float] | None) -> Path | None:
    if entry.get("masks") is None:
        return None
    path = _file(folder, entry["masks"], "mask file", directory=True)
    try:
        masks = open_masks(path)
    except RuntimeError as error:
        raise _ProblemError(str(error)) from error
    if shot is not None and (masks.length, masks.height, masks.width) != shot[:3]:
        raise _ProblemError(
            f"the masks '{entry['masks']}' are {masks.length} of {masks.width}x{masks.height} px, the clip has "
            f"{shot[0]} frames of {shot[2]}x{shot[1]} px; make them from the clip."
        )
    return path
