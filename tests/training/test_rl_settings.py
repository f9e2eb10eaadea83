"""What people type for reinforcement learning, and what each method does where they type nothing."""

import pytest

from idcrafter.training.rl_settings import METHODS, Settings, parse_rewards
from idcrafter.training.rollout_batches import Share


def test_rewards_by_name():
    assert parse_rewards("") == parse_rewards(" , ") == ()
    assert parse_rewards("score") == (Share("score"),)
    assert parse_rewards("motion 2 = 0.2, copy_paste=-.5") == (Share("motion 2", 0.2), Share("copy_paste", -0.5))
    assert parse_rewards("score=2@0-0.6,motion@0.5-1") == (
        Share("score", 2.0, 0.0, 0.6),
        Share("motion", 1.0, 0.5, 1.0),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("score=much", "'score=much' is no reward"),
        ("=1", "'=1' is no reward"),
        ("score=1@0.6", "write NAME=WEIGHT"),
        ("score@0.6-0.2", "no range in 0..1"),
        ("a=1,a=2", "'a' is named twice"),
    ],
)
def test_rewards_that_cannot_be_read(text, says):
    with pytest.raises(ValueError, match=says):
        parse_rewards(text)


def test_what_is_not_typed_is_the_methods_own():
    for name, method in METHODS.items():
        settings = Settings.of(name, rate=-1.0, beta=-1.0, kl=-1.0, clip=-1.0, steps=5)
        assert [settings.number(each) for each in ("rate", "beta", "kl", "clip")] == [
            method.rate, method.beta, method.kl, method.clip,
        ]  # fmt: skip
        assert settings.groups == (16 if name == "identity_grpo" else 2) and settings.steps == 5
    assert Settings.of("nft", kl=0.0, rate=1e-5, groups=3).number("kl") == 0.0


def test_named_rewards_make_the_advantage():
    plain = Settings.of("nft", "score=1, motion=0.2").plan()
    assert plain.advantage == "weighted" and plain.weights == {"score": 1.0, "motion": 0.2} and not plain.shares
    assert Settings.of("crd", "score").plan().advantage == "gdpo"
    assert Settings.of("nft", "score@0-0.6, motion").plan().shares == (Share("score", 1.0, 0.0, 0.6), Share("motion"))
    with pytest.raises(ValueError, match="cannot have noise levels"):
        Settings.of("flash_grpo", "score@0-0.6")
