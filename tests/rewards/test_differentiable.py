"""The face reward with a gradient: cut as OpenCV cuts, scored as the identity score scores, and it can be climbed."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.nano.world import crowd, numbers_of_split, render_photo, sample_identity
from idcrafter.rewards.differentiable import FaceReward, cut
from idcrafter.rewards.identity import FrameFaces, score_identity
from idcrafter.subjects.faces import ARCFACE_TEMPLATE, extract_faces, similarity_transform
from idcrafter.subjects.subject import make_cast, make_subject

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "idcrafter" / "nano" / "weights" / "insightface" / "models" / "idcrafter_nano"


@pytest.fixture(scope="module")
def analyzer(pack):
    return pack.submodule("model_loaders.faces").load_face_analyzer(FOLDER, det_size=128, provider="cpu")


def image(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 255)


@pytest.fixture(scope="module")
def scene(analyzer):
    """A clip of two, [T, H, W, 3], and the faces of their photos; and those of two strangers."""
    people = [sample_identity(number) for number in islice(numbers_of_split("val", 700), 4)]

    def faces_of(some):
        made = [
            make_subject(f"P{i}", "person", "", torch.stack([image(render_photo(who, seed)[0]) for seed in (1, 2)]))
            for i, who in enumerate(some)
        ]
        return extract_faces(make_cast(made), analyzer, "error", "largest")

    clip = crowd.render_crowd(crowd.sample_crowd_spec(tuple(people[:2]), 3, "stay"))
    return image(clip.frames), faces_of(people[:2]), faces_of(people[2:])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.floats(-0.6, 0.6), st.floats(0.3, 3.0), st.floats(-20, 20),
    st.integers(0, 99),
)  # fmt: skip
def test_squares_are_cut_as_opencv_cuts_them(height, width, angle, scale, shift, seed):
    picture = cv2.GaussianBlur(
        np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32), (5, 5), 0
    )
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin, shift], [sin, cos, -shift]])
    expected = cv2.warpAffine(picture, matrix, (48, 48))
    found = cut(torch.from_numpy(picture).movedim(-1, 0)[None], matrix[None], 48)[0].movedim(0, -1).numpy()
    # OpenCV rounds places to 1/32 of a pixel.
    assert np.abs(found - expected).max() < 0.06 and np.abs(found - expected).mean() < 0.004


def test_it_says_what_the_identity_score_says(analyzer, scene):
    frames, faces, strangers = scene
    found = FaceReward(analyzer)(frames[None], faces)
    seen = [FrameFaces.of(each) for each in analyzer.analyze_frames(frames)]
    expected = score_identity(seen, np.stack([own.mean for own in faces.subjects])).quality.mean()
    # The mean over a pool is a little below the cosine with the pool's mean of unit length.
    assert found.shape == (1,) and expected - 0.1 < float(found) <= expected + 0.01
    assert float(FaceReward(analyzer)(frames[None], strangers)) < float(found) / 2


def test_its_gradient_is_climbed(analyzer, scene):
    frames, faces, _ = scene
    reward = FaceReward(analyzer)
    blurred = image(np.stack([cv2.GaussianBlur(np.uint8(frame * 255), (0, 0), 2.0) for frame in frames[:2].numpy()]))
    pixels = blurred.clone().requires_grad_(True)
    before = float(reward(pixels[None], faces))
    for _ in range(6):
        gain = reward(pixels[None], faces).sum()
        (slope,) = torch.autograd.grad(gain, pixels)
        pixels = (pixels.detach() + 0.01 * slope.sign()).clamp(0, 1).requires_grad_(True)
    assert float(reward(pixels[None], faces)) > before + 0.1


def test_nobody_and_somebody_missing_count_nothing(analyzer, scene):
    frames, faces, _ = scene
    empty = torch.full_like(frames[:2], 0.5).requires_grad_(True)
    found = FaceReward(analyzer)(torch.stack([empty, frames[:2]]), faces)
    assert float(found[0]) == 0 < float(found[1])
    (slope,) = torch.autograd.grad(found.sum(), empty)
    assert not slope.any()
    width = frames.shape[2]
    half = frames[:1].clone()
    half[:, :, width // 2 :] = 0.5
    whole = float(FaceReward(analyzer)(frames[None, :1], faces))
    assert 0 < float(FaceReward(analyzer)(half[None], faces)) < 0.75 * whole


def test_frames_are_counted(analyzer, scene):
    frames, faces, _ = scene
    looked = []
    FaceReward(analyzer)(torch.stack([frames[:3], frames[:3]]), faces, lambda: looked.append(1))
    assert len(looked) == 6


def test_alignment_is_the_analyzers(analyzer, scene):
    """The crop that has a gradient is embedded as the analyzer has embedded the face."""
    frames, _, _ = scene
    recogniser = analyzer.recogniser.with_gradient()
    for face in analyzer.analyze(frames[0]):
        matrix = similarity_transform(face.landmarks, ARCFACE_TEMPLATE)
        own = recogniser(cut(frames[0].movedim(-1, 0)[None], matrix[None], 112))[0].detach().numpy()
        assert float(own @ face.embedding) / np.linalg.norm(own) > 0.995
