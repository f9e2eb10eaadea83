"""What a step draws from rollouts: of which groups, takes, noise levels and advantages."""

import numpy as np
import pytest
import torch

from idcrafter.rollouts import dataset
from idcrafter.rollouts.dataset import Filters
from idcrafter.rollouts.store import RolloutStore
from idcrafter.training.rollout_batches import (
    PAIRS,
    STEPS,
    Plan,
    RolloutBatches,
    Share,
    require_one_policy,
    token_weights,
)
from support import toy_rl
from support.rollouts import LICENCE, make_part, make_samples


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    return toy_rl.write(tmp_path_factory.mktemp("rollouts"), groups=5, takes=6)


@pytest.fixture
def store(tmp_path):
    return RolloutStore(tmp_path / "rollouts")


def names(batches):
    return [batch.group.name for batch in batches]


def totals_of(group):
    return (group.totals - group.totals.mean()) / (group.totals.std() + 1e-4)


def test_a_step_is_what_seed_and_number_say(rollouts):
    first, second = (RolloutBatches(rollouts, Plan(2, 4, seed=seed)).draw(3) for seed in (0, 0))
    assert len(first) == 2 and all(len(batch) == 4 for batch in first)
    for a, b in zip(first, second, strict=True):
        assert a.group.name == b.group.name
        assert torch.equal(a.x0, b.x0) and torch.equal(a.noise, b.noise) and torch.equal(a.place, b.place)
    other = RolloutBatches(rollouts, Plan(2, 4, seed=1)).draw(3)
    later = RolloutBatches(rollouts, Plan(2, 4)).draw(4)
    assert not torch.equal(other[0].noise, first[0].noise) and not torch.equal(later[0].noise, first[0].noise)


def test_every_group_is_seen_equally_often(rollouts):
    batches = RolloutBatches(rollouts, Plan(2, 2))
    seen = [name for n in range(10) for name in names(batches.draw(n))]
    assert {name: seen.count(name) for name in seen} == {group.name: 4 for group in rollouts.groups}
    for start in range(0, 20, 5):
        assert len(set(seen[start : start + 5])) == 5
    assert seen[:5] != seen[5:10]


def test_levels_are_stratified_over_the_whole_step(rollouts):
    batches = RolloutBatches(rollouts, Plan(2, 4)).draw(0)
    places = torch.cat([batch.place for batch in batches]).sort().values
    assert torch.equal((places * 8).floor(), torch.arange(8.0))


def test_processes_draw_parts_of_the_same_step(rollouts):
    whole = RolloutBatches(rollouts, Plan(4, 3)).draw(1)
    parts = [RolloutBatches(rollouts, Plan(2, 3)).draw(1, part=(i, 2)) for i in range(2)]
    for a, b in zip(whole, [*parts[0], *parts[1]], strict=True):
        assert a.group.name == b.group.name and torch.equal(a.x0, b.x0)
        assert torch.equal(a.place, b.place) and torch.equal(a.noise, b.noise)


def test_advantages_belong_to_their_takes(rollouts):
    (batch,) = RolloutBatches(rollouts, Plan(1, 6)).draw(0)
    wanted = totals_of(batch.group)
    stored = torch.stack([batch.group.load(i)["x0"].float() for i in range(6)])
    for x0, advantage in zip(batch.x0, batch.advantages(batch.place), strict=True):
        i = int((stored == x0).flatten(1).all(1).nonzero())
        assert float(advantage) == pytest.approx(wanted[i], abs=1e-6)


def test_permuted_advantages_are_the_same_numbers_in_another_order(rollouts):
    moved = 0
    for seed in range(3):
        own, other = (RolloutBatches(rollouts, Plan(permute=p, seed=seed)) for p in (False, True))
        for a, b in zip(own._totals, other._totals, strict=True):
            assert sorted(a) == sorted(b)
            moved += not np.array_equal(a, b)
    assert moved > 10


def test_rewards_with_noise_levels_of_their_own(rollouts):
    shares = (Share("reward", 1.0, 0.0, 0.5), Share("other", 2.0, 0.4, 1.0))
    batches = RolloutBatches(rollouts, Plan(1, 6, shares=shares))
    (batch,) = batches.draw(0)
    (reward, first), (other, second) = batch.terms
    assert (reward.reward, other.reward) == ("reward", "other")
    torch.testing.assert_close(batch.advantages(torch.full((6,), 0.2)), first)
    torch.testing.assert_close(batch.advantages(torch.full((6,), 0.45)), (first + 2 * second).clamp(-5, 5))
    torch.testing.assert_close(batch.advantages(torch.full((6,), 0.9)), 2 * second)
    group = batch.group
    values = np.array([take.rewards["other"] for take in group.takes])
    assert sorted(second.tolist()) == pytest.approx(sorted((values - values.mean()) / (values.std() + 1e-4)), abs=1e-5)
    with pytest.raises(ValueError, match="has the reward 'sharpness'"):
        RolloutBatches(rollouts, Plan(shares=(Share("sharpness"),)))
    with pytest.raises(ValueError, match="no range in 0..1"):
        Share("reward", 1.0, 0.6, 0.4)


def test_pairs_are_best_and_worst_with_common_noise(rollouts):
    (batch,) = RolloutBatches(rollouts, Plan(1, 4, "centred")).draw(0, PAIRS)
    wanted = np.sort(batch.group.totals - batch.group.totals.mean())
    assert batch.totals.tolist() == pytest.approx([wanted[-1], wanted[-2], wanted[0], wanted[1]], abs=1e-6)
    assert torch.equal(batch.noise[:2], batch.noise[2:]) and torch.equal(batch.place[:2], batch.place[2:])
    assert not torch.equal(batch.noise[0], batch.noise[1])


def test_best_and_worst_alone(rollouts):
    batches = RolloutBatches(rollouts, Plan(1, 6, best=1, worst=2))
    (batch,) = batches.draw(0)
    wanted = np.sort(totals_of(batch.group))
    assert sorted(batch.totals.tolist()) == pytest.approx([wanted[0], wanted[1], wanted[-1]], abs=1e-6)


def test_recorded_steps(rollouts):
    (batch,) = RolloutBatches(rollouts, Plan(1, 3)).draw(0, STEPS)
    assert (batch.kind, batch.sigma) == ("Flow-SDE", pytest.approx(0.85))
    assert batch.dt == pytest.approx(0.6 - 0.85)
    stored = [batch.group.load(i, ("x_t", "x_next", "log_prob")) for i in range(6)]
    for x, x_next, log_prob in zip(batch.x, batch.x_next, batch.log_probs, strict=True):
        match = [each for each in stored if torch.equal(each["x_t"][0].float(), x)]
        assert len(match) == 1 and torch.equal(match[0]["x_next"][0].float(), x_next)
        assert match[0]["log_prob"][0] == log_prob
    assert batch.weights is None


def test_steps_that_identity_grpo_does_not_train_on(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_rl, "STEP", 3 - 1)
    rollouts = toy_rl.write(tmp_path, groups=1, takes=3)
    RolloutBatches(rollouts, Plan(1, 3, first_steps_only=True)).draw(0, STEPS)
    monkeypatch.setattr("idcrafter.training.rollout_batches.trained_steps", lambda count: 2)
    with pytest.raises(ValueError, match="only random steps that this method does not train on"):
        RolloutBatches(rollouts, Plan(1, 3, first_steps_only=True)).draw(0, STEPS)


def test_takes_without_random_steps(store):
    store.save(make_part(totals=(0.1, 0.3, 0.5, 0.9, 0.7)))
    batches = RolloutBatches(dataset.load(store.folder), Plan(1, 5))
    assert len(batches.draw(0)[0]) == 4  # 0.5 is their mean: it has no advantage
    with pytest.raises(ValueError, match="without recorded random steps.*Use NFT"):
        batches.draw(0, STEPS)


def test_mixed_policies_are_refused(store):
    for policy in ("a" * 32, "b" * 32):
        store.save(make_part(prompt=policy, policy=policy))
    rollouts = dataset.load(store.folder)
    with pytest.raises(ValueError, match="2 policies .aaaaaaaaaaaa, bbbbbbbbbbbb"):
        RolloutBatches(rollouts, Plan())
    one = dataset.load(store.folder, Filters(policy="b"))
    RolloutBatches(one, Plan())
    require_one_policy(one, "b" * 32)
    with pytest.raises(ValueError, match="made by the policy bbbbbbbbbbbb, the MODEL is cccccccccccc"):
        require_one_policy(one, "c" * 32)


@pytest.mark.parametrize(
    ("part", "filters", "reason"),
    [
        ({"licences": ({**LICENCE, "licence": "MiniMax H3 Community License"},)}, Filters(), "is not allowed"),
        ({"totals": (0.5, 0.5, 0.5)}, Filters(), "the same reward"),
        ({"hashes": {"text_encoder": "d" * 64}}, Filters(text_encoder="e" * 64), "collected with the text encoder"),
    ],
)
def test_what_must_not_be_trained_on_is_refused_with_the_reason(store, part, filters, reason):
    store.save(make_part(**part))
    with pytest.raises(ValueError, match=f"no group to train on .*{reason}"):
        RolloutBatches(dataset.load(store.folder, filters), Plan())


def test_a_reward_that_does_not_differ_leaves_nothing(store):
    samples = make_samples()
    same = [type(s)(**{**vars(s), "rewards": {"identity": 0.5, "motion": s.total}}) for s in samples]
    store.save(make_part(same))
    with pytest.raises(ValueError, match="No group .* differ in their rewards"):
        RolloutBatches(dataset.load(store.folder), Plan(shares=(Share("identity"),)))


def test_token_weights_and_leading_references(tmp_path):
    cover = torch.zeros(2, 2, 4, 4)
    cover[0, :, :2] = 1
    cover[1, 0, 0, 0] = 0.5
    weights = token_weights(cover, background=0.25, leading=1)
    assert weights.shape == (1, 3, 4, 4) and not weights[:, 0].any()
    assert float(weights[:, 1:].mean()) == pytest.approx(1)
    torch.testing.assert_close(weights[0, 1, 3, 3] / weights[0, 1, 0, 1], torch.tensor(0.25))
    with pytest.raises(ValueError, match="No subject is anywhere"):
        token_weights(torch.zeros(1, 2, 2, 2), background=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        token_weights(cover, background=2)

    rollouts = toy_rl.write(tmp_path, groups=1, takes=4)
    own = token_weights(torch.ones(1, 2, 3, 3))
    (batch,) = RolloutBatches(rollouts, Plan(1, 4), lambda group, take: own if take == 0 else None).draw(0)
    assert batch.weights.shape == (4, 1, 2, 3, 3)
    rollouts.groups[0].facts["shot"]["leading"] = 1
    (batch,) = RolloutBatches(rollouts, Plan(1, 4)).draw(0)
    assert not batch.weights[:, :, 0].any() and batch.weights[:, :, 1].all()
    (steps,) = RolloutBatches(rollouts, Plan(1, 4, first_steps_only=True)).draw(0, STEPS)
    assert steps.weights is None  # the recipe takes all places alike
