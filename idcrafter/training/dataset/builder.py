"""Raw clips -> a data set: look at them, find their people, cut windows, take references from other moments.

Two passes, because references may come from other clips: all clips are looked at first (the slow part, kept a clip at a
time), then the windows are written. What is finished is kept in `<out>/build` with what it was made from, so that a
build that was interrupted, or gets more clips or other settings, only does what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...rollouts.files import replace
from ...subjects.faces import FaceAnalyzer
from .clip import METADATA
from .output import BUILD, VERSION, Captioner, Material, Window, WindowSubject, make_clip
from .people import Scene, find_people, find_scenes
from .plan import (
    BuildSettings,
    LeftOut,
    choose_references,
    judge_person,
    largest,
    name_people,
    place_windows,
    unknown_name,
)
from .raw import RawClip, clip_names, find_clips, open_clip
from .seen import ClipError, load_seen, look, save_seen

REPORT = "report.json"
REPORT_FORMAT, REPORT_VERSION = "idcrafter-dataset-report", 1

Progress = Callable[[int, int, str], None]


def build_dataset(
    clips: Path | str,
    out: Path | str,
    analyzer: FaceAnalyzer,
    licence: str,
    settings: BuildSettings | None = None,
    caption: Captioner | None = None,
    on_progress: Progress | None = None,
) -> dict:
    """Make a data set (see the package) of the video files in a folder and its sub-folders.

    licence      under which the clips may be used; goes into every line
    caption      words a window without a caption of its own, from (clip, indices of the window's frames, names from
                 left to right), and speaks of people by these names; None says who is there, from left to right
    on_progress  called with (done, in all, what) after every frame; what it raises ends the build, which goes on from
                 there when it is started again
    A .txt beside a clip is its caption (`raw.read_caption`). Masks are soft rectangles around the faces; put real ones
    in their place where there are any. The same clips, settings and seed always give the same data set.
    Returns the report, which is also in report.json: what was made, from where, and what was left out and why.
    Raises FileNotFoundError for a folder without clips, ValueError where nothing is left to train on; report.json says
    why then, too.
    """
    clips, out, settings = Path(clips).resolve(), Path(out).resolve(), settings or BuildSettings()
    if clips == out or clips in out.parents or out in clips.parents:
        raise ValueError(f"'{out}' and the folder of clips lie in each other; give the data set a folder of its own.")
    if not licence.strip():
        raise ValueError("The licence of the clips is missing; say under which they may be used.")
    left_out: list[LeftOut] = []
    files = find_clips(clips)
    opened = _open_all(files, clips, settings, left_out)
    # Twice: to look at them, and to write windows, of which there are no more.
    steps = _Steps(on_progress, 2 * sum(len(clip.indices) for clip in opened))
    material = _look_at_all(opened, out, analyzer, settings, steps, left_out)
    windows = [
        window for number in range(len(material.clips)) for window in _plan_clip(number, material, settings, left_out)
    ]
    steps.total = steps.done + len(windows) * settings.frames
    made = [
        make_clip(window, material, out, licence, caption, lambda n, what: steps.add(what, n)) for window in windows
    ]
    report = {
        "format": REPORT_FORMAT,
        "version": REPORT_VERSION,
        "settings": {**asdict(settings), "licence": licence},
        "faces": analyzer.describe(),
        "raw_clips": len(files),
        "clips": [entry["report"] for entry in made],
        "left_out": [asdict(entry) for entry in left_out],
    }
    replace(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    if not made:
        raise ValueError(
            f"Nothing of the clips in '{clips}' can be trained on; the reasons are in '{out / REPORT}', the first one "
            f"is: {left_out[0].reason}."
        )
    lines = [json.dumps(entry["record"], ensure_ascii=False) for entry in made]
    replace(out / METADATA, "".join(f"{line}\n" for line in lines).encode())
    return report


class _Steps:
    """Counts frames for people."""

    def __init__(self, tell: Progress | None, total: int):
        self.tell, self.total, self.done = tell, total, 0

    def add(self, what: str, frames: int = 1) -> None:
        self.done += frames
        if self.tell:
            self.tell(min(self.done, self.total), self.total, what)


def _open_all(files: Sequence[Path], folder: Path, settings: BuildSettings, left_out: list[LeftOut]) -> list[RawClip]:
    opened: list[RawClip] = []
    known: dict[str, str] = {}
    for path, name in zip(files, clip_names(files, folder), strict=True):
        file = path.relative_to(folder).as_posix()
        try:
            clip = open_clip(path, folder, name, settings.fps)
        except (ValueError, OSError) as error:
            left_out.append(LeftOut(file, "clip", str(error)))
            continue
        if clip.sha256 in known:
            # Otherwise its frames would be references of themselves.
            left_out.append(LeftOut(file, "clip", f"it is the same file as '{known[clip.sha256]}'"))
            continue
        known[clip.sha256] = file
        opened.append(clip)
    return opened


def _look_at_all(
    opened: Sequence[RawClip],
    out: Path,
    analyzer: FaceAnalyzer,
    settings: BuildSettings,
    steps: _Steps,
    left_out: list[LeftOut],
) -> Material:
    clips, everything = [], []
    for clip in opened:
        path = out / BUILD / f"{clip.name}.npz"
        key = {"version": VERSION, "clip": clip.sha256, "fps": settings.fps, "faces": _identity(analyzer)}
        seen = load_seen(path, key)
        if seen is not None:
            steps.add(f"{clip.file} (known)", len(clip.indices))
        else:
            try:
                seen = look(clip, analyzer, lambda clip=clip: steps.add(clip.file))
            except ClipError as error:
                left_out.append(LeftOut(clip.file, "clip", str(error)))
                continue
            save_seen(path, seen, key)
        clips.append(clip)
        everything.append(seen)
    scenes = [find_scenes(seen.change) for seen in everything]
    people = find_people(everything, scenes, [clip.fps for clip in clips], settings.same, settings.across)
    return Material(clips, everything, scenes, people)


def _identity(analyzer: FaceAnalyzer) -> dict:
    """What of an analyzer shapes its answers."""
    facts = analyzer.describe()
    return {key: facts[key] for key in ("name", "det_size", "detector", "recogniser") if key in facts}


def _plan_clip(number: int, material: Material, settings: BuildSettings, left_out: list[LeftOut]) -> list[Window]:
    clip, seen = material.clips[number], material.seen[number]
    people = material.people[number]

    def leave(what: str, reason: str, span: Scene | None = None) -> None:
        first, last = (None, None) if span is None else (clip.indices[span.start] + 1, clip.indices[span.stop - 1] + 1)
        left_out.append(LeftOut(clip.file, what, reason, first, last))

    if not people:
        leave("clip", "no face is found in it")
        return []
    try:
        names, descriptions = name_people(people, seen, clip.caption)
    except ValueError as error:
        leave("clip", str(error))
        return []
    # By the name, so that another clip in the folder changes nothing here.
    draw = hashlib.sha256(clip.name.encode()).digest()[:8]
    rng = np.random.default_rng((settings.seed, int.from_bytes(draw, "little")))
    windows = []
    for scene in material.scenes[number]:
        if scene.length < settings.frames:
            leave("scene", f"it has {scene.length} frames, fewer than the {settings.frames} of a window", scene)
            continue
        for span in place_windows(scene, settings, rng):
            subjects = _cast_window(number, span, names, descriptions, material, settings, leave)
            missing = unknown_name(clip.caption, [subject.name for subject in subjects])
            if not subjects:
                leave("window", "nobody in it can be trained on", span)
            elif missing:
                leave("window", f"its caption speaks of '{missing}', who is left out", span)
            else:
                windows.append(Window(number, f"{clip.name}-{clip.indices[span.start] + 1:06}", span, subjects))
    return windows


def _cast_window(
    number: int,
    span: Scene,
    names: dict[int, str],
    descriptions: dict[int, str],
    material: Material,
    settings: BuildSettings,
    leave: Callable[[str, str, Scene], None],
) -> tuple[WindowSubject, ...]:
    """Everybody in a window who counts, from left to right."""
    people, seen = material.people[number], material.seen[number]
    candidates = []
    for person in people:
        if not any(span.start <= t < span.stop for t in person.faces):
            continue
        if person.number not in names:
            leave("person", "somebody whom the caption does not name", span)
            continue
        candidate, reason = judge_person(person, seen, span, settings)
        if candidate is None:
            leave(f"person {names[person.number]}", reason, span)
        else:
            candidates.append(candidate)
    fps = [clip.fps for clip in material.clips]
    kept = []
    for candidate in candidates:
        moments = choose_references(candidate, number, span, material.seen, fps, material.people, settings)
        if moments:
            who = candidate.person.number
            kept.append(WindowSubject(names[who], descriptions.get(who, ""), candidate, tuple(moments)))
            continue
        where = "of any clip" if settings.across else "of this clip (looking across clips may help)"
        leave(
            f"person {names[candidate.person.number]}",
            f"no other moment {where} shows the face alone, large and sharp enough to be a reference",
            span,
        )
    chosen, small = largest(kept)
    for subject in small:
        leave(f"person {subject.name}", "more people are in it than fit into one shot", span)
    return tuple(chosen)
