"""Every objective against a plain transcription of its formula in float64."""

import math

import pytest
import torch

from idcrafter.sampling.sde.steps import KINDS, log_prob, transition
from idcrafter.training.objectives import crd, dpo, grpo, identity_grpo, nft, rwr
from idcrafter.training.objectives.weighting import row_mean, velocity_gap

B, SHAPE = 4, (3, 2, 2, 5)
SCHEDULE = [1.0, 0.9, 0.7, 0.4, 0.0]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def setting():
    x0, eps = noise(B, *SHAPE, seed=1), noise(B, *SHAPE, seed=2)
    sigma = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    return {
        "x0": x0,
        "eps": eps,
        "sigma": sigma,
        "v": noise(B, *SHAPE, seed=3),
        "old": noise(B, *SHAPE, seed=4),
        "u": eps - x0,
        "A": torch.tensor([1.5, -7.0, 0.0, 4.0], dtype=torch.float64),
        "w": noise(B, 1, *SHAPE[1:], seed=5).abs() + 0.1,
    }


def mean(values, weights=None):
    """Of one take, value by value."""
    if weights is None:
        return sum(float(v) for v in values.flatten()) / values.numel()
    weights = weights.expand_as(values).flatten()
    return sum(float(v * w) for v, w in zip(values.flatten(), weights, strict=True)) / float(weights.sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft(setting, weighted, normalised, beta):
    s, limit = setting, 5.0
    found = nft.nft_loss(
        s["v"], s["old"], s["u"], s["sigma"], s["A"], beta=beta, weights=s["w"] if weighted else None,
        normalised=normalised,
    )  # fmt: skip
    for i in range(B):
        w = s["w"][i] if weighted else None
        sigma = float(s["sigma"][i])
        x_t = (1 - sigma) * s["x0"][i] + sigma * s["eps"][i]
        r = min(max((min(max(float(s["A"][i]), -limit), limit) / limit) / 2 + 0.5, 0), 1)
        plus = beta * s["v"][i] + (1 - beta) * s["old"][i]
        minus = (1 + beta) * s["old"][i] - beta * s["v"][i]
        total = 0.0
        for share, prediction in ((r, plus), (1 - r, minus)):
            away = x_t - sigma * prediction - s["x0"][i]
            factor = max(mean(away.abs(), w), 1e-5) if normalised else 1.0
            total += share * mean(away**2, w) / factor / beta
        assert float(found["loss"][i]) == pytest.approx(total * limit, rel=1e-10)
        assert float(found["deviation"][i]) == pytest.approx(mean((s["v"][i] - s["old"][i]) ** 2, w), rel=1e-10)


def test_nft_gives_the_old_policy_no_gradient_and_scales_none_through_its_norms(setting):
    s = setting
    v, old = s["v"].clone().requires_grad_(), s["old"].clone().requires_grad_()
    nft.nft_loss(v, old, s["u"], s["sigma"], s["A"])["loss"].sum().backward()
    assert old.grad is None
    # By hand: the norms are constants.
    i, sigma = 0, 0.1
    r = 1.5 / 10 + 0.5
    plus, minus = s["v"][i] - s["u"][i], 2 * s["old"][i] - s["v"][i] - s["u"][i]
    by_hand = r * plus / (sigma * plus).abs().mean() - (1 - r) * minus / (sigma * minus).abs().mean()
    torch.testing.assert_close(v.grad[i], 5 * 2 * sigma**2 * by_hand / plus.numel())


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_with_weights(kind):
    step = transition(kind, 0.9, 0.7, KINDS[kind].eta or 0.0, SCHEDULE)
    x_next, centre = noise(B, *SHAPE, seed=6), noise(B, *SHAPE, seed=7)
    assert torch.equal(grpo.step_log_prob(kind, x_next, centre, step.std), log_prob(kind, x_next, centre, step.std))
    even = grpo.step_log_prob(kind, x_next, centre, step.std, torch.full((B, 1, 1, 1, 1), 3.0))
    torch.testing.assert_close(even, log_prob(kind, x_next, centre, step.std), rtol=1e-12, atol=0)
    weights = noise(B, 1, *SHAPE[1:], seed=8).abs()
    weights[:, :, 0] = 0  # leading references
    found = grpo.step_log_prob(kind, x_next, centre, step.std, weights)
    for i in range(B):
        square = mean((x_next[i] - centre[i]) ** 2, weights[i])
        wanted = -square
        if KINDS[kind].gaussian:
            wanted = -square / (2 * step.std**2) - math.log(step.std) - 0.5 * math.log(2 * math.pi)
        assert float(found[i]) == pytest.approx(wanted, rel=1e-10)
    moved = x_next.clone()
    moved[:, :, 0] += 5
    assert torch.equal(grpo.step_log_prob(kind, moved, centre, step.std, weights), found)


def ppo(advantage, ratio, clip):
    advantage = min(max(advantage, -5.0), 5.0)
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip))


def test_grpo():
    new = torch.tensor([-1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    old = new - torch.tensor([5e-4, -5e-4, 5e-3, -5e-3], dtype=torch.float64)
    advantages = torch.tensor([2.0, -9.0, 1.0, 1.0], dtype=torch.float64)
    found = grpo.grpo_loss(new, old, advantages, clip=1e-3)
    for i in range(B):
        ratio = math.exp(float(new[i] - old[i]))
        assert float(found["ratio"][i]) == pytest.approx(ratio, rel=1e-12)
        assert float(found["loss"][i]) == pytest.approx(ppo(float(advantages[i]), ratio, 1e-3), rel=1e-12)
    assert found["clipped"].tolist() == [0, 0, 1, 1]


def test_the_ratio_of_equal_policies_is_one():
    log_probs = noise(B, seed=3)
    for advantages in (noise(B, seed=4), torch.zeros(B)):
        found = grpo.grpo_loss(log_probs, log_probs.clone(), advantages)
        assert torch.equal(found["ratio"], torch.ones(B, dtype=torch.float64))
    centre = noise(B, *SHAPE)
    found = grpo.guard_loss("Flow-SDE", log_probs, log_probs, centre, centre, 0.3, -0.1, advantages)
    assert torch.equal(found["ratio"], torch.ones(B, dtype=torch.float64))


def test_guard():
    step = transition("Flow-SDE", 0.9, 0.7, 0.7, SCHEDULE)
    centre, old, x_next = (noise(B, *SHAPE, seed=i) * 0.01 for i in (1, 2, 3))
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    log_probs, old_log_probs = (log_prob("Flow-SDE", x_next, each, step.std) for each in (centre, old))
    found = grpo.guard_loss("Flow-SDE", log_probs, old_log_probs, centre, old, step.std, -0.2, advantages, clip=1e-4)
    for i in range(B):
        # Gaussians: log p - log p_old + bias = (x' - old) (mean - old) / std^2, whose mean over x' is 0.
        plain = mean((x_next[i] - old[i]) * (centre[i] - old[i])) / step.std**2
        ratio = math.exp(plain * step.std)
        assert float(found["ratio"][i]) == pytest.approx(ratio, rel=1e-9)
        assert float(found["loss"][i]) == pytest.approx(ppo(float(advantages[i]), ratio, 1e-4) / 0.2, rel=1e-9)
    with pytest.raises(ValueError, match="CPS is not"):
        grpo.guard_loss("CPS", log_probs, old_log_probs, centre, old, 0.3, -0.2, advantages)


def test_guard_centres_the_ratio():
    """Of takes that the old policy makes, the plain log-ratio's mean is below 0 and the corrected one's is 0."""
    std, old = 0.4, noise(1, *SHAPE, seed=5)
    centre = old + 0.3 * noise(1, *SHAPE, seed=6)
    x_next = old + std * noise(3_000, *SHAPE, seed=7)
    new_p, old_p = (log_prob("Flow-SDE", x_next, each.expand_as(x_next), std) for each in (centre, old))
    advantages = torch.zeros(len(x_next))
    shape = x_next.shape
    found = grpo.guard_loss("Flow-SDE", new_p, old_p, centre.expand(shape), old.expand(shape), std, -0.1, advantages)
    centred = found["ratio"].log() / std
    plain = new_p - old_p
    error = float(plain.std()) / len(plain) ** 0.5
    assert float(plain.mean()) < -20 * error
    assert abs(float(centred.mean())) < 4 * error


def test_flash_weights_are_the_published_table():
    """Shift 3, 20 steps of diffusers' UniPC flow schedule; the table is in Flash-GRPO's training script."""
    table = {999: 7.4770, 982: 7.0414, 963: 6.6112, 944: 6.1867, 922: 5.7682, 899: 5.3559, 874: 4.9502, 847: 4.5513,
             817: 4.1596, 785: 3.7754}  # fmt: skip
    alphas = torch.linspace(1, 1 / 1000, 21, dtype=torch.float64)
    sigmas = 1 - alphas
    sigmas = (3 * sigmas / (1 + 2 * sigmas)).flip(0)[:-1]
    schedule = [*sigmas.tolist(), 0.0]
    found = {}
    for sigma, lower in zip(schedule[:10], schedule[1:], strict=False):
        found[int(sigma * 1000)] = round(grpo.flash_weight(transition("Wan-SDE", sigma, lower, 0.0, schedule)), 4)
    assert found == pytest.approx(table, abs=1.01e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_flash_weights_even_out_the_slope(kind):
    """|d log p / d v| times lambda is the same at every step, for a velocity error of the same kind."""
    slopes = []
    for sigma, lower in ((0.9, 0.7), (0.7, 0.4)):
        step = transition(kind, sigma, lower, KINDS[kind].eta or 0.0, SCHEDULE)
        x, v, z = noise(1, *SHAPE, seed=1), noise(1, *SHAPE, seed=2).requires_grad_(), noise(1, *SHAPE, seed=3)
        x_next = (step.mean(x, v) + step.std * z).detach()
        log_prob("Flow-SDE", x_next, step.mean(x, v), step.std).sum().backward()
        slopes.append(float(v.grad.norm()) * grpo.flash_weight(step))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-9)


def test_identity_grpo():
    step = transition("Wan-SDE", 0.9, 0.7, 0.0, SCHEDULE)
    std_dev, dt = 0.0 + (0.9 - 0.0) * 0.9, -0.2
    assert step.std == pytest.approx(std_dev * math.sqrt(-dt), rel=1e-12)
    x, x_next = noise(B, *SHAPE, seed=1), noise(B, *SHAPE, seed=2)
    v, v_old, v_ref = (noise(B, *SHAPE, seed=i) * 0.1 for i in (3, 4, 5))
    v_old = v + 0.002 * v_old
    advantages = torch.tensor([1.0, -6.0, 2.0, -2.0], dtype=torch.float64)
    centres = [step.mean(x, each) for each in (v, v_old, v_ref)]
    log_probs = [log_prob("Wan-SDE", x_next, each, step.std) for each in centres[:2]]
    found = identity_grpo.identity_grpo_loss(*log_probs, centres[0], centres[2], step.std, advantages)

    def upstream(i, velocity):
        grow = std_dev**2 / (2 * 0.9)
        centre = x[i] * (1 + grow * dt) + velocity[i] * (1 + grow * (1 - 0.9)) * dt
        sd = std_dev * math.sqrt(-dt)
        values = -((x_next[i] - centre) ** 2) / (2 * sd**2) - math.log(sd) - math.log(math.sqrt(2 * math.pi))
        return centre, mean(values)

    for i in range(B):
        (centre, new), (_, old), (reference, _) = (upstream(i, each) for each in (v, v_old, v_ref))
        kl = mean((centre - reference) ** 2) / (2 * (std_dev * math.sqrt(-dt)) ** 2)
        wanted = ppo(float(advantages[i]), math.exp(new - old), 1e-3) + 0.004 * kl
        assert float(found["loss"][i]) == pytest.approx(wanted, rel=1e-5)
        assert float(found["kl"][i]) == pytest.approx(kl, rel=1e-5)
    assert identity_grpo.trained_steps(25) == 24


def test_departures_from_the_recipe():
    shot = {
        "sde": {"kind": "Wan-SDE", "eta": 0.0},
        "steps": 25,
        "guidance": {"cfg_text": 4.5},
        "shape": [16, 11, 30, 52],
        "leading": 2,
    }
    assert identity_grpo.departures({"shot": shot}, 8) == []
    found = identity_grpo.departures({"shot": {**shot, "sde": None, "steps": 20, "shape": [16, 9, 60, 104]}}, 4)
    assert [each.split(":")[0] for each in found] == [
        "random steps", "steps", "takes of a group", "latent frames, rows and columns",
    ]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
def test_dpo(setting, weighted):
    s = setting
    found = dpo.dpo_loss(s["v"], s["old"], s["u"], beta=7.0, weights=s["w"] if weighted else None)

    def error(prediction, i):
        return mean((prediction[i] - s["u"][i]) ** 2, s["w"][i] if weighted else None)

    for pair in range(B // 2):
        w, l = pair, pair + B // 2  # noqa: E741
        inside = -0.5 * 7.0 * (
            (error(s["v"], w) - error(s["old"], w)) - (error(s["v"], l) - error(s["old"], l))
        )  # fmt: skip
        assert float(found["loss"][pair]) == pytest.approx(math.log(1 + math.exp(-inside)), rel=1e-9)
        assert bool(found["preferred"][pair]) == (inside > 0)
    same = dpo.dpo_loss(s["old"], s["old"], s["u"])
    torch.testing.assert_close(same["loss"], torch.full((2,), math.log(2), dtype=torch.float64))
    with pytest.raises(ValueError, match="3 takes are no pairs"):
        dpo.dpo_loss(s["v"][:3], s["old"][:3], s["u"][:3])


def test_rwr(setting):
    s = setting
    found = rwr.rwr_loss(s["v"], s["u"], s["A"], temperature=2.0)
    for i in range(B):
        wanted = math.exp(float(s["A"][i]) / 2.0) * mean((s["v"][i] - s["u"][i]) ** 2)
        assert float(found["loss"][i]) == pytest.approx(wanted, rel=1e-10)
    with pytest.raises(ValueError, match="temperature .* is 0"):
        rwr.rwr_loss(s["v"], s["u"], s["A"], temperature=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_crd(setting, weighted):
    s, beta = setting, 0.5
    v = s["v"].clone().requires_grad_()
    found = crd.crd_loss(v, s["old"], s["u"], s["A"], beta=beta, weights=s["w"] if weighted else None)
    implicit, rewards = [], []
    for i in range(B):
        w = s["w"][i] if weighted else None
        new, old = (each[i] - s["u"][i] for each in (s["v"], s["old"]))
        implicit.append(mean(old**2, w) / mean(old.abs(), w) - mean(new**2, w) / mean(new.abs(), w))
        rewards.append(min(max(float(s["A"][i]), -5), 5) / 10 + 0.5)
    for i in range(B):
        away = beta * (implicit[i] - sum(implicit) / B) - (rewards[i] - sum(rewards) / B)
        assert float(found["loss"][i].detach()) == pytest.approx(away**2 * 5 / beta, rel=1e-9)
        assert float(found["implicit"][i]) == pytest.approx(implicit[i], rel=1e-9)
    found["loss"][0].backward()
    assert not v.grad[1:].any()  # the mean has no gradient
    with pytest.raises(ValueError, match="at least two"):
        crd.crd_loss(s["v"][:1], s["old"][:1], s["u"][:1], s["A"][:1])


def test_half_precision_is_computed_with_in_float32(setting):
    s = {k: v.bfloat16() for k, v in setting.items()}
    exact = {k: v.float() for k, v in s.items()}
    half, full = (nft.nft_loss(e["v"], e["old"], e["u"], e["sigma"], e["A"])["loss"] for e in (s, exact))
    assert half.dtype == torch.float32 and torch.equal(half, full)
    assert velocity_gap(s["v"], s["old"]).dtype == torch.float32


def test_row_mean_ignores_the_size_of_weights(setting):
    values, weights = setting["v"], setting["w"]
    torch.testing.assert_close(row_mean(values, weights), row_mean(values, weights * 7))
    torch.testing.assert_close(row_mean(values, torch.ones(B, 1, 1, 1, 1)), row_mean(values))
