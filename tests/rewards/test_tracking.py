"""Following faces: what is one person, and whose it is."""

import numpy as np
import pytest

from idcrafter.rewards.tracking import (
    CHANGE_COST,
    MAX_GAP,
    Stretch,
    Track,
    assign_stretches,
    build_tracks,
    follow,
    split_track,
)
from support.painted_faces import embedding

SIDE = 20.0


def clip(*frames):
    """(boxes, embeddings) of frames given as lists of (who, x) or (who, x, similarity)."""
    boxes = [np.array([[x - 10, 30, x + 10, 50] for _, x, *_ in frame], float).reshape(-1, 4) for frame in frames]
    vectors = [np.array([embedding(who, *rest) for who, _, *rest in frame]).reshape(-1, 512) for frame in frames]
    return boxes, vectors


def paths(tracks):
    return [list(zip(track.frames, track.faces, strict=True)) for track in tracks]


def test_a_face_is_followed_by_its_place_even_when_it_becomes_somebody_else():
    tracks = build_tracks(*clip([(0, 30), (1, 90)], [(0, 33), (1, 88)], [(1, 35), (0, 86)]))
    assert paths(tracks) == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]
    assert not any(any(track.contested) for track in tracks)


def test_where_faces_meet_the_embedding_decides_and_the_link_is_contested():
    tracks = build_tracks(*clip([(0, 50), (1, 56)], [(1, 51), (0, 57)]))
    assert paths(tracks) == [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]
    assert [track.contested for track in tracks] == [(False, True), (False, True)]


def test_a_face_may_go_on_as_it_was_going():
    # 9 px a frame, then one of 18: more than half a face, but where it was heading.
    tracks = build_tracks(*clip([(0, 10)], [(0, 19)], [(0, 37)]))
    assert len(tracks) == 1


def test_a_jump_begins_a_new_track():
    assert paths(build_tracks(*clip([(0, 30)], [(0, 60)]))) == [[(0, 0)], [(1, 0)]]


def test_gaps_are_bridged_but_never_trusted():
    gap = [[]] * (MAX_GAP - 1)
    (track,) = build_tracks(*clip([(0, 30)], *gap, [(0, 32)]))
    assert track.frames == (0, MAX_GAP) and track.contested == (False, True)
    assert len(build_tracks(*clip([(0, 30)], *gap, [], [(0, 32)]))) == 2


def test_far_apart_in_time_places_mean_nothing():
    frames = clip([(0, 30)], [(0, 30)], [(0, 30)])
    assert len(build_tracks(*frames, times=[0.0, 0.5, 1.0])) == 1
    assert len(build_tracks(*frames, times=[0.0, 0.5, 12.0])) == 2


def evidence(*rows):
    return np.array(rows, float)


def test_a_lasting_change_splits_a_track():
    assert split_track(evidence(*[[0.5, 0.0]] * 4, *[[0.0, 0.5]] * 3), 0.2) == [(0, 4, 0), (4, 7, 1)]


@pytest.mark.parametrize("away", [0.0, 0.1])
def test_a_head_turned_away_stays_who_it_is(away):
    rows = [[0.6, 0.0]] * 4 + [[away, 0.15]] * 3 + [[0.6, 0.0]] * 4
    assert split_track(evidence(*rows), 0.2) == [(0, 11, 0)]


def test_a_short_bad_match_is_no_change():
    assert split_track(evidence([1.0, 0.0], [0.0, 1.0], [1.0, 0.0]), 0.2) == [(0, 3, 0)]
    assert split_track(evidence([1.0, -0.9], [-0.9, 1.0], [1.0, -0.9]), 0.2) == [(0, 3, 0)]


def test_what_is_like_nobody_is_nobody():
    assert split_track(evidence([0.1, 0.0], [0.1, 0.1]), 0.2) == [(0, 2, -1)]
    assert split_track(evidence(*[[0.7]] * 3, *[[0.0]] * 9), 0.2) == [(0, 3, 0), (3, 12, -1)]


def test_the_split_is_the_best_of_all():
    """Against every sequence of identities, by brute force."""
    from itertools import product

    rng = np.random.default_rng(0)
    for _ in range(40):
        cosines = rng.uniform(-0.2, 1.0, (5, 2))
        worth = np.concatenate([np.clip(cosines, 0, 1), np.full((5, 1), 0.2)], 1)

        def value(states, worth=worth):
            changes = sum(a != b for a, b in zip(states, states[1:], strict=False))
            return sum(worth[t, s] for t, s in enumerate(states)) - CHANGE_COST * changes

        states = [s % 3 for a, b, s in split_track(cosines, 0.2) for _ in range(a, b)]
        assert value(states) == pytest.approx(max(value(s) for s in product(range(3), repeat=5)))


def test_a_subject_who_comes_back_gets_both_stretches_and_a_double_gets_none():
    tracks = (
        Track((0, 1), (0, 0), (False,) * 2),
        Track((3, 4), (0, 0), (False,) * 2),
        Track((1, 2), (1, 0), (False,) * 2),
    )
    own = tuple(evidence([0.8, 0.0], [0.8, 0.0]) for _ in tracks[:2]) + (evidence([0.7, 0.0], [0.7, 0.0]),)
    stretches = [Stretch(n, 0, 2, 0) for n in range(3)]
    assert assign_stretches(stretches, tracks, own, 0.2).tolist() == [0, 0, -1]


def test_the_clone_of_one_is_no_bad_likeness_of_another():
    tracks = tuple(Track((0, 1, 2), (face,) * 3, (False,) * 3) for face in range(2))
    stretches = [Stretch(n, 0, 3, 0) for n in range(2)]
    own = (evidence(*[[0.8, 0.1]] * 3), evidence(*[[0.7, 0.3]] * 3))
    assert assign_stretches(stretches, tracks, own, 0.2).tolist() == [0, -1]
    close = (evidence(*[[0.40, 0.1]] * 3), evidence(*[[0.38, 0.3]] * 3))
    assert assign_stretches(stretches, tracks, close, 0.2).tolist() == [0, 1]


def test_every_face_belongs_to_one_track():
    rng = np.random.default_rng(3)
    frames = [[(int(who), float(x)) for who, x in zip(rng.integers(0, 4, n), rng.uniform(0, 90, n), strict=True)]
              for n in rng.integers(0, 5, 30)]  # fmt: skip
    boxes, vectors = clip(*frames)
    followed = follow(boxes, vectors, np.stack([embedding(0), embedding(1)]), 0.2)
    seen = [pair for track in followed.tracks for pair in zip(track.frames, track.faces, strict=True)]
    assert sorted(seen) == [(t, i) for t, frame in enumerate(frames) for i in range(len(frame))]
    covered = [(s.track, i) for s in followed.stretches for i in range(s.start, s.stop)]
    assert sorted(covered) == [(n, i) for n, track in enumerate(followed.tracks) for i in range(len(track.frames))]
    for subject in range(2):
        frames_of = [
            t
            for s, owner in zip(followed.stretches, followed.owner, strict=True)
            if owner == subject
            for t in followed.tracks[s.track].frames[s.start : s.stop]
        ]
        assert len(frames_of) == len(set(frames_of))
