"""Events: who is missing, too many, exchanged, doubled, mixed, and when; and what only looks like it."""

import numpy as np
import pytest

from idcrafter.rewards.events import EVENT_FRAMES
from idcrafter.rewards.identity import FrameFaces, score_identity
from support.painted_faces import embedding

A, B, C = 30.0, 90.0, 150.0


def frame(*faces):
    """Faces as (vector or who, x)."""
    vectors = [embedding(face, 0.9) if isinstance(face, int) else face for face, _ in faces]
    boxes = [[x - 10, 30, x + 10, 50] for _, x in faces]
    return FrameFaces(
        np.array(boxes, float).reshape(-1, 4), np.full(len(faces), 0.9), np.array(vectors, np.float32).reshape(-1, 512)
    )


def events(clip, count=2, **kwargs):
    found = score_identity(clip, np.stack([embedding(i) for i in range(count)]), **kwargs).events
    return [(event.kind, event.subjects, event.first, event.last) for event in found]


BOTH = frame((0, A), (1, B))
ALONE = frame((0, A))


def test_nothing_happens():
    assert events([BOTH] * 8) == []


@pytest.mark.parametrize(
    ("clip", "first", "last"),
    [([BOTH] * 3 + [ALONE] * 5, 3, 7), ([ALONE] * 5 + [BOTH] * 3, 0, 4), ([ALONE] * 8, 0, 7), ([ALONE], 0, 0)],
    ids=["leaves", "comes late", "never comes", "one frame"],
)
def test_missing_has_its_frames(clip, first, last):
    assert events(clip) == [("missing", (1,), first, last)]


def test_a_lapse_is_no_event():
    assert events([BOTH] * 3 + [ALONE] * (EVENT_FRAMES - 1) + [BOTH] * 3) == []


def test_turned_away_is_not_missing_but_gone_for_long_is():
    assert events([BOTH] * 3 + [ALONE] * 3 + [BOTH] * 3) == []
    assert events([BOTH] * 3 + [ALONE] * 6 + [BOTH] * 3) == [("missing", (1,), 3, 8)]


def test_who_comes_back_elsewhere_was_missing():
    assert events([BOTH] * 3 + [ALONE] * 3 + [frame((0, A), (1, C))] * 3) == [("missing", (1,), 3, 5)]


def test_a_face_that_nobody_would_take_for_the_subject_is_missing():
    """0.24 is enough to be taken for a bad likeness, which the score weighs, and too little to be the same person."""
    vague, weak = (share * embedding(1) + np.sqrt(1 - share**2) * embedding(9) for share in (0.24, 0.32))
    assert events([frame((0, A), (vague, B))] * 6) == [("missing", (1,), 0, 5)]
    assert events([frame((0, A), (weak, B))] * 6) == []
    turning = [frame((0, A), (1, B))] * 4 + [frame((0, A), (vague, B))] * 3 + [frame((0, A), (1, B))] * 4
    assert events(turning) == []


def test_hidden_behind_another_is_not_missing():
    steps = [frame((0, x), *([(1, B)] if abs(x - B) > 14 else [])) for x in np.arange(A, C + 1, 4)]
    assert score_identity(steps, np.stack([embedding(0), embedding(1)])).missing.sum() >= EVENT_FRAMES
    assert events(steps) == []


def test_extra_people():
    assert events([BOTH] * 2 + [frame((0, A), (1, B), (9, C))] * 3 + [BOTH] * 2) == [("extra", (), 2, 4)]


def test_swap_while_one_moves():
    clip = [frame((0 if t < 4 else 1, A + 3 * t), (1 if t < 4 else 0, B)) for t in range(8)]
    assert events(clip) == [("swapped", (0, 1), 4, 4)]


def test_swap_of_two_among_three_and_one_after_the_other():
    clip = [frame((0, A), (1, B), (2, C))] * 4 + [frame((1, A), (1, B), (2, C))] + [frame((1, A), (0, B), (2, C))] * 4
    assert ("swapped", (0, 1), 5, 5) in events(clip, 3)


def test_no_swap_where_one_could_have_passed_behind_the_other():
    clip = [frame((0, 60 - 1.5 * (4 - t)), (1, 66 + 1.5 * (4 - t))) for t in range(4)]
    clip += [frame((1, 60 - 1.5 * t), (0, 66 + 1.5 * t)) for t in range(4)]
    assert events(clip) == []


def test_no_swap_where_nobody_looked_for_long():
    clip = [BOTH] * 4 + [frame((1, A), (0, B))] * 4
    assert events(clip, times=[0.1 * t for t in range(8)]) == [("swapped", (0, 1), 4, 4)]
    assert events(clip, times=[20.0 * t for t in range(8)]) == []


def test_one_frame_of_exchanged_faces_is_no_swap():
    assert events([BOTH] * 4 + [frame((1, A), (0, B))] + [BOTH] * 4) == []


def test_clone_in_the_place_of_another():
    clone = frame((0, A), (0, B))
    assert events([BOTH] * 4 + [clone] * 4) == [("missing", (1,), 4, 7), ("cloned", (0,), 4, 7)]


def test_clone_beside_everybody():
    assert events([frame((0, A), (1, B), (0, C))] * 5) == [("extra", (), 0, 4), ("cloned", (0,), 0, 4)]


def test_a_distant_likeness_and_a_double_detection_are_no_clone():
    stranger = 0.25 * embedding(0) + np.sqrt(1 - 0.25**2) * embedding(9)
    like = [frame((0, A), (1, B), (stranger, C))] * 5
    assert events(like) == [("extra", (), 0, 4)]
    doubled = [frame((0, A), (0, A + 4), (1, B))] * 5
    assert not any(kind == "cloned" for kind, *_ in events(doubled))


def mixture(a, b, share):
    vector = (1 - share) * embedding(a) + share * embedding(b)
    return vector / np.linalg.norm(vector)


def test_blend_of_two():
    clip = [frame((0, A), (mixture(1, 0, 0.45), B))] * 5
    assert events(clip) == [("blended", (1, 0), 0, 4)]
    assert events([frame((0, A), (mixture(1, 0, 0.15), B))] * 5) == []


def test_a_blend_in_place_of_a_subject_is_neither_missing_nor_a_clone():
    mixed = mixture(1, 0, 0.6)  # more like the other one, who is there
    assert events([frame((0, A), (mixed, B))] * 5) == [("blended", (1, 0), 0, 4)]


def test_a_clone_is_as_alike_as_the_original_is_recognisable():
    """0.4 between two faces is one person where faces reach 0.5 at best, and two people where they reach 0.9."""
    for own, alike, kinds in ((0.5, 0.45, {"extra", "cloned"}), (0.9, 0.45, {"extra"})):
        face = own * embedding(0) + np.sqrt(1 - own**2) * embedding(8)
        second = alike * face + np.sqrt(1 - alike**2) * embedding(9)
        found = events([frame((face, A), (1, B), (second, C))] * 5)
        assert {kind for kind, *_ in found} == kinds, own


def test_alike_subjects_are_not_blends_of_each_other():
    alike = np.stack([embedding(0), mixture(0, 1, 0.5)]).astype(np.float32)
    clip = [frame((alike[0], A), (alike[1], B))] * 5
    assert alike[0] @ alike[1] > 0.7 and score_identity(clip, alike).events == ()


def test_events_are_in_order_of_time():
    clip = [BOTH] * 3 + [ALONE] * 5 + [frame((0, A), (1, C), (9, 200.0))] * 3
    found = events(clip)
    assert [first for _, _, first, _ in found] == sorted(first for _, _, first, _ in found)
    assert {kind for kind, *_ in found} == {"missing", "extra"}
