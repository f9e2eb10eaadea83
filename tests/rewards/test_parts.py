"""Rewards that are formulas on embeddings: known answers, and what never changes them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.rewards import copy_paste, disco, id_crafter, ingredients, motion
from idcrafter.rewards.evidence import TensorFrames, gather_evidence
from idcrafter.rewards.terms import RewardSpec, RewardTerm, measure_terms
from support.clips import as_images, evidence_of, painted_cast, painted_clip
from support.painted_faces import embedding

likeness = st.lists(st.floats(-1, 1), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 1)


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


# ID-Crafter -----------------------------------------------------------------------------------------------------------


def test_id_crafter_known_answer():
    face = id_crafter.face_reward([0.8, 0.4])
    assert face == pytest.approx(0.5 * 0.6 + 0.5 * 0.4)
    assert id_crafter.fidelity_reward(face, 0.7) == pytest.approx(0.5 * 0.5 + 0.5 * 0.7)
    assert id_crafter.quality_reward(0.5, 0.9) == pytest.approx(0.6 * 0.5 + 0.4 * 0.9)
    assert id_crafter.total_reward(face, 0.7, 0.5, 0.9) == pytest.approx(0.6 * 0.6 + 0.4 * 0.66)


@given(*[st.floats(0, 1)] * 4)
def test_id_crafter_total_is_the_weighted_sum_that_a_graph_makes(face, subject, aesthetics, naturalness):
    parts = {"id_crafter_face": face, "subject_crops": subject, "aesthetics": aesthetics, "naturalness": naturalness}
    chained = sum(weight * parts[kind] for kind, weight in id_crafter.WEIGHTS.items())
    assert chained == pytest.approx(id_crafter.total_reward(face, subject, aesthetics, naturalness))
    assert -1e-9 <= chained <= 1 + 1e-9 and sum(id_crafter.WEIGHTS.values()) == pytest.approx(1.0)


@given(likeness, st.floats(0, 1), st.randoms())
def test_face_reward_lies_between_worst_and_mean_in_any_order(values, gamma, random):
    got = id_crafter.face_reward(values, gamma)
    assert min(values) - 1e-9 <= got <= np.mean(values) + 1e-9
    random.shuffle(values)
    assert id_crafter.face_reward(values, gamma) == pytest.approx(got)


def test_face_reward_refuses_nan_and_nobody():
    for bad in ([np.nan, 0.2], []):
        with pytest.raises(ValueError, match="one finite likeness a subject"):
            id_crafter.face_reward(bad)


# DisCo ----------------------------------------------------------------------------------------------------------------


def test_distinctness_known_answers():
    two = np.stack([embedding(0), embedding(0, 0.6)])
    assert disco.distinctness(two) == pytest.approx(0.4)
    assert disco.distinctness(two[:1]) == disco.distinctness(two[:0]) == 0.5
    assert disco.exact_count(2, 2) == 1.0 and disco.exact_count(3, 2) == 0.0


def test_group_term_is_the_published_counterfactual():
    """Three pictures, two of them of one person: leaving out one of the two lowers the mean similarity."""
    group = [embedding(0)[None], embedding(0)[None], embedding(1)[None]]
    everyone, without = 1 / 3, [0.0, 0.0, 1.0]
    expected = [1 / (1 + np.exp(5 * (everyone - s))) for s in without]
    np.testing.assert_allclose(disco.group_distinctness(group), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(st.integers(0, 3), min_size=1, max_size=5), st.randoms())
def test_group_term_moves_with_its_pictures_and_ignores_the_order_of_faces(seed, counts, random):
    rng = np.random.default_rng(seed)
    group = [unit(rng, count, 8) for count in counts]
    got = disco.group_distinctness(group)
    assert ((got >= 0) & (got <= 1)).all()
    order = list(range(len(group)))
    random.shuffle(order)
    turned = disco.group_distinctness([group[i][::-1] for i in order])
    np.testing.assert_allclose(turned, got[order], atol=1e-6)


def test_disco_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        disco.distinctness(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match="group is empty"):
        disco.group_distinctness([])


# WithAnyone -----------------------------------------------------------------------------------------------------------


def turned(angle):
    """A unit vector in the plane."""
    return np.array([np.cos(angle), np.sin(angle)], np.float64)


@pytest.mark.parametrize(("g", "expected"), [(0.0, 1.0), (0.4, -1.0), (0.2, 0.0), (0.1, 0.5), (1.0, -1.0)])
def test_copy_paste_known_answers(g, expected):
    """Reference at 0, the other photo at 0.4 radians, the generated face at g."""
    assert copy_paste.copy_paste(turned(g), turned(0.4), turned(0.0)) == pytest.approx(expected, abs=1e-9)


def test_copy_paste_says_nothing_of_equal_photos():
    assert copy_paste.copy_paste(turned(0.3), turned(0.0), turned(0.0)) == 0.0


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(2, 5), st.randoms())
def test_copy_paste_of_a_clip_ignores_the_order_of_photos_and_frames(seed, frames, photos, random):
    rng = np.random.default_rng(seed)
    faces, known = unit(rng, frames, 16), unit(rng, photos, 16)
    got = copy_paste.clip_copy_paste(faces, known)
    assert -1.0 <= got <= 1.0
    order = list(range(photos))
    random.shuffle(order)
    assert copy_paste.clip_copy_paste(faces[::-1], known[order]) == pytest.approx(got, abs=1e-6)
    assert copy_paste.clip_copy_paste(np.repeat(known[:1], 3, 0), known) == pytest.approx(1.0)


def test_copy_paste_needs_two_photos_and_no_nan():
    with pytest.raises(ValueError, match="two photos"):
        copy_paste.clip_copy_paste(np.zeros((0, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="generated face holds NaN"):
        copy_paste.copy_paste(np.array([np.nan, 0]), turned(0.1), turned(0.2))
    clip = evidence_of(painted_clip([[(0, 0.7, 0)]]), painted_cast())
    with pytest.raises(ValueError, match="'copy_paste' cannot measure take 3. A second photo .* of 'S0', 'S1'"):
        measure_terms(clip, RewardSpec((RewardTerm("copy_paste", -1.0),)), clip="take 3")


def test_copy_paste_of_single_photos_can_be_skipped():
    spec = RewardSpec((RewardTerm("copy_paste", options=(("single_photo", "skip"),)),))
    clip = painted_clip([[(0, 1.0, 0), (1, 1.0, 1)]] * 2)
    nobody = evidence_of(clip, painted_cast())
    assert measure_terms(nobody, spec)["copy_paste"] == 0.0
    second = evidence_of(clip, painted_cast(similarities=((1.0,), (0.6, 1.0))))
    assert measure_terms(second, spec)["copy_paste"] == pytest.approx(1.0, abs=1e-3)


def test_copy_paste_of_a_clip_is_that_of_the_worst_subject():
    cast = painted_cast(similarities=((1.0, 0.6), (1.0, 0.6)))
    clip = evidence_of(painted_clip([[(0, 1.0, 0), (1, 0.8, 1)]] * 2), cast)
    assert measure_terms(clip, RewardSpec((RewardTerm("copy_paste"),)))["copy_paste"] == pytest.approx(1.0, abs=1e-3)


# Ingredients ----------------------------------------------------------------------------------------------------------


def test_ingredients_is_the_best_pair_of_the_two_largest_faces():
    frames = [[(0, 0.5, 0), (1, 0.9, 1)], [(0, 0.7, 0, 20), (3, 1.0, 1, 20), (1, 1.0, 2, 8)]]
    clip = evidence_of(painted_clip(frames), painted_cast())
    got = measure_terms(clip, RewardSpec((RewardTerm("ingredients_max"),)))["ingredients_max"]
    assert got == pytest.approx((0.9 + 0.7) / 2, abs=1e-2)
    assert ingredients.face_similarity([[], []], embedding(0)[None]) == 0.0
    with pytest.raises(ValueError, match="at least one reference"):
        ingredients.face_similarity([[]], np.zeros((0, 4)))


# Motion ---------------------------------------------------------------------------------------------------------------


def textured(seed=0, height=128, width=192):
    """Smooth random texture, which optical flow can follow; its blue is full, so that nothing in it is a face."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), height / 64)
    picture = np.clip((soft - soft.mean()) / soft.std() * 40 + 128, 0, 255).astype(np.uint8)
    picture[..., 2] = 255
    return picture


@pytest.mark.parametrize("size", [(64, 96), (256, 384), (320, 480)])
def test_equal_frames_do_not_move(size):
    frame = as_images(textured(1, *size))
    assert motion.motion(frame, frame) == 0.0


def test_flow_that_runs_away_is_no_motion():
    """Two photos on black, still: OpenCV's own flow reaches hundreds of pixels here."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[8:56, :48], frame[8:56, 48:] = (textured(seed, 48, 48) for seed in (1, 2))
    assert motion.motion(as_images(frame), as_images(frame)) == 0.0
    noisy = np.random.default_rng(0).normal(frame, 1.5, frame.shape).clip(0, 255).astype(np.uint8)
    assert motion.motion(as_images(frame), as_images(noisy)) < motion.FLOOR / 2


@pytest.mark.parametrize("height", [128, 256, 512])
@pytest.mark.parametrize("pixels", [2, 4])
def test_motion_is_pixels_at_a_short_side_of_256(height, pixels):
    picture = textured(0, height, height * 3 // 2)
    moved = np.roll(picture, pixels * height // 256, 1)
    assert motion.motion(as_images(picture), as_images(moved)) == pytest.approx(pixels, rel=0.1)


def test_a_small_thing_that_moves_is_seen():
    """5 % of the picture are enough; the mean over the picture would hardly notice."""
    clip = np.stack([textured()] * 4)
    for t, frame in enumerate(clip):
        frame[40:80, 60 + 2 * t : 100 + 2 * t] = textured(7)[40:80, 60:100]
    images = as_images(clip)
    moved = motion.motion(images[0], images[1])
    assert moved > 5 * motion.FLOOR
    evidence = evidence_of(images, painted_cast())
    assert measure_terms(evidence, RewardSpec((RewardTerm("motion"),)))["motion"] == pytest.approx(moved, rel=0.3)


def test_motion_is_measured_between_neighbours_whatever_is_scored():
    clip = as_images(np.stack([np.roll(textured(), t, 1) for t in range(9)]))
    cast, source = painted_cast(), TensorFrames(clip)
    terms = RewardSpec((RewardTerm("motion"),))
    sparse = measure_terms(gather_evidence(source, (0, 4, 8), cast), terms)["motion"]
    assert sparse == pytest.approx(measure_terms(gather_evidence(source, range(9), cast), terms)["motion"], rel=0.1)
    assert measure_terms(gather_evidence(TensorFrames(clip[:1]), (0,), cast), terms)["motion"] == 0.0


def test_top_mean():
    assert motion.top_mean(np.arange(100)) == pytest.approx(97.0)  # 95..99
    assert motion.top_mean(np.array([3.0])) == 3.0
    with pytest.raises(ValueError, match="NaN"):
        motion.top_mean(np.array([np.nan]))


def test_motion_names_the_frame_with_nan():
    clip = torch.ones(3, 32, 32, 3)
    evidence = evidence_of(clip, painted_cast())
    clip[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Frame 3 of the clip holds NaN"):
        measure_terms(evidence, RewardSpec((RewardTerm("motion"),)))
