"""The training step of each method on a flow model whose best answer is known (support.toy_rl)."""

import functools
import json

import pytest
import torch
from PIL import Image

from idcrafter.rollouts import record
from idcrafter.rollouts.record import read_tensors
from idcrafter.sampling.sde import steps
from idcrafter.training.monitor import Monitor
from idcrafter.training.objectives.nft import LIMIT
from idcrafter.training.rl import RLStep, licences, train_rl
from idcrafter.training.rl_settings import METHODS, Settings
from idcrafter.training.rollout_batches import FRESH, STEPS, FreshTakes, RolloutBatches, Share
from support import toy_rl
from support.toy_rl import ToyPolicy

GROUPS, TAKES = 16, 8
SHORT = {"steps": 30, "groups": 4, "rate": 0.02}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Files are read once, and pictures of curves are small."""
    cached = functools.lru_cache(None)(_read_tensors)
    monkeypatch.setattr(record, "read_tensors", lambda path, names: cached(path, tuple(names)))
    monkeypatch.setattr("idcrafter.training.rl.draw_curves", lambda rows, steps: Image.new("RGB", (1, 1)))


def _read_tensors(path, names):
    return read_tensors(path, list(names))


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    return toy_rl.write(tmp_path_factory.mktemp("rollouts"), GROUPS, TAKES)


@pytest.fixture(scope="module")
def wan_rollouts(tmp_path_factory):
    return toy_rl.write(tmp_path_factory.mktemp("rollouts"), 6, TAKES, "Wan-SDE", 0.0, seed=2)


def train(rollouts, folder, policy=None, **changes):
    policy = ToyPolicy() if policy is None else policy
    more = {
        name: changes.pop(name)
        for name in ("monitor", "on_progress", "weights_of", "resume", "reward")
        if name in changes
    }
    result = train_rl(policy, rollouts, folder, Settings(**{**SHORT, **changes}), **more)
    return policy, result


def log_prob_gap(policy, rollouts):
    """How much more probable the policy makes the better half of the takes than the old one did, against the worse."""
    gaps = []
    for group in rollouts.groups:
        loaded = [group.load(i, ("x_t", "x_next", "log_prob")) for i in range(len(group.takes))]
        x, x_next, old = (torch.stack([each[name][0] for each in loaded]) for name in ("x_t", "x_next", "log_prob"))
        sde = group.takes[0].sde
        schedule = group.sigmas().tolist()
        sigma, lower = schedule[toy_rl.STEP], schedule[toy_rl.STEP + 1]
        step = steps.transition(sde["kind"], sigma, lower, sde["eta"], schedule)
        with torch.no_grad():
            v = policy.velocity(x.float(), torch.full((len(x),), sigma), group)
        gained = steps.log_prob(sde["kind"], x_next, step.mean(x.double(), v.double()), step.std) - old
        better = torch.from_numpy(group.totals > sorted(group.totals)[len(x) // 2 - 1])
        gaps.append(gained[better].mean() - gained[~better].mean())
    return float(torch.stack(gaps).mean())


def test_nft_reaches_the_known_optimum(rollouts, tmp_path):
    """A mean moved by E[A x0] / (A_max beta): with normalised advantages the spread of the takes, over A_max."""
    policy, result = train(rollouts, tmp_path, method="nft", steps=80, groups=8, kl=0.0, rate=0.01)
    pairs = zip(rollouts.groups, rollouts.advantages("grpo"), strict=True)
    wanted = sum(float((own * group.totals).mean()) for group, own in pairs) / len(rollouts.groups) / LIMIT
    assert policy.along == pytest.approx(wanted, rel=0.15)
    across = policy.mean.detach() - policy.along * toy_rl.direction()
    assert float(across.norm()) < 2 * policy.along  # of 71 directions, each of the size of the noise
    assert result.steps == 80 and not result.stopped and result.best is None
    assert {"loss", "deviation"} <= set(result.curve[-1]) and (tmp_path / "rl.curve.png").exists()


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.draws != FRESH])
def test_every_method_learns_and_the_control_does_not(rollouts, wan_rollouts, tmp_path, method):
    data = wan_rollouts if method == "identity_grpo" else rollouts
    settings = {"method": method, "kl": METHODS[method].kl}
    policy, _ = train(data, tmp_path / "real", **settings)
    controls = [train(data, tmp_path / f"{i}", **settings, permute=True, seed=i)[0] for i in range(2)]
    found = [control.along for control in controls]
    assert policy.along > 0.01
    assert abs(sum(found) / 2) < 0.5 * policy.along
    if METHODS[method].draws == STEPS:
        assert log_prob_gap(policy, data) > 0
        assert log_prob_gap(policy, data) > 2 * max(abs(log_prob_gap(control, data)) for control in controls)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.draws == STEPS])
@pytest.mark.parametrize("kind", ["Flow-SDE", "Wan-SDE", "CPS"])
def test_the_ratio_is_one_before_the_first_update(tmp_path, method, kind):
    data = toy_rl.write(tmp_path, 2, 4, kind, steps.KINDS[kind].eta or 0.0)
    settings = Settings(method, groups=2, takes=4)
    policy = ToyPolicy()
    step = RLStep(RolloutBatches(data, settings.plan()), settings, policy.noising)
    if (method, kind) == ("grpo_guard", "CPS"):
        with pytest.raises(ValueError, match="CPS is not"):
            step(policy, 0)
        return
    for batch in step.batches.draw(0, STEPS):
        found = step.losses(policy, batch)
        assert torch.equal(found["ratio"], torch.ones(4, dtype=torch.float64))
        # The trainer's own old log-probability is the recorded one here, to the last digits.
        assert float(found["mismatch"].max()) < 1e-12
    assert set(policy.calls) == {("trained", True), ("old", True)}


def test_forward_methods_look_at_the_prompt_alone(rollouts):
    for method in ("nft", "crd", "dpo", "rwr"):
        policy = ToyPolicy()
        settings = Settings(method, groups=1, kl=0.1)
        RLStep(RolloutBatches(rollouts, settings.plan()), settings, policy.noising)(policy, 0)
        assert not any(guided for _, guided in policy.calls)
        # Old and reference are one policy here, and asked once.
        assert [name for name, _ in policy.calls] == ["trained", "reference" if method == "rwr" else "old"]


def test_ipro_climbs_the_reward_of_takes_that_it_makes(rollouts, tmp_path):
    seen = []

    def reward(policy, clips, group):
        seen.append((group.name, clips.detach()))
        return (clips * toy_rl.direction()).flatten(1).sum(1)

    policy, result = train(rollouts, tmp_path / "free", method="ipro", kl=0.0, reward=reward)
    assert policy.along > 0.3 and set(policy.calls) >= {("trained", True), ("reference", True)}
    assert result.curve[-1]["reward"] > result.curve[0]["reward"]
    # New takes each time, of all groups in turn.
    assert not torch.equal(seen[0][1], seen[-1][1]) and len({name for name, _ in seen[:GROUPS]}) == GROUPS
    held, _ = train(rollouts, tmp_path / "held", method="ipro", kl=100.0, reward=reward)
    assert 0 < held.along < policy.along / 3


def test_ipro_looks_at_no_rewards_of_the_rollouts(tmp_path):
    data = toy_rl.write(tmp_path / "one", 2, 4)
    batches = FreshTakes(data, Settings("ipro", groups=2, takes=3).plan())
    for n in range(2):
        drawn = batches.draw(n)
        assert {batch.group.name for batch in drawn} == {group.name for group in data.groups}
        assert all(batch.noise.shape == (3, *toy_rl.SHAPE) for batch in drawn)
        assert all(torch.equal(a.noise, b.noise) for a, b in zip(drawn, batches.draw(n), strict=True))
    whole, halves = (
        batches.draw(3, part=(0, 1)),
        [FreshTakes(data, Settings("ipro", groups=1).plan()).draw(3, part=(i, 2)) for i in range(2)],
    )
    assert [half[0].group.name for half in halves] == [batch.group.name for batch in whole]


def test_dpo_prefers(rollouts, tmp_path):
    _, result = train(rollouts, tmp_path, method="dpo", takes=4, steps=60)
    assert result.curve[0]["loss"] == pytest.approx(0.6931, abs=0.01)
    last = result.curve[-10:]
    assert sum(row["preferred"] for row in last) / len(last) > 0.85


@pytest.mark.parametrize("method", ["nft", "grpo", "crd", "rwr"])
def test_the_kl_term_holds_the_policy(rollouts, tmp_path, method):
    free, _ = train(rollouts, tmp_path / "free", method=method, kl=0.0)
    held, _ = train(rollouts, tmp_path / "held", method=method, kl=1e5)
    assert abs(held.along) < 0.1 * free.along


def test_beta_is_the_inverse_of_the_step(rollouts, tmp_path):
    wide, _ = train(rollouts, tmp_path / "wide", beta=1.0, steps=100, kl=0.0)
    narrow, _ = train(rollouts, tmp_path / "narrow", beta=4.0, steps=100, kl=0.0)
    assert narrow.along == pytest.approx(wide.along / 4, rel=0.35)


def test_micro_batches_add_up(rollouts):
    """Groups one after the other give the gradient of all at once."""
    settings = Settings("nft", groups=3, takes=4)
    batches = RolloutBatches(rollouts, settings.plan())
    policy = ToyPolicy()
    step = RLStep(batches, settings, policy.noising)
    found = step(policy, 0)
    found["loss"].backward()
    whole = ToyPolicy()
    loss = sum(step.losses(whole, batch)["loss"].mean() for batch in batches.draw(0)) / 3
    loss.backward()
    torch.testing.assert_close(policy.mean.grad, whole.mean.grad)
    torch.testing.assert_close(found["loss"], loss)


def test_flash_grpo_balances_steps_of_different_noise(tmp_path, monkeypatch):
    """Its micro-batches count by lambda over its mean, the plain method's all alike."""
    from idcrafter.rollouts import dataset

    for place in (1, 2):
        monkeypatch.setattr(toy_rl, "STEP", place)
        toy_rl.write(tmp_path, 1, 4, seed=place)
    data = dataset.load(tmp_path)
    settings = Settings("flash_grpo", groups=2, takes=4, advantage="grpo")
    batches = RolloutBatches(data, settings.plan())
    drawn = batches.draw(0, STEPS)
    lambdas = [batch.step.std / abs(batch.step.v_share) for batch in drawn]
    assert lambdas[0] != pytest.approx(lambdas[1], rel=0.05)
    policy, plain = ToyPolicy(), ToyPolicy()
    step = RLStep(batches, settings, policy.noising)
    step(policy, 0)["loss"].backward()
    each = [step.losses(plain, batch)["loss"].mean() for batch in drawn]
    (sum(a * b for a, b in zip(lambdas, each, strict=True)) / sum(lambdas)).backward()
    torch.testing.assert_close(policy.mean.grad, plain.mean.grad)


def test_weights_say_where_is_learnt(rollouts, tmp_path):
    """What is shown in rows that count nothing leaves no gradient."""
    weights = torch.ones(1, 2, 3, 3)
    weights[:, :, 0] = 0
    for method in ("nft", "dpo", "flash_grpo"):
        policy, _ = train(rollouts, tmp_path / method, method=method, steps=5, weights_of=lambda g, t: weights, kl=0.0)
        assert not policy.mean.detach()[:, :, 0].any() and policy.mean.detach()[:, :, 1:].all()


def test_rewards_at_their_noise_levels(rollouts):
    settings = Settings("nft", groups=2, shares=(Share("reward", 1.0, 0.0, 0.4), Share("other", 1.0, 0.2, 0.6)))
    policy = ToyPolicy()
    step = RLStep(RolloutBatches(rollouts, settings.plan()), settings, policy.noising)
    low, high = step.range
    assert low == pytest.approx(0.0, abs=2e-3) and high == pytest.approx(0.6, abs=2e-3)
    shifted = toy_rl.FlowNoising()
    shifted.shift = 5.0
    low, high = RLStep(RolloutBatches(rollouts, settings.plan()), settings, shifted).range
    assert shifted.levels(torch.tensor(high), 5.0) == pytest.approx(0.6, abs=5e-3)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [{"method": "nft"}, {"method": "flash_grpo"}, {"method": "nft", "old": "average"}, {"method": "dpo", "takes": 4}],
    ids=["nft", "flash_grpo", "average", "dpo"],
)
def test_a_resumed_training_equals_an_uninterrupted_one(rollouts, tmp_path, changes):
    def measure(policy, n):
        return policy.along

    monitor = Monitor("monitor", measure, every=6, patience=50)
    whole, one = train(rollouts, tmp_path / "whole", **changes, steps=30, monitor=monitor)

    def stop_at(n):
        def stop(done, what):
            if done == n:
                raise Interrupt

        return stop

    for n in (7, 18):
        with pytest.raises(Interrupt):
            train(rollouts, tmp_path / "parts", **changes, steps=30, monitor=monitor, on_progress=stop_at(n))
    resumed, two = train(rollouts, tmp_path / "parts", **changes, steps=30, monitor=monitor)
    assert float((resumed.mean - whole.mean).detach().abs().max()) <= 1e-6
    assert whole.mean.detach().any() and one.best == two.best and one.steps == two.steps
    rows = [(tmp_path / name / "rl.monitor.jsonl").read_text() for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 5
    curves = [[{k: v for k, v in row.items() if k != "seconds"} for row in each.curve] for each in (one, two)]
    assert curves[0] == curves[1]


def test_another_training_is_not_resumed(rollouts, wan_rollouts, tmp_path):
    train(rollouts, tmp_path, steps=2)
    with pytest.raises(ValueError, match="another training: beta"):
        train(rollouts, tmp_path, steps=2, beta=0.5)
    with pytest.raises(ValueError, match="another training: data"):
        train(wan_rollouts, tmp_path, steps=2)
    train(rollouts, tmp_path, steps=2, beta=0.5, resume=False)


def test_the_monitor_stops_and_keeps_the_best(rollouts, tmp_path):
    seen = []

    def measure(policy, n):
        seen.append((n, policy.mean.detach().clone()))
        return {5: 0.1, 10: 0.4, 15: 0.3, 20: 0.35}.get(n, 0.0)

    monitor = Monitor("monitor", measure, every=5, patience=2)
    policy, result = train(rollouts, tmp_path, steps=60, monitor=monitor)
    assert (result.steps, result.stopped, result.best) == (20, True, {"step": 10, "value": 0.4})
    assert [n for n, _ in seen] == [5, 10, 15, 20]
    assert torch.equal(policy.mean.detach(), seen[1][1])
    again, later = train(rollouts, tmp_path, steps=60, monitor=monitor)
    assert len(seen) == 4 and later.stopped and later.best == result.best
    assert torch.equal(again.mean.detach(), policy.mean.detach())
    rows = [json.loads(row) for row in (tmp_path / "rl.monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]


def test_a_monitor_that_is_rewarded_is_refused(tmp_path):
    reward = {"terms": {"identity": {"weight": 1.0}, "motion": {"weight": 0.0}}}
    data = toy_rl.write(tmp_path, 2, 4, reward=reward)
    monitor = Monitor("identity", lambda policy, n: 0.0)
    with pytest.raises(ValueError, match="monitor 'identity' is part of the reward"):
        train(data, tmp_path / "work", monitor=monitor)
    train(data, tmp_path / "work", steps=1, monitor=Monitor("motion", lambda policy, n: 0.0))
    plain = toy_rl.write(tmp_path / "plain", 2, 4)
    with pytest.raises(ValueError, match="monitor 'score' is part"):
        train(plain, tmp_path / "other", monitor=Monitor("score", lambda policy, n: 0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ppo"}, "method 'ppo' is unknown"),
        ({"steps": 0}, "0 steps train nothing"),
        ({"method": "crd", "takes": 1}, "at least 2 of a group"),
        ({"method": "grpo", "shares": (Share("reward"),)}, "recorded steps"),
        ({"beta": 0.0}, "beta of DiffusionNFT is 0"),
        ({"advantage": "median"}, "advantage is one of"),
        ({"old": "new"}, "old policy is one of"),
        ({"low": 0.8, "high": 0.2}, "no range"),
        ({"method": "ipro", "permute": True}, "IPRO follows the gradient"),
        ({"method": "ipro", "weights": (("motion", 1.0),)}, "IPRO follows the gradient"),
    ],
)
def test_settings_that_make_no_training(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_the_recipe_is_identity_grpos(wan_rollouts, tmp_path, caplog):
    settings = Settings.identity_grpo_recipe(steps=7)
    assert (settings.groups, settings.takes, settings.steps) == (16, 8, 7)
    assert (settings.number("rate"), settings.number("kl"), settings.number("clip")) == (1e-4, 0.004, 1e-3)
    assert settings.plan().first_steps_only and settings.plan().advantage == "identity_grpo"
    with caplog.at_level("INFO", logger="idcrafter.training"):
        train(wan_rollouts, tmp_path, method="identity_grpo", steps=1, groups=1)
    assert "not collected as Identity-GRPO collects them" in caplog.text
    assert "steps: 4, not 25; guidance: 5.0, not 4.5" in caplog.text


def test_licences_travel(rollouts):
    assert licences(rollouts) == "Apache-2.0"
