"""Crowds: who stands where, who passes whom, and that the captions say so."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.nano.world import sample_identity
from idcrafter.nano.world.crowd import MOVES, PLACES, caption_crowd, render_crowd, sample_crowd_spec

NAMES = ("Ada", "Bo", "Cy", "Di")


def spec_of(count, seed, move=None):
    return sample_crowd_spec(tuple(sample_identity(100 + i) for i in range(count)), seed, move)


def order_of(faces):
    """Subjects from left to right, of those who can be seen."""
    seen = [(face.box[0] + face.box[2], i) for i, face in enumerate(faces) if face is not None]
    return [i for _, i in sorted(seen)]


def by_place(places):
    return sorted(range(len(places)), key=lambda i: places[i])


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([None, *MOVES]))
def test_everybody_begins_and_ends_where_the_plan_says(count, seed, move):
    spec = spec_of(count, seed, move)
    clip = render_crowd(spec)
    assert clip.frames.shape == (9, spec.size[1], spec.size[0], 3)
    for faces, places in ((clip.faces[0], spec.places), (clip.faces[-1], spec.final_places)):
        expected = by_place(places)
        seen = order_of(faces)
        assert seen == [i for i in expected if i in seen]
        # Neighbours may cover a face, but never many at rest.
        assert len(seen) >= count - 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_two_who_swap_cross_once_and_the_others_stay(count):
    spec = spec_of(count, 5, "swap")
    clip = render_crowd(spec)
    others = [i for i in range(count) if i not in (spec.a, spec.b)]
    assert {spec.places[spec.a], spec.places[spec.b]} == {spec.final_places[spec.a], spec.final_places[spec.b]}
    assert all(spec.places[i] == spec.final_places[i] for i in others)
    both = [
        (faces[spec.a].box[0], faces[spec.b].box[0])
        for faces in clip.faces
        if faces[spec.a] is not None and faces[spec.b] is not None
    ]
    signs = [np.sign(a - b) for a, b in both]
    assert sum(x != y for x, y in pairwise(signs)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_who_hides_is_behind_the_other_for_a_moment_and_comes_back(seed):
    spec = spec_of(3, seed, "hide")
    assert abs(spec.places[spec.a] - spec.places[spec.b]) == 1
    seen = [faces[spec.a] is not None for faces in render_crowd(spec).faces]
    assert not all(seen)
    assert seen[0] and seen[-1]


def test_a_spec_always_gives_the_same_pixels():
    first, again, other = (render_crowd(spec_of(4, seed)).frames for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(0, 10_000))
def test_the_caption_names_all_with_their_places_and_who_moves(count, seed):
    spec = spec_of(count, seed)
    caption = caption_crowd(spec, NAMES[:count], 0)
    for name, place in zip(NAMES, spec.places, strict=False):
        about = [s for s in caption.split(".") if name in s and PLACES[count][place].lower() in s.lower()]
        assert about
    if spec.move == "stay":
        assert caption.count(".") == count
    else:
        last = caption.rstrip(".").rsplit(". ", 1)[1]
        assert NAMES[spec.a] in last and NAMES[spec.b] in last
