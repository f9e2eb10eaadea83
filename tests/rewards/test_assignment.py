"""Faces to subjects, and faces to faces."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from idcrafter.rewards.assignment import MATCH_COSINE, assign_faces, face_distances, face_sides, link_faces

cosines = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(0, 4)), elements=st.floats(-1, 1, width=32))


def test_each_subject_gets_its_face():
    assert assign_faces(np.array([[0.1, 0.7], [0.6, 0.2]])).tolist() == [1, 0]


def test_the_sum_counts_not_the_first_best():
    # Greedy would give face 0 to subject 0 (0.8) and leave subject 1 with 0.3.
    assert assign_faces(np.array([[0.8, 0.7], [0.75, 0.3]])).tolist() == [1, 0]


def test_a_bad_match_is_missing():
    assert assign_faces(np.array([[0.7, 0.1], [0.1, 0.19]])).tolist() == [0, -1]
    assert assign_faces(np.array([[0.7, 0.1], [0.1, MATCH_COSINE]])).tolist() == [0, 1]


def test_one_face_serves_one_subject():
    assert assign_faces(np.array([[0.9], [0.8]])).tolist() == [0, -1]


def test_no_faces_and_more_faces_than_subjects():
    assert assign_faces(np.zeros((2, 0))).tolist() == [-1, -1]
    assert assign_faces(np.array([[0.3, 0.9, 0.5]])).tolist() == [1]


def test_ties_are_stable():
    same = np.array([[0.5, 0.5], [0.0, 0.0]])
    assert [assign_faces(same).tolist() for _ in range(3)] == [[0, -1]] * 3


@settings(deadline=None)
@given(cosines)
def test_equals_trying_every_assignment(matrix):
    subjects, faces = matrix.shape
    chosen = assign_faces(matrix)
    value = sum(matrix[i, j] if j >= 0 else MATCH_COSINE for i, j in enumerate(chosen))
    slots = [*range(faces), *[-1] * subjects]
    best = max(
        sum(matrix[i, j] if j >= 0 else MATCH_COSINE for i, j in enumerate(order))
        for order in set(permutations(slots, subjects))
    )
    assert value == pytest.approx(best, abs=1e-9)
    used = [j for j in chosen if j >= 0]
    assert len(used) == len(set(used))
    assert all(matrix[i, j] >= MATCH_COSINE for i, j in enumerate(chosen) if j >= 0)


def boxes(*centres, side=10.0):
    return np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y in centres]).reshape(-1, 4)


def linked(before, after, likeness=None):
    distance = face_distances(before, after)
    return link_faces(distance, np.zeros(distance.shape) if likeness is None else np.array(likeness)).tolist()


def test_links_follow_position():
    assert linked(boxes((20, 20), (60, 20)), boxes((62, 21), (18, 20))) == [1, 0]


def test_links_end_where_a_face_jumps_or_vanishes():
    assert linked(boxes((20, 20), (60, 20)), boxes((26, 20), (60, 20))) == [-1, 1]
    assert linked(boxes((20, 20)), boxes()) == [-1]
    assert linked(boxes(), boxes((1, 1))) == []


def test_among_near_faces_the_likeness_decides_but_never_over_a_distance():
    close, apart = boxes((20, 20), (23, 20)), boxes((20, 20), (60, 20))
    assert linked(close, close, [[0.1, 0.9], [0.9, 0.1]]) == [1, 0]
    assert linked(apart, apart, [[-0.9, 0.9], [0.9, -0.9]]) == [0, 1]


def test_distances_are_in_sides_of_a_face():
    np.testing.assert_allclose(face_distances(boxes((20, 20)), boxes((25, 20), (20, 40))), [[0.5, 2.0]])


def test_face_sides():
    np.testing.assert_allclose(face_sides(np.array([[0, 0, 9, 4], [5, 5, 5, 9]], float)), [6, 0])
    assert np.isnan(face_sides(np.full((1, 4), np.nan))).all()
