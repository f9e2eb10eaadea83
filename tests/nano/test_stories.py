"""What people are called in stories: only by what pictures show of them, whatever the light."""

from dataclasses import replace

import numpy as np
import pytest

from idcrafter.nano.world import render_photo, sample_identity, scene, stories
from idcrafter.nano.world.identity import HAIR_STYLES, HAT_STYLES, colour_name, describe_visible, shows_hair


@pytest.mark.parametrize("style", HAIR_STYLES[1:])
@pytest.mark.parametrize("hat", HAT_STYLES)
def test_hair_is_spoken_of_where_a_picture_shows_it(style, hat):
    who = replace(sample_identity(3), hair_style=style, hat_style=hat, beard_style="none")
    with_hair, without = (render_photo(each, 5, 128)[0] for each in (who, replace(who, hair_style="bald")))
    changed = (np.abs(with_hair.astype(int) - without).max(-1) > 24).mean()
    assert (changed > 0.01) == shows_hair(who), changed
    assert any("hair" in phrase for phrase in stories._features(who)) == shows_hair(who)
    assert (f"{style} " in describe_visible(who)) == shows_hair(who)


def test_a_bald_head_is_spoken_of_where_no_hat_hides_it():
    who = replace(sample_identity(3), hair_style="bald", hat_style="none")
    assert "without hair" in stories._features(who)
    assert "no hair" in describe_visible(who)
    hidden = replace(who, hat_style="cap")
    assert not any("hair" in phrase for phrase in stories._features(hidden))
    assert "hair" not in describe_visible(hidden)


def test_a_colour_that_people_are_called_by_is_right_in_every_light():
    called = 0
    for number in range(60):
        cast = tuple(sample_identity(2 * number + i) for i in range(2))
        for i, who in enumerate(cast):
            jumpers = [phrase.split()[-2] for phrase in stories.tells_apart(cast, i) if "jumper" in phrase]
            for name in jumpers:
                called += 1
                for seed in range(40):
                    light = scene._light(np.random.default_rng(seed), 3, 3)[1, 1]
                    lit = [np.clip(light * each.clothes, 0, 1) for each in (who, cast[1 - i])]
                    own, other = (colour_name(tuple(each)) for each in lit)
                    assert own == name != other
    assert called > 40


def test_people_whose_colours_the_light_confuses_are_not_told_apart_by_them():
    # On both sides of the border between orange and yellow.
    pair = tuple(replace(sample_identity(8), clothes=colour) for colour in ((0.8, 0.55, 0.1), (0.8, 0.62, 0.1)))
    assert [colour_name(who.clothes) for who in pair] == ["orange", "yellow"]
    assert stories.tells_apart(pair, 0) == []
