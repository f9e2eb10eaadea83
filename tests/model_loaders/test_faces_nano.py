"""The trained nano face pack, through the real insightface, on pictures of the nano world that it has never seen."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from idcrafter.nano.world.identity import numbers_of_split, sample_identity
from idcrafter.nano.world.scene import render_clip, render_photo, sample_clip_spec
from idcrafter.rewards.identity import FrameFaces, score_identity
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "idcrafter" / "nano" / "weights" / "insightface" / "models" / "idcrafter_nano"
CLIPS = 4


@pytest.fixture(scope="module")
def analyzer(pack):
    return pack.submodule("model_loaders.faces").load_face_analyzer(FOLDER, det_size=128, provider="cpu")


def as_image(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def overlap(a, b):
    """Intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.parametrize("clip", range(CLIPS))
def test_two_puppets_are_found_and_told_apart(analyzer, clip):
    numbers = list(islice(numbers_of_split("val"), 2 * CLIPS))[2 * clip : 2 * clip + 2]
    identities = tuple(sample_identity(number) for number in numbers)
    cast = make_cast(
        [
            make_subject(f"P{n}", "person", "", torch.stack([as_image(render_photo(who, seed)[0]) for seed in (1, 2)]))
            for n, who in zip(numbers, identities, strict=True)
        ]
    )
    faces = extract_faces(cast, analyzer, "error", "largest")
    truth = render_clip(sample_clip_spec(identities, seed=clip))
    found = [FrameFaces.of(analyzer.analyze(as_image(frame))) for frame in truth.frames]
    result = score_identity(found, np.stack([own.mean for own in faces.subjects]))
    right, visible = 0, 0
    for t, frame in enumerate(truth.faces):
        for i, face in enumerate(frame):
            if face is not None:
                visible += 1
                right += not result.missing[t, i] and overlap(result.boxes[t, i], face.box) > 0.5
    assert right / visible >= 0.8
    assert result.swaps == ()
    assert result.score > 0.3
