"""Scores planted clips of the nano world by a face pack, and counts what was found of what was planted."""

from collections import Counter
from itertools import islice

import numpy as np

from idcrafter.nano import world
from idcrafter.rewards.identity import ClipIdentity, FrameFaces, score_identity
from support.clips import as_images

PLANS = world.HONEST + world.PLANTED
KINDS = ("missing", "swapped", "cloned", "extra", "blended")


def score_planted(analyzer, split: str, start: int, first_seed: int, count: int, people: int = 40, **plant):
    """[(clip, ClipIdentity)] of `count` clips, one plan after the other, with casts drawn from `people` identities of
    a split from number `start` on. Each identity is known by two photos."""
    numbers = islice(world.numbers_of_split(split, start), people)
    identities = [world.sample_identity(number) for number in numbers]
    means = portraits(analyzer, identities)
    answers = []
    for seed in range(first_seed, first_seed + count):
        rng = np.random.default_rng((seed, 7))
        plan = PLANS[seed % len(PLANS)]
        size = 3 if plan not in ("twin", "guest") and rng.uniform() < 0.3 else 2
        *cast, stranger = rng.permutation(people)[: size + 1]
        clip = world.plant_clip(plan, tuple(identities[i] for i in cast), identities[stranger], seed, **plant)
        faces = [FrameFaces.of(found) for found in analyzer.analyze_frames(as_images(clip.frames))]
        answers.append((clip, score_identity(faces, means[cast])))
    return answers


def portraits(analyzer, identities) -> np.ndarray:
    """[N, D] mean embeddings of two photos of each."""
    photos = [world.render_photo(who, seed)[0] for who in identities for seed in (1, 2)]
    found = [max(faces, key=lambda face: face.score) for faces in analyzer.analyze_frames(as_images(photos))]
    means = np.array([face.embedding for face in found]).reshape(len(identities), 2, -1).mean(1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def compare(answers: list[tuple[world.PlantedClip, ClipIdentity]]) -> tuple[dict[str, tuple], list[tuple]]:
    """{kind: (precision, recall, planted)}, and the errors as (plan, "made up" or "not found", event).

    Somebody of whom half is in a blend may be called missing, or not: that is neither right nor wrong.
    """
    found, right, planted, errors = Counter(), Counter(), Counter(), []
    for clip, result in answers:
        open_ = list(clip.events)
        planted.update(event.kind for event in open_)
        halves = {truth.subjects[:1] for truth in clip.events if truth.kind == "blended"}
        for event in result.events:
            if event.kind == "missing" and event.subjects in halves:
                continue
            found[event.kind] += 1
            hit = next((truth for truth in open_ if matches(event, truth)), None)
            if hit is None:
                errors.append((clip.plan, "made up", event))
            else:
                open_.remove(hit)
                right[event.kind] += 1
        errors += [(clip.plan, "not found", truth) for truth in open_]
    figures = {}
    for kind in KINDS:
        precision = right[kind] / found[kind] if found[kind] else 1.0
        figures[kind] = (precision, right[kind] / planted[kind], planted[kind])
    return figures, errors


def matches(event, truth) -> bool:
    """Of the same kind and people; a swap to the frame, give or take one, the others for most of their frames."""
    if (event.kind, event.subjects) != (truth.kind, truth.subjects):
        return False
    if event.kind == "swapped":
        return abs(event.first - truth.first) <= 1
    shared = min(event.last, truth.last) - max(event.first, truth.first) + 1
    joined = max(event.last, truth.last) - min(event.first, truth.first) + 1
    return shared >= 0.5 * joined
