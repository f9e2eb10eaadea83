"""Planted clips: the same for the same seed, and the truth about them."""

from itertools import islice

import numpy as np
import pytest

from idcrafter.nano import world

PEOPLE = [world.sample_identity(number) for number in islice(world.numbers_of_split("val"), 4)]
PLANS = world.HONEST + world.PLANTED


def plant(plan, seed=3, **kwargs):
    return world.plant_clip(plan, tuple(PEOPLE[:2]), PEOPLE[3], seed, **kwargs)


@pytest.mark.parametrize("plan", PLANS)
def test_same_seed_same_pixels_and_events_within_the_clip(plan):
    clip = plant(plan)
    assert np.array_equal(clip.frames, plant(plan).frames) and not np.array_equal(clip.frames, plant(plan, 4).frames)
    assert bool(clip.events) == (plan in world.PLANTED)
    assert all(0 <= event.first <= event.last < len(clip.frames) for event in clip.events)
    assert len(clip.faces) == len(clip.who) == len(clip.frames)


@pytest.mark.parametrize("plan", PLANS)
def test_slow_and_large_is_the_same_clip(plan):
    """Every second frame of a clip at half speed and twice the size is the plain clip, but for its sampling."""
    clip, big = plant(plan), plant(plan, scale=2, slow=2)
    assert big.frames.shape == (17, 128, 192, 3)
    small = big.frames[::2].reshape(9, 64, 2, 96, 2, 3).mean((2, 4))
    other = plant(plan, 4).frames.astype(float)
    assert np.abs(small - clip.frames).mean() < 0.1 * np.abs(small - other).mean()
    assert [event.first for event in big.events] == [2 * event.first for event in clip.events]
    assert big.who[::2] == clip.who


def test_missing_people_cannot_be_seen():
    for seed in range(6):
        clip = plant("leaves", seed)
        (event,) = clip.events
        seen = [
            [who for who, face in zip(*each, strict=True) if face] for each in zip(clip.who, clip.faces, strict=True)
        ]
        assert all((event.subjects[0] in who) == (t < event.first) for t, who in enumerate(seen))


def test_plans_and_casts_that_do_not_exist():
    for plan, count in (("dance", 2), ("plain", 1), ("guest", 3)):
        with pytest.raises(ValueError, match=r"2 or 3 people \(twin and guest: 2\) and a plan of plain,"):
            world.plant_clip(plan, tuple(PEOPLE[:count]), PEOPLE[3], 0)
