"""Who is where in a clip of a crowd: what `benchmarks/ablation.py` measures of one clip, and how it sums clips up.

Of a clip of the world of crowds (`idcrafter/nano/world/crowd.py`) it is known where everybody stands in the first and
in the last frames, in the truth that is rendered from the same spec as the caption. A face in one of these frames is
at the place of the subject whose true face has its centre nearest, within `REACH` of the distance between places.

The measures of a clip, of T frames with S subjects; a subject is known by photos that no model has seen:

    similarity      mean over the subjects of the reward's q_i (`rewards/identity.py`): the cosine of the face that is
                    assigned to the subject, over all frames, 0 where there is none; wherever it stands
    worst_subject   the smallest q_i
    top1            of the S faces at the expected places how many have their own subject as nearest neighbour in the
                    gallery; no face there counts as wrong
    in_place        mean cosine of the face at the expected place, 0 without one
    swapped         `places` or `midway`:
      places        in the first or in the last frames somebody of the cast is recognised in the place of another:
                    the face there is most like that one, by at least `MATCH_COSINE`, and more like that one than like
                    the expected one by `AMBIGUOUS_COSINE`. Who is recognised in the own place as well is there twice
                    (a clone), and has not been exchanged: that costs the similarity of the subject who is not there
      midway        a track changes its identity in mid-clip, the reward's event "swapped"
    misplaced       without any threshold: in the first or in the last frames the found faces fit the cast better in
                    another order than in the expected one
    judged          whether there is a face at any expected place; only such clips count for the rates of the three

Two who should change places and are never seen between them have stayed; their last places are then their first ones
if that fits better. That they did not walk is a fault of the motion (`crossed` counts it), and no exchange of people.

A clip in which nothing moves is a picture, and has no likeness, as in the rewards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from idcrafter import drawing
from idcrafter.rewards.assignment import MATCH_COSINE
from idcrafter.rewards.evidence import STILL_CHANGE, block_means
from idcrafter.rewards.identity import FrameFaces, score_identity
from idcrafter.rewards.tracking import AMBIGUOUS_COSINE
from nano import wilson

# Frames at each end that tell who is where, of those in which everybody is at rest.
END_FRAMES = 2
# Of the distance between neighbouring places: who is farther than this has left, and who is nearer stands there.
LEFT, REACH = 0.25, 0.35
DRAWS = 2000
SHOWN = 4  # clips of each number of subjects on the contact sheet, and their frames
SHOWN_FRAMES = (0, 2, 4, 6, 8)
SECONDS = ("sampling_seconds", "scoring_seconds")
REQUIRED = {"gain_full_over_references": 0.10, "gain_router_loss": 0.15, "swap_ratio_full_over_references": 0.5}
# Lines of a work folder that another version of the benchmark has made are not used.
VERSION = 1


@dataclass(frozen=True)
class Ends:
    """The frames at both ends in which everybody is at rest, and where: centres of faces, pixels.

    first, last  {frame: [S, 2]}; `stayed` is `last` for those who should have changed places and did not, or None
    pair         the two who change places, or None
    reach        px
    """

    first: dict[int, np.ndarray]
    last: dict[int, np.ndarray]
    stayed: dict[int, np.ndarray] | None
    pair: tuple[int, int] | None
    reach: float


def ends_of(clip) -> Ends:
    """The ends of a `CrowdClip`, from its true faces."""
    spec, length = clip.spec, len(clip.faces)
    centres = [
        np.array([(np.nan, np.nan) if face is None else (face.box[:2] + face.box[2:]) / 2 for face in faces])
        for faces in clip.faces
    ]
    across = np.sort(centres[0][:, 0])
    gap = float(np.diff(across).min())
    if not np.isfinite(gap):
        raise ValueError("A face of the clip's first frame is hidden, so its places are not known; use another seed.")

    def at_rest(frames: Sequence[int]) -> dict[int, np.ndarray]:
        still = (f for f in frames if np.abs(centres[f] - centres[frames[0]]).max() <= LEFT * gap)
        return {f: centres[f] for f in still}

    first = at_rest(range(END_FRAMES))
    last = at_rest(range(length - 1, length - 1 - END_FRAMES, -1))
    if spec.move != "swap":
        return Ends(first, last, None, None, REACH * gap)
    order = np.arange(len(spec.identities))
    order[[spec.a, spec.b]] = spec.b, spec.a
    stayed = {f: where[order] for f, where in last.items()}
    return Ends(first, last, stayed, (spec.a, spec.b), REACH * gap)


def measure_clip(
    ends: Ends, frames: np.ndarray, found: Sequence[Sequence], people: Sequence[int], gallery: np.ndarray, fps: float
) -> dict:
    """The measures of the module for one clip.

    frames   [T, H, W, 3] float32 in 0..1
    found    the faces (DetectedFace) of each frame
    people   rows of `gallery` [N, D] of the S subjects in cast order
    """
    subjects = gallery[list(people)]
    seen = [FrameFaces.of(faces, subjects.shape[1]) for faces in found]
    identity = score_identity(seen, subjects, times=[t / fps for t in range(len(seen))])
    quality = identity.quality * (not is_still(frames))
    first = places_of(ends.first, seen, subjects, ends.reach)
    last = places_of(ends.last, seen, subjects, ends.reach)
    crossed = None if ends.pair is None else _crossed(ends, seen)
    if crossed is False:
        stayed = places_of(ends.stayed, seen, subjects, ends.reach)
        last = max((last, stayed), key=lambda places: np.nansum(np.diag(places.cosines)))
    faces = [_unit_mean([*a, *b]) for a, b in zip(first.embeddings, last.embeddings, strict=True)]
    known = [None if face is None else gallery @ face for face in faces]
    places = any(_exchanged(end.cosines) for end in (first, last))
    midway = bool(identity.swaps)
    return {
        "similarity": float(quality.mean()),
        "worst_subject": float(quality.min()),
        "top1": sum(c is not None and int(c.argmax()) == who for c, who in zip(known, people, strict=True)),
        "subjects": len(subjects),
        "in_place": float(np.mean([0 if c is None else c[who] for c, who in zip(known, people, strict=True)])),
        "judged": any(face is not None for face in faces),
        "swapped": places or midway,
        "places": places,
        "midway": midway,
        "misplaced": any(_fits_otherwise(end.cosines) for end in (first, last)),
        "crossed": crossed,
    }


def is_still(frames: np.ndarray) -> bool:
    """Whether the frames [T, H, W, 3] (0..1) are one picture, by the measure of the rewards."""
    blocks = block_means(torch.from_numpy(np.ascontiguousarray(frames, np.float32)))
    return float(np.abs(blocks - blocks[:1]).max()) < STILL_CHANGE


@dataclass(frozen=True)
class Places:
    """embeddings: of the faces at each subject's place; cosines [S, S]: of subject (row) and the face at the place of
    a subject (column), NaN where nobody is."""

    embeddings: list[list[np.ndarray]]
    cosines: np.ndarray


def places_of(where: dict[int, np.ndarray], seen: list[FrameFaces], subjects: np.ndarray, reach: float) -> Places:
    embeddings: list[list[np.ndarray]] = [[] for _ in subjects]
    for f, centres in where.items():
        for own, face in zip(embeddings, nearest(centres, seen[f], reach), strict=True):
            if face >= 0:
                own.append(seen[f].embeddings[face])
    means = [_unit_mean(own) for own in embeddings]
    columns = [np.full(len(subjects), np.nan) if mean is None else subjects @ mean for mean in means]
    return Places(embeddings, np.stack(columns, axis=1))


def nearest(centres: np.ndarray, frame: FrameFaces, reach: float) -> list[int]:
    """The face at each of the centres [S, 2], -1 where none is within reach; a reach is less than half a distance, so
    no face is at two places."""
    if not len(frame.boxes):
        return [-1] * len(centres)
    middles = (frame.boxes[:, :2] + frame.boxes[:, 2:]) / 2
    distance = np.linalg.norm(centres[:, None] - middles[None], axis=-1)
    return [int(d.argmin()) if d.min() <= reach else -1 for d in distance]


def _crossed(ends: Ends, seen: list[FrameFaces]) -> bool:
    """Whether in some frame both of the pair are away from their places and somebody is between the places."""
    places = next(iter(ends.first.values()))
    for frame in seen:
        there = nearest(places, frame, ends.reach)
        if max(there[i] for i in ends.pair) < 0 and set(range(len(frame.boxes))) - set(there):
            return True
    return False


def _exchanged(cosines: np.ndarray) -> bool:
    """Whether somebody is recognised in another's place, and not in the own one; [S, S], see `Places`."""
    there = [-1 if np.isnan(column[0]) or column.max() < MATCH_COSINE else int(column.argmax()) for column in cosines.T]
    return any(
        who not in (-1, place) and cosines[who, place] - cosines[place, place] >= AMBIGUOUS_COSINE and there[who] != who
        for place, who in enumerate(there)
    )


def _fits_otherwise(cosines: np.ndarray) -> bool:
    """Whether another order of the cast fits the faces at the places better than the expected one."""
    from scipy.optimize import linear_sum_assignment

    taken = np.flatnonzero(~np.isnan(cosines[0]))
    if not len(taken):
        return False
    who, place = linear_sum_assignment(cosines[:, taken], maximize=True)
    return bool((who != taken[place]).any() and cosines[who, taken[place]].sum() > cosines[taken, taken].sum())


def _unit_mean(embeddings: Sequence[np.ndarray]) -> np.ndarray | None:
    if not len(embeddings):
        return None
    mean = np.sum(embeddings, axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


# Sums over clips ------------------------------------------------------------------------------------------------------


def summarise(clips: Sequence[dict]) -> dict:
    """Means with bootstrapped and rates with Wilson intervals (95 %) of the measures of clips; {} without clips.

    Rates that have no clips to count are None.
    """
    if not clips:
        return {}
    judged = [clip for clip in clips if clip["judged"]]
    walks = [clip for clip in clips if clip["crossed"] is not None]

    def rate(name: str, hits: int, total: int) -> dict:
        both = (round(hits / total, 4), wilson(hits, total)) if total else (None, None)
        return dict(zip((name, f"{name}_ci95"), both, strict=True))

    result = {"clips": len(clips)}
    for name in ("similarity", "worst_subject", "in_place"):
        values = np.array([clip[name] for clip in clips])
        result[name] = round(float(values.mean()), 4)
        result[f"{name}_ci95"] = bootstrap(lambda i, values=values: values[i].mean(), len(clips))
    result |= rate("retrieval_top1", sum(c["top1"] for c in clips), sum(c["subjects"] for c in clips))
    result |= rate("swap_rate", sum(c["swapped"] for c in judged), len(judged))
    for name in ("places", "midway"):
        result |= rate(f"swap_rate_{name}", sum(c[name] for c in judged), len(judged))
    result |= rate("misplaced_rate", sum(c["misplaced"] for c in judged), len(judged))
    result |= rate("crossed", sum(c["crossed"] for c in walks), len(walks))
    result["judged"] = len(judged)
    return result


def gain(clips: Sequence[dict], base: Sequence[dict], name: str = "similarity") -> tuple[float | None, list | None]:
    """mean of `name` / its mean in `base` - 1, and its 95 % interval; the same clips in both, resampled in pairs."""
    mine, theirs = (np.array([clip[name] for clip in each]) for each in (clips, base))
    return _quotient(lambda i: mine[i].mean() / theirs[i].mean() - 1, len(mine))


def ratio(clips: Sequence[dict], base: Sequence[dict], name: str = "swapped") -> tuple[float | None, list | None]:
    """Rate of `name` among the judged clips / the same in `base`, as `gain`; None where nothing happens in `base`."""
    parts = []
    for each in (clips, base):
        judged = np.array([clip["judged"] for clip in each], bool)
        parts.append((judged & np.array([clip[name] for clip in each], bool), judged))
    (hits, judged), (base_hits, base_judged) = parts

    def rates(i: np.ndarray) -> float:
        return (hits[i].sum() / judged[i].sum()) / (base_hits[i].sum() / base_judged[i].sum())

    return _quotient(rates, len(hits))


def _quotient(statistic: Callable[[np.ndarray], float], count: int) -> tuple[float | None, list | None]:
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(np.arange(count)))
        if not math.isfinite(value):
            return None, None
        return round(value, 4), bootstrap(statistic, count)


def bootstrap(statistic: Callable[[np.ndarray], float], count: int) -> list[float | None]:
    """95 % interval of statistic(indices) over `count` clips; None for a bound that is not finite."""
    generator = np.random.default_rng(0)
    values = np.array([statistic(generator.integers(0, count, count)) for _ in range(DRAWS)], float)
    values = np.sort(values[~np.isnan(values)])
    bounds = [float(values[round(q * (len(values) - 1))]) for q in (0.025, 0.975)]
    return [round(bound, 4) if math.isfinite(bound) else None for bound in bounds]


def result_of(facts: dict[str, dict], measured: dict[str, list[dict]]) -> dict:
    """The result of an ablation from the measures of each row's clips; None for what needs a row that is not there.

    facts  of each row, for its part of the result
    """
    everything = [each for clips in measured.values() for each in clips]
    counts = sorted({each["subjects"] for each in everything})

    def of(name: str, count: int) -> list[dict]:
        return [each for each in measured.get(name, []) if each["subjects"] == count]

    result: dict = {}
    for name, compare, base, what in COMPARISONS:
        both = compare(of("full", 3), of(base, 3), what) if of("full", 3) and of(base, 3) else (None, None)
        result[name], result[f"{name}_ci95"] = both
    result["required"] = REQUIRED
    result["met"] = {
        name: None if (value := result[name]) is None else value <= limit if "ratio" in name else value >= limit
        for name, limit in REQUIRED.items()
    }
    result["clips"] = {str(n): max(len(of(name, n)) for name in measured) for n in counts}
    result["rows"] = {}
    for name, clips in measured.items():
        seconds = {key: round(float(np.mean([each[key] for each in clips])), 3) for key in SECONDS}
        sums = {str(count): summarise(of(name, count)) for count in counts}
        result["rows"][name] = {**facts[name], **seconds, **sums, "all": summarise(clips)}
    return result


COMPARISONS = (
    ("gain_full_over_references", gain, "references", "similarity"),
    ("gain_router_loss", gain, "full_without_router_loss", "similarity"),
    ("swap_ratio_full_over_references", ratio, "references", "swapped"),
    ("misplaced_ratio_full_over_references", ratio, "references", "misplaced"),
)


# What a run keeps -----------------------------------------------------------------------------------------------------


class Work:
    """The folder of a run: a line for each row and clip in `clips.jsonl`, and strips of frames for the contact sheets.

    Rows have a `name` and a `key`; clips are those of `ablation.Clip`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "clips.jsonl"
        self._lines: dict[tuple[str, str], dict] = {}
        text = self._file.read_text("utf-8") if self._file.is_file() else ""
        # The last line of a run that was broken off may be a part of one.
        for line in text.splitlines(keepends=True):
            if line.endswith("}\n"):
                said = json.loads(line)
                self._lines[said["key"], said["clip_key"]] = said
        if text and not text.endswith("\n"):
            self._file.write_text(text[: text.rfind("\n") + 1], "utf-8")

    def find(self, row, clip) -> dict | None:
        return self._lines.get((row.key, clip.key))

    def add(self, row, clip, measures: dict) -> None:
        said = {"row": row.name, "clip": clip.name, "key": row.key, "clip_key": clip.key, **measures}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")
        self._lines[row.key, clip.key] = said

    def keep_strip(self, name: str, clip, frames: torch.Tensor) -> None:
        """Some of the frames [T, H, W, 3] beside each other, as a line of the sheet."""
        if clip.index < SHOWN:
            chosen = [frames[min(f, len(frames) - 1)] for f in SHOWN_FRAMES]
            pixels = (torch.cat(chosen, dim=1) * 255).round().to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(self._strip(name, clip))

    def _strip(self, name: str, clip) -> Path:
        folder = self.folder / "strips"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}-{clip.name}.png"

    def draw_sheet(self, names: Sequence[str], clips: Sequence) -> None:
        """One picture a number of subjects: a column a clip, a line a row."""
        for count in sorted({clip.count for clip in clips}):
            shown = [clip for clip in clips if clip.count == count and clip.index < SHOWN]
            wide, high = shown[0].truth.spec.size
            wide *= len(SHOWN_FRAMES)
            left, top, gap = 150, 64, 6
            size = (left + (wide + gap) * len(shown), top + (high + gap) * len(names))
            sheet = Image.new("RGB", size, drawing.BACKGROUND)
            draw = ImageDraw.Draw(sheet)
            for x, clip in enumerate(shown):
                for i, line in enumerate(drawing.wrap_text(clip.prompt, 11, wide)[:5]):
                    drawing.draw_text(draw, (left + (wide + gap) * x, 2 + 12 * i), line, 11, drawing.MUTED)
                for y, name in enumerate(names):
                    if (strip := self._strip(name, clip)).is_file():
                        with Image.open(strip) as picture:
                            sheet.paste(picture, (left + (wide + gap) * x, top + (high + gap) * y))
            for y, name in enumerate(names):
                drawing.draw_text(draw, (4, top + (high + gap) * y + high // 2 - 6), name, 11, drawing.TEXT)
            sheet.save(self.folder / f"clips-{count}.png")
