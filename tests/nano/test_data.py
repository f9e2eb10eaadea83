"""Whose body a token of the DiT shows."""

import itertools

import pytest
import torch

from idcrafter.nano import world
from idcrafter.nano.recipes import data
from idcrafter.nano.world.scene import HEIGHT, WIDTH


def people(count):
    return tuple(world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("val"), count))


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_tokens_belong_to_the_subject_on_their_side(sides):
    for seed in range(8):
        clip = world.render_clip(world.sample_clip_spec(people(2), seed, sides))
        owners = data._owners(clip)
        assert owners.shape == (3, HEIGHT // 16, WIDTH // 16)
        left, right = owners[..., :2], owners[..., -2:]
        assert set(left.unique().tolist()) <= {-1, sides.index("left")}
        assert set(right.unique().tolist()) <= {-1, sides.index("right")}
        assert (left >= 0).any() and (right >= 0).any()


def test_a_token_that_two_cover_is_nobodys():
    clip = world.render_clip(world.sample_clip_spec(people(2), 3))
    first = clip.faces[0][0]
    both = world.Clip(clip.spec, clip.frames, ((first, first),) * len(clip.faces))
    assert (data._owners(both) == -1).all()
    alone = world.Clip(clip.spec, clip.frames, ((first, None),) * len(clip.faces))
    assert set(data._owners(alone).unique().tolist()) == {-1, 0}


def test_no_face_no_owner():
    clip = world.render_clip(world.sample_clip_spec(people(1), 1))
    empty = world.Clip(clip.spec, clip.frames, ((None,),) * len(clip.faces))
    assert torch.equal(data._owners(empty), torch.full((3, 4, 6), -1, dtype=torch.int8))
