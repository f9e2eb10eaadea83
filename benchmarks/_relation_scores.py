"""Which relations of a story are to be seen in its video, from the tracks of the face pack.

A face belongs to the one of the cast whom it is most like; who is meant to be where is known from the truth that is
rendered from the same spec (`_crowd_scores.ends_of`). The relations of a clip:

    place   one for each subject: in the first frames the face at the subject's place is the subject's
    swap    in the last frames, too, for both who change places, and so it was in the first ones
    hide    who hides and behind whom were in their places in the first frames; while the truth hides a face, nobody is
            at the place of that one, and the other is where the truth has the other; in the last frames the first
            one is back

Without a face at a place its relation is wrong. What somebody does alone (nods, talks) is not to be seen in tracks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _crowd_scores import Ends, bootstrap, nearest, places_of

from idcrafter.rewards.identity import FrameFaces


def relations(clip, ends: Ends, found: Sequence[Sequence], subjects: np.ndarray) -> dict:
    """`place` (list of bool, in cast order) and `move` (bool, None without one) of a `CrowdClip`.

    found     the video's faces (DetectedFace) of each frame
    subjects  [S, D], the embeddings of the cast
    """
    seen = [FrameFaces.of(faces, subjects.shape[1]) for faces in found]
    spec = clip.spec
    first = _who(ends.first, seen, subjects, ends.reach)
    place = [who == i for i, who in enumerate(first)]
    if spec.move == "stay":
        return {"place": place, "move": None}
    last = _who(ends.last, seen, subjects, ends.reach)
    a, b = spec.a, spec.b
    there = place[a] and place[b]
    if spec.move == "swap":
        return {"place": place, "move": bool(there and last[a] == a and last[b] == b)}
    hidden = there and last[a] == a and _hidden(clip, ends, seen, subjects)
    return {"place": place, "move": bool(hidden)}


def _hidden(clip, ends: Ends, seen: list[FrameFaces], subjects: np.ndarray) -> bool:
    """In most of the frames in which a's face is hidden, or else in that in which the two are nearest."""
    a, b = clip.spec.a, clip.spec.b
    start = next(iter(ends.first.values()))[a]
    covered = [f for f, faces in enumerate(clip.faces) if faces[a] is None and faces[b] is not None]
    if not covered:
        both = [f for f, faces in enumerate(clip.faces) if faces[a] is not None and faces[b] is not None]
        covered = [min(both, key=lambda f: abs(_centre(clip.faces[f][a])[0] - _centre(clip.faces[f][b])[0]))]
    right = 0
    for f in covered:
        where = np.stack([start, _centre(clip.faces[f][b])])
        gone, front = nearest(where, seen[f], ends.reach)
        right += gone < 0 <= front and int((subjects @ seen[f].embeddings[front]).argmax()) == b
    return right * 2 > len(covered)


def _who(where: dict[int, np.ndarray], seen: list[FrameFaces], subjects: np.ndarray, reach: float) -> list[int | None]:
    """Whom the face at each subject's place is most like."""
    cosines = places_of(where, seen, subjects, reach).cosines
    return [None if np.isnan(column[0]) else int(column.argmax()) for column in cosines.T]


def _centre(face) -> np.ndarray:
    return (face.box[:2] + face.box[2:]) / 2


# Sums over clips ------------------------------------------------------------------------------------------------------


def of_clip(measures: dict) -> list[bool]:
    """All relations of a clip."""
    return [*measures["place"], *([] if measures["move"] is None else [measures["move"]])]


def summarise(clips: Sequence[dict]) -> dict:
    """`relations`: the mean over clips of the share of relations that are right, with `places` and `moves` apart, and
    `clips_right`, in which all are; 95 % bootstrap intervals over clips. None where there is nothing to count.
    """
    values = {
        "relations": [float(np.mean(of_clip(each))) for each in clips],
        "places": [float(np.mean(each["place"])) for each in clips],
        "moves": [float(each["move"]) for each in clips if each["move"] is not None],
        "clips_right": [float(all(of_clip(each))) for each in clips],
    }
    result: dict = {}
    for name, some in values.items():
        array = np.array(some)
        result[name] = round(float(array.mean()), 4) if some else None
        result[f"{name}_ci95"] = bootstrap(lambda i, array=array: array[i].mean(), len(some)) if some else None
    return result


def points(clips: Sequence[dict], base: Sequence[dict], measure) -> tuple[float, list]:
    """100 times the mean of measure(clip) less that of the same clips in `base`, and its 95 % interval, resampled in
    pairs."""
    gains = 100 * np.array([measure(mine) - measure(theirs) for mine, theirs in zip(clips, base, strict=True)], float)
    return round(float(gains.mean()), 2), bootstrap(lambda i: gains[i].mean(), len(gains))


def right(measures: dict) -> float:
    return float(np.mean(of_clip(measures)))
