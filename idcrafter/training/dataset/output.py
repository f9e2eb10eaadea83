"""One window of a raw clip -> a line of the data set and the files that it names, unless they are there already."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...rewards.evidence import FrameSource
from ...rollouts.files import replace
from .people import Person, Scene
from .plan import ReferenceMoment, WindowSubject, default_caption
from .raw import RawClip
from .seen import SeenClip
from .writing import MASK_SOURCE, write_clip, write_masks, write_references, written_size

log = logging.getLogger(__name__)

BUILD = "build"
# Stands in the keys of what is kept: a change of how it is made makes it anew.
VERSION = 1

Captioner = Callable[[FrameSource, Sequence[int], Sequence[str]], str]


@dataclass(frozen=True, eq=False)
class Material:
    """The raw clips that could be read, what was seen in each, its scenes and its people."""

    clips: list[RawClip]
    seen: list[SeenClip]
    scenes: list[list[Scene]]
    people: list[list[Person]]


@dataclass(frozen=True, eq=False)
class Window:
    """Moments `span` of clip number `clip` and who is in them, from left to right. `name` is for files."""

    clip: int
    name: str
    span: Scene
    subjects: tuple[WindowSubject, ...]


def make_clip(
    window: Window,
    material: Material,
    out: Path,
    licence: str,
    caption: Captioner | None,
    on_frames: Callable[[int, str], None],
) -> dict:
    """Write one window; {"record": its line of metadata.jsonl, "report": where everything is from}.

    on_frames  called with (frames done, what), for progress and interruption
    """
    clip = material.clips[window.clip]
    indices = clip.indices[window.span.start : window.span.stop]
    subjects = [
        {
            "name": subject.name,
            "description": subject.description,
            "faces": [None if box is None else [round(v, 5) for v in box] for box in subject.candidate.boxes],
            "references": [_origin(material, moment) for moment in subject.references],
        }
        for subject in window.subjects
    ]
    captioner = None if caption is None or clip.caption.text else f"{caption.__module__}.{caption.__qualname__}"
    plan = (VERSION, clip.sha256, indices, clip.fps, licence, clip.caption.text, captioner, subjects)
    key = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    path = out / BUILD / f"{window.name}.json"
    known = _finished(path, key, out)
    if known:
        on_frames(len(indices), f"{window.name} (known)")
        return known

    video = write_clip(out / "clips" / window.name, clip, indices, lambda frames: on_frames(frames, window.name))
    height, width = written_size(clip, indices, material.seen[window.clip])
    references = write_references(
        out / "references" / window.name,
        [subject.references for subject in window.subjects],
        material.clips,
        material.seen,
    )
    entries, origins = [], []
    for k, (subject, facts) in enumerate(zip(window.subjects, subjects, strict=True)):
        masks = f"masks/{window.name}/{k + 1}.npz"
        write_masks(out / masks, subject.candidate.boxes, height, width)
        entry = {
            "name": subject.name,
            "description": subject.description,
            "references": [f"references/{window.name}/{file}" for file in references[k]],
            "faces": facts["faces"],
            "masks": masks,
            "mask_source": MASK_SOURCE,
        }
        entries.append(entry)
        origins.append(
            {
                "name": subject.name,
                "placed_frames": sum(box is not None for box in subject.candidate.boxes),
                "face_px": round(subject.candidate.side, 1),
                "references": facts["references"],
            }
        )
    names = [subject.name for subject in window.subjects]
    text = clip.caption.text or (caption(clip.source, indices, names) if caption else default_caption(names))
    first, last = indices[0] + 1, indices[-1] + 1
    record = {
        "video": video.relative_to(out).as_posix(),
        "caption": text,
        "licence": licence,
        "fps": clip.fps,
        "source": f"{clip.file}, frames {first} to {last}",
        "subjects": entries,
    }
    report = {"video": record["video"], "clip": clip.file, "first": first, "last": last, "subjects": origins}
    made = {"key": key, "record": record, "report": report}
    replace(path, json.dumps(made, ensure_ascii=False).encode())
    return made


def _origin(material: Material, moment: ReferenceMoment) -> dict:
    """Where a reference is from: the clip, its frame from 1, and how far its pictures reach."""
    clip = material.clips[moment.clip]
    frame = clip.indices[moment.moment] + 1
    return {"clip": clip.file, "frame": frame, "margins": moment.margins, "clip_sha256": clip.sha256}


def _finished(path: Path, key: str, out: Path) -> dict | None:
    """What was made under this key and is still there."""
    try:
        made = json.loads(path.read_text("utf-8"))
        if made["key"] != key:
            return None
        files = [made["record"]["video"]]
        for subject in made["record"]["subjects"]:
            files += [*subject["references"], subject["masks"]]
        return made if all((out / file).exists() for file in files) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); the window is made again.", path, error)
        return None
