"""The formulas of random steps against the published ones, written down anew in float64, and what they imply."""

import math
import sys

import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.sampling.sde import steps
from support.sources import imports, pack_files

SCHEDULE = [1.0, 0.9757, 0.9413, 0.8889, 0.8005, 0.616, 0.0]  # Wan's shift 8 in six steps
PAIRS = list(zip(SCHEDULE[:-1], SCHEDULE[1:], strict=True))
ETAS = {"Flow-SDE": (0.7, 0.9), "Wan-SDE": (0.0,), "CPS": (0.3, 0.8, 1.0), "Dance": (0.25, 0.3), "SAGE": (0.5, 1.0)}
CASES = [(kind, eta, pair) for kind, etas in ETAS.items() for eta in etas for pair in PAIRS]


def published(kind, x, v, t, t_next, eta, schedule):
    """(mean, std) as the papers and their code state them, t for the noise level."""
    dt = t_next - t
    if kind in ("Flow-SDE", "Wan-SDE"):
        if kind == "Flow-SDE":  # sigma_t = a sqrt(t / (1 - t)); at t = 1 the code puts sigmas[1] into the denominator
            sigma_t = eta * math.sqrt(t / (1 - (schedule[1] if t == 1 else t)))
        else:
            sigma_max, sigma_min = schedule[1], schedule[-1]
            sigma_t = sigma_min + (sigma_max - sigma_min) * t
        mean = x + (v + sigma_t**2 / (2 * t) * (x + (1 - t) * v)) * dt
        return mean, sigma_t * math.sqrt(abs(dt))
    if kind == "Dance":  # dz = (u - eps^2 / 2 score) dt + eps dw, with the score of N((1 - t) x0, t^2)
        score = -(x - (1 - t) * (x - t * v)) / t**2
        return x + (v - 0.5 * eta**2 * score) * dt, eta * math.sqrt(t - t_next)
    if kind == "SAGE":
        variance = eta**2 * (-(t - t_next) + math.log((1 - t_next) / (1 - min(t, 1 - 3e-3))))
        score = -(x - (1 - t) * (x - t * v)) / t**2
        return x + v * dt + 0.5 * variance * score, math.sqrt(variance)
    sigma_t = t_next * math.sin(eta * math.pi / 2)
    x0, x1 = x - t * v, x + (1 - t) * v
    return (1 - t_next) * x0 + math.sqrt(t_next**2 - sigma_t**2) * x1, sigma_t


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "eta", "pair"), CASES)
def test_a_step_and_its_log_probability_are_the_published_ones(kind, eta, pair):
    x, v, noise = drawn(2, 3, 4, seed=1), drawn(2, 3, 4, seed=2), drawn(2, 3, 4, seed=3)
    step = steps.transition(kind, *pair, eta, SCHEDULE)
    mean, std = published(kind, x, v, *pair, eta, SCHEDULE)
    assert torch.allclose(step.mean(x, v), mean, rtol=1e-12, atol=1e-12)
    assert step.std == pytest.approx(std, rel=1e-12)
    if std == 0:
        return
    x_next = mean + std * noise
    got = steps.log_prob(kind, x_next, mean, std)
    if kind == "CPS":
        wanted = [-((a - b) ** 2).mean() for a, b in zip(x_next, mean, strict=True)]
    else:
        wanted = [scipy.stats.norm.logpdf(a, b, std).mean() for a, b in zip(x_next, mean, strict=True)]
    assert got.dtype == torch.float64 and got.shape == (2,)
    assert got.tolist() == pytest.approx([float(value) for value in wanted], rel=1e-12)


def test_the_last_step_is_random_in_every_formula_but_cps():
    """They say so; it is the sampler that leaves it out."""
    stds = {kind: steps.transition(kind, 0.616, 0.0, etas[0], SCHEDULE).std for kind, etas in ETAS.items()}
    assert stds.pop("CPS") == 0
    assert min(stds.values()) > 0.1


@pytest.mark.parametrize("kind", ["Flow-SDE", "CPS", "Dance", "SAGE"])
@given(pair=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] - pair[1] > 1e-6))
@settings(max_examples=30, deadline=None)
def test_without_noise_it_is_the_euler_step(kind, pair):
    step = steps.transition(kind, *pair, 0.0, [*pair])
    assert step.std == 0
    assert step.x_share == pytest.approx(1, abs=1e-12)
    assert step.v_share == pytest.approx(pair[1] - pair[0], abs=1e-12)


@given(
    pair=st.tuples(st.floats(1e-3, 1), st.floats(0, 1)).filter(lambda pair: pair[0] > pair[1]),
    eta=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_cps_keeps_the_shares_of_clip_and_noise(pair, eta):
    """x_next = (1 - sigma_next) x0 + noise of variance sigma_next^2, whatever eta is."""
    sigma, sigma_next = pair
    step = steps.transition("CPS", sigma, sigma_next, eta, SCHEDULE)
    clip = step.x_share * (1 - sigma) - step.v_share
    noise = step.x_share * sigma + step.v_share
    assert clip == pytest.approx(1 - sigma_next, abs=1e-12)
    assert noise**2 + step.std**2 == pytest.approx(sigma_next**2, abs=1e-12)


def test_the_other_kinds_do_not_keep_them():
    """What CPS was made for: a long Flow-SDE step leaves more noise than the next level expects."""
    sigma, sigma_next = 0.8005, 0.616
    step = steps.transition("Flow-SDE", sigma, sigma_next, 0.7, SCHEDULE)
    assert (step.x_share * sigma + step.v_share) ** 2 + step.std**2 > 1.05 * sigma_next**2


@pytest.mark.parametrize("kind", ["Flow-SDE", "Wan-SDE", "Dance", "SAGE", "CPS"])
def test_many_small_steps_keep_the_marginals_of_the_flow(kind):
    """On x0 ~ N(2, 0.5^2), whose velocity is known and linear: mean and variance are exact at every step."""
    centre, spread, eta = 2.0, 0.5, steps.KINDS[kind].eta or 0.0
    if kind == "CPS":
        eta = 0.05  # as a share of each step, of which there are many
    levels = torch.linspace(0.99, 0.02, 4000, dtype=torch.float64).tolist()
    mean, variance = 0.01 * centre, (0.01 * spread) ** 2 + 0.99**2
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        # E[x1 - x0 | x] = gain x + offset for Gaussian x0 and x1
        total = ((1 - sigma) * spread) ** 2 + sigma**2
        gain = (sigma - (1 - sigma) * spread**2) / total
        offset = -centre - gain * (1 - sigma) * centre
        step = steps.transition(kind, sigma, sigma_next, eta, levels)
        slope = step.x_share + step.v_share * gain
        mean, variance = slope * mean + step.v_share * offset, slope**2 * variance + step.std**2
    assert mean == pytest.approx(0.98 * centre, rel=2e-3)
    assert variance == pytest.approx((0.98 * spread) ** 2 + 0.02**2, rel=1e-2)


def test_sage_is_flow_sdes_noise_integrated_over_the_step():
    for sigma, sigma_next in PAIRS[1:]:
        energy, _ = scipy.integrate.quad(lambda s: 0.7**2 * s / (1 - s), sigma_next, sigma)
        assert steps.transition("SAGE", sigma, sigma_next, 0.7, SCHEDULE).std ** 2 == pytest.approx(energy, rel=1e-9)
        coarse = steps.transition("Flow-SDE", sigma, sigma_next, 0.7, SCHEDULE).std
        assert coarse**2 > energy  # an Euler step takes the noise of the step's beginning throughout


@pytest.mark.parametrize("kind", list(steps.KINDS))
@pytest.mark.parametrize("sigma_next", [0.99999, 0.9975, 0.9757, 0.5, 0.0])
def test_a_first_step_from_sigma_one_is_finite(kind, sigma_next):
    eta = steps.KINDS[kind].eta or 0.0
    step = steps.transition(kind, 1.0, sigma_next, eta, [1.0, sigma_next, 0.0])
    assert all(map(math.isfinite, (step.x_share, step.v_share, step.std)))
    if kind == "SAGE" and sigma_next > steps.SAGE_CEILING:
        assert step.std == 0  # upstream's root of a negative number
    elif kind == "Flow-SDE":
        assert step.std == pytest.approx(0.7)  # eta sqrt(1 / (1 - sigma_next)) sqrt(1 - sigma_next)


def test_log_probability_of_a_row_does_not_depend_on_its_neighbours():
    mean, x_next = drawn(5, 16, 3, 7, 9, seed=4), drawn(5, 16, 3, 7, 9, seed=5)
    together = steps.log_prob("Dance", x_next, mean, 0.3)
    alone = torch.cat([steps.log_prob("Dance", x_next[k : k + 1], mean[k : k + 1], 0.3) for k in range(5)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", list(steps.KINDS))
def test_the_gradient_in_the_velocity_is_the_analytic_one(kind):
    eta = steps.KINDS[kind].eta or 0.0
    step = steps.transition(kind, 0.8, 0.6, eta, SCHEDULE)
    with torch.inference_mode(False):
        x, x_next, v = drawn(1, 4, seed=6), drawn(1, 4, seed=7), drawn(1, 4, seed=8).requires_grad_()
        mean = step.mean(x, v)
        steps.log_prob(kind, x_next, mean, step.std).sum().backward()
    scale = step.v_share / step.std**2 if kind != "CPS" else 2 * step.v_share
    assert torch.allclose(v.grad, scale * (x_next - mean.detach()) / 4, rtol=1e-10)


def test_what_cannot_be_a_step_is_refused():
    with pytest.raises(ValueError, match="no kind of random step named 'Ito'; choose one of Flow-SDE, Wan-SDE"):
        steps.transition("Ito", 0.5, 0.4, 0.1, SCHEDULE)
    for pair in ((0.5, 0.5), (0.4, 0.5), (1.2, 0.5), (0.5, -0.1), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="down to a lower one"):
            steps.transition("Dance", *pair, 0.1, SCHEDULE)
    for kind, eta in (("Dance", -0.1), ("CPS", 1.01), ("SAGE", math.nan)):
        with pytest.raises(ValueError, match=f"eta of {kind} lies between 0 and"):
            steps.transition(kind, 0.5, 0.4, eta, SCHEDULE)
    with pytest.raises(ValueError, match="without noise has no log-probability"):
        steps.log_prob("CPS", torch.zeros(1, 2), torch.zeros(1, 2), 0.0)


def test_formulas_and_records_need_no_comfyui():
    """A trainer uses them without it."""
    files = {file.name: file for file in pack_files("idcrafter/sampling/sde")}
    assert {"steps.py", "record.py", "sampler.py", "replay.py"} <= set(files)
    for name in ("steps.py", "record.py", "__init__.py"):
        assert {entry.package for entry in imports(files[name])} <= {"", *sys.stdlib_module_names, "torch"}
