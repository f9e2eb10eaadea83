"""The identity score: known answers, and what must not pay off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.rewards.identity import (
    EXTRA_WEIGHT,
    MAX_SWAP_PENALTY,
    SWAP_WEIGHT,
    FrameFaces,
    identity_reward,
    score_identity,
    subject_quality,
)
from support.painted_faces import embedding

PLACES = (30.0, 90.0, 150.0, 210.0)


def frame(*faces, side=20.0):
    """A frame from (who, similarity, place) each; a place is an x coordinate, a fourth entry another side."""
    boxes, embeddings = [], []
    for who, similarity, x, *rest in faces:
        half = (rest[0] if rest else side) / 2
        boxes.append([x - half, 40 - half, x + half, 40 + half])
        embeddings.append(embedding(who, similarity))
    return FrameFaces(
        np.array(boxes, float).reshape(-1, 4),
        np.full(len(boxes), 0.9),
        np.array(embeddings, np.float32).reshape(-1, 512),
    )


def subjects(count):
    return np.stack([embedding(i) for i in range(count)])


def honest(frames=8, a=0.6, b=0.5):
    return [frame((0, a, PLACES[0] + t), (1, b, PLACES[1] - t)) for t in range(frames)]


def test_known_answer():
    result = score_identity(honest(), subjects(2))
    np.testing.assert_allclose(result.quality, [0.6, 0.5], atol=1e-6)
    assert result.score == pytest.approx(0.5 * 0.55 + 0.5 * 0.5, abs=1e-6)
    assert result.coverage.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(result.face_size, [20, 20])
    assert not result.missing.any() and not result.extra.any() and result.swaps == ()


def test_a_missing_subject_costs_its_frames():
    clip = honest(4)
    clip[1] = frame((0, 0.6, PLACES[0]))
    result = score_identity(clip, subjects(2))
    assert result.missing.tolist() == [[False, False], [False, True], [False, False], [False, False]]
    np.testing.assert_allclose(result.quality, [0.6, 0.375], atol=1e-6)
    np.testing.assert_allclose(result.similarity_seen, [0.6, 0.5], atol=1e-6)
    assert result.score == pytest.approx(0.5 * 0.4875 + 0.5 * 0.375, abs=1e-6)
    assert result.extra_penalty == 0.0


def test_formula_on_arrays():
    similarity = np.array([[0.4, np.nan], [0.8, -0.5], [np.nan, 1.0]])
    np.testing.assert_allclose(subject_quality(similarity), [0.4, 1 / 3])
    assert identity_reward(np.array([0.4, 0.2, 0.9])) == pytest.approx(0.5 * 0.5 + 0.5 * 0.2)


def test_extra_person():
    clip = honest(4)
    clip[2] = frame((0, 0.6, PLACES[0]), (1, 0.5, PLACES[1]), (9, 1.0, PLACES[2]))
    result = score_identity(clip, subjects(2))
    assert result.extra.tolist() == [0, 0, 1, 0]
    assert result.extra_penalty == pytest.approx(EXTRA_WEIGHT * 0.25 * 0.5)
    assert result.score == pytest.approx(score_identity(honest(4), subjects(2)).score - result.extra_penalty)


def test_a_stranger_in_place_of_a_subject_is_missing_not_extra():
    result = score_identity([frame((0, 0.6, PLACES[0]), (9, 1.0, PLACES[1]))], subjects(2))
    assert result.missing.tolist() == [[False, True]] and result.extra.tolist() == [0]


def test_small_or_doubtful_faces_are_nobody_too_many():
    small = frame((0, 0.6, PLACES[0]), (1, 0.5, PLACES[1]), (9, 1.0, PLACES[2], 9.0))
    doubtful = frame((0, 0.6, PLACES[0]), (1, 0.5, PLACES[1]), (9, 1.0, PLACES[2]))
    doubtful.scores[2] = 0.55
    assert score_identity([small, doubtful], subjects(2)).extra.tolist() == [0, 0]


def swapped(frames=8, at=4):
    order = [(0, 1) if t < at else (1, 0) for t in range(frames)]
    return [frame((a, 0.6, PLACES[0] + t), (b, 0.6, PLACES[1] - t)) for t, (a, b) in enumerate(order)]


def moments(result):
    """(frame, subjects) of every swap."""
    return [(swap.first, swap.subjects) for swap in result.swaps]


def test_swap_is_found_and_costs():
    result = score_identity(swapped(), subjects(2))
    assert moments(result) == [(4, (0, 1))]
    assert result.score == pytest.approx(0.6 - SWAP_WEIGHT, abs=1e-6)


def test_many_swaps_cost_no_more_than_the_limit():
    halves = [frame((t // 4 % 2, 0.9, PLACES[0]), (1 - t // 4 % 2, 0.9, PLACES[1])) for t in range(24)]
    result = score_identity(halves, subjects(2))
    assert len(result.swaps) == 5 and result.swap_penalty == MAX_SWAP_PENALTY


def test_people_who_flicker_keep_neither_identity():
    flicker = [frame((t % 2, 0.9, PLACES[0]), (1 - t % 2, 0.9, PLACES[1])) for t in range(6)]
    assert score_identity(flicker, subjects(2)).score < 0.5


def test_rotation_of_three():
    before = [(0, 0.9, PLACES[0]), (1, 0.9, PLACES[1]), (2, 0.9, PLACES[2])]
    after = [(1, 0.9, PLACES[0]), (2, 0.9, PLACES[1]), (0, 0.9, PLACES[2])]
    assert moments(score_identity([frame(*before), frame(*after)], subjects(3))) == [(1, (0, 1, 2))]


def test_two_pairs_swap_at_once():
    before = [(i, 0.9, PLACES[i]) for i in range(4)]
    after = [(i ^ 1, 0.9, PLACES[i]) for i in range(4)]
    assert moments(score_identity([frame(*before), frame(*after)], subjects(4))) == [(1, (0, 1)), (1, (2, 3))]


@pytest.mark.parametrize("frames", [5, 9, 17, 81])
def test_people_who_cross_are_no_swap(frames):
    # Two people walk past each other; while one covers the other only one face is seen.
    clip = []
    for t in range(frames):
        share = t / (frames - 1)
        x, y = 30 + 120 * share, 150 - 120 * share
        pair = [(0, 0.6, x), (1, 0.6, y)]
        clip.append(frame(*pair) if abs(x - y) >= 15 else frame(pair[0]))
    assert score_identity(clip, subjects(2)).swaps == ()


def test_a_face_that_turns_into_another_is_no_exchange():
    # Subject 0's place becomes subject 1 while the other place is empty: missing, not swapped.
    clip = [frame((0, 0.6, PLACES[0])), frame((1, 0.6, PLACES[0]))]
    assert score_identity(clip, subjects(2)).swaps == ()


# What must not pay off.


def test_faceless_clip_scores_zero():
    assert score_identity([frame()] * 5, subjects(2)).score == 0.0


def test_one_perfect_and_one_absent_person_is_worse_than_two_mediocre_ones():
    alone = score_identity([frame((0, 1.0, PLACES[0]))] * 6, subjects(2)).score
    assert alone == pytest.approx(0.25) and alone < score_identity(honest(6, 0.4, 0.4), subjects(2)).score


def test_a_cloned_face_is_not_rewarded_for_both():
    clones = score_identity([frame((0, 1.0, PLACES[0]), (0, 1.0, PLACES[1]))] * 6, subjects(2))
    assert clones.quality.tolist() == [1.0, 0.0] and clones.score == pytest.approx(0.25)
    assert clones.score < score_identity(honest(6), subjects(2)).score


def test_a_crowd_of_clones_does_not_help():
    crowd = [frame((0, 0.6, PLACES[0]), (1, 0.5, PLACES[1]), (0, 0.6, PLACES[2]), (1, 0.5, PLACES[3]))] * 6
    assert score_identity(crowd, subjects(2)).score < score_identity(honest(6), subjects(2)).score


def test_equal_clones_are_told_apart_by_place_alone():
    clones = [(0, 1.0, PLACES[1]), (0, 1.0, PLACES[0])]
    for order in (clones, clones[::-1]):
        assert score_identity([frame(*order)], subjects(1)).boxes[0, 0, 0] == PLACES[0] - 10


def test_hiding_bad_frames_does_not_help():
    shown = [frame((0, 0.9, PLACES[0])), frame((0, 0.3, PLACES[0]))]
    hidden = [frame((0, 0.9, PLACES[0])), frame()]
    assert score_identity(hidden, subjects(1)).score < score_identity(shown, subjects(1)).score


def test_negative_similarity_is_not_clipped_into_a_gain():
    away = FrameFaces(np.array([[0.0, 0, 9, 9]]), np.array([0.9]), -embedding(0)[None])
    assert score_identity([away], subjects(1)).score == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(bad):
    clip = honest(3)
    clip[1].embeddings[0, 0] = bad
    with pytest.raises(ValueError, match="scored frame 2 hold NaN"):
        score_identity(clip, subjects(2))
    wrong = subjects(2)
    wrong[0, 0] = bad
    with pytest.raises(ValueError, match="embeddings of the subjects"):
        score_identity(honest(3), wrong)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="at least one frame and one subject"):
        score_identity([], subjects(1))
    with pytest.raises(ValueError, match="at least one frame and one subject"):
        score_identity(honest(1), np.zeros((0, 512)))


faces = st.lists(
    st.tuples(st.integers(0, 4), st.floats(0.0, 1.0, width=32), st.sampled_from(PLACES)),
    max_size=4,
    unique_by=lambda face: face[2],
)
clips = st.lists(faces, min_size=1, max_size=5)


@settings(deadline=None)
@given(clips, st.randoms(use_true_random=False))
def test_order_of_faces_changes_nothing(clip, random):
    shuffled = [random.sample(faces, len(faces)) for faces in clip]
    a = score_identity([frame(*faces) for faces in clip], subjects(2))
    b = score_identity([frame(*faces) for faces in shuffled], subjects(2))
    assert a.score == b.score and a.swaps == b.swaps
    np.testing.assert_array_equal(a.similarity, b.similarity)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.extra, b.extra)


@settings(deadline=None)
@given(clips, st.permutations(range(3)))
def test_order_of_subjects_permutes_the_answer(clip, order):
    frames = [frame(*faces) for faces in clip]
    a, b = score_identity(frames, subjects(3)), score_identity(frames, subjects(3)[list(order)])
    assert a.score == pytest.approx(b.score, abs=1e-6) and len(a.swaps) == len(b.swaps)
    np.testing.assert_allclose(a.quality[list(order)], b.quality, atol=1e-6)
    np.testing.assert_array_equal(a.extra, b.extra)


@settings(deadline=None)
@given(clips)
def test_ranges(clip):
    result = score_identity([frame(*faces) for faces in clip], subjects(2))
    assert 0.0 <= result.score <= 1.0
    assert ((result.quality >= 0) & (result.quality <= 1)).all()
    assert (np.isnan(result.similarity) == np.isnan(result.boxes[..., 0])).all()
    assert ((result.coverage == 0) == np.isnan(result.similarity_seen)).all()
