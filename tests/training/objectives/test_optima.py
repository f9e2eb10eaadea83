"""What the objectives lead to, where that is known: Gaussian clips, see support.toy_rl."""

import numpy
import pytest
import torch

from idcrafter.training.objectives import ipro, nft, rwr
from idcrafter.training.objectives.weighting import velocity_gap
from support import toy_rl
from support.toy_rl import SHAPE, S, direction, velocity

COUNT = 3000


def draw(seed=0):
    """Clips of the old policy with their noise, levels and advantages: linear in the reward, of standard deviation 1.
    And how much each counts."""
    generator = torch.Generator().manual_seed(seed)
    x0 = S * torch.randn((COUNT, *SHAPE), generator=generator)
    eps = torch.randn((COUNT, *SHAPE), generator=generator)
    sigma = torch.rand(COUNT, generator=generator) * 0.9 + 0.05
    return x0, eps, sigma, (x0 * direction()).flatten(1).sum(1) / S, torch.full((COUNT,), 1 / COUNT)


def quadrature(levels=(0.1, 0.4, 0.7, 0.95)):
    """The same without chance: Gauss and Hermite's points along the direction, which is all that the optimum is about.
    Exact, because the losses are polynomials of the clip and the noise."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(16)
    points = torch.tensor(nodes, dtype=torch.float32)
    weights = torch.tensor(weights / weights.sum(), dtype=torch.float32)
    clip, noise, sigma = (
        each.flatten() for each in torch.meshgrid(points, points, torch.tensor(levels), indexing="ij")
    )
    count = (weights[:, None, None] * weights[None, :, None]).expand(16, 16, len(levels)).flatten() / len(levels)
    along = direction().expand(len(clip), *SHAPE)
    x0, eps = (each.view(-1, 1, 1, 1, 1) * along for each in (S * clip, noise))
    return x0, eps, sigma, clip, count


def minimise(loss, mean):
    optimiser = torch.optim.LBFGS([mean], max_iter=30, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    return mean.detach()


def nft_optimum(drawn, beta=1.0, kl=0.0, normalised=False):
    x0, eps, sigma, advantages, count = drawn
    noisy = toy_rl.FlowNoising().noised(x0, eps, sigma)
    old = velocity(noisy, sigma, torch.zeros(SHAPE))
    mean = torch.zeros(SHAPE, requires_grad=True)

    def loss():
        new = velocity(noisy, sigma, mean)
        value = nft.nft_loss(new, old, eps - x0, sigma, advantages, beta=beta, normalised=normalised)["loss"]
        return ((value + kl * velocity_gap(new, old)) * count).sum()

    return minimise(loss, mean)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_nft_reaches_its_closed_form(beta):
    """d* = E[(2 r - 1) (u - v_old) | x_t] / beta is, for a linear reward, a mean moved by S / (A_max beta)."""
    found = nft_optimum(quadrature(), beta)
    torch.testing.assert_close(found, S / (nft.LIMIT * beta) * direction(), rtol=2e-3, atol=1e-4)


def test_nft_reaches_it_from_samples_and_with_its_norms():
    for normalised in (False, True):
        found = nft_optimum(draw(), normalised=normalised)
        along = float((found * direction()).sum())
        assert along == pytest.approx(S / nft.LIMIT, rel=0.2)
        assert float((found - along * direction()).pow(2).mean().sqrt()) < 0.1 * along


def test_nft_with_permuted_advantages_stays_where_it_is():
    found = []
    for seed in range(3):
        x0, eps, sigma, advantages, count = draw(seed)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
        found.append(float((nft_optimum((x0, eps, sigma, advantages[order], count)) * direction()).sum()))
    # A difference of means of that many takes, and then some for the noise that is added to them.
    assert max(map(abs, found)) < 4 * 2 * S / nft.LIMIT / COUNT**0.5


@pytest.mark.parametrize("kl", [0.0, 2.0, 1e6])
def test_the_kl_term_limits_nft_as_it_should(kl):
    """At one level: d = A_max sigma^2 E[..] / (A_max beta sigma^2 + kl)."""
    sigma, beta = 0.6, 0.5
    free, held = (nft_optimum(quadrature((sigma,)), beta, each) for each in (0.0, kl))
    share = nft.LIMIT * beta * sigma**2 / (nft.LIMIT * beta * sigma**2 + kl)
    torch.testing.assert_close(held, free * share, rtol=1e-2, atol=1e-4)


def test_rwr_reaches_the_tilted_distribution():
    """Clips weighted by exp(A / temperature), with A linear, are Gaussian with a mean moved by S / temperature."""
    x0, eps, sigma, advantages, count = quadrature()
    noisy = toy_rl.FlowNoising().noised(x0, eps, sigma)
    mean = torch.zeros(SHAPE, requires_grad=True)

    def loss():
        new = velocity(noisy, sigma, mean)
        return (rwr.rwr_loss(new, eps - x0, advantages, temperature=2.0)["loss"] * count).sum()

    torch.testing.assert_close(minimise(loss, mean), S / 2.0 * direction(), rtol=1e-2, atol=1e-3)


def test_ipro_follows_the_gradient_of_the_sampler():
    sigmas = [1.0, 0.7, 0.4, 0.1, 0.0]
    noise = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pull = direction(torch.float64)

    def reward(x):
        return (x * pull).flatten(1).sum(1)

    def sample(mean, first=None):
        x = noise
        for i, (sigma, lower) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            own = mean if first is None or i >= first else torch.zeros_like(mean)
            x = x + (lower - sigma) * velocity(x, torch.full((3,), sigma, dtype=torch.float64), own)
        return x

    for last in (4, 2, 1):
        mean = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
        found = ipro.ipro_loss(
            lambda x, sigma, mean=mean: velocity(x, sigma, mean),
            lambda x, sigma: velocity(x, sigma, torch.zeros(SHAPE, dtype=torch.float64)),
            noise, sigmas, reward, last=last, kl=0.3,
        )  # fmt: skip
        found["loss"].mean().backward()
        step = 1e-4 * pull
        slope = (reward(sample(step, 4 - last)) - reward(sample(-step, 4 - last))).mean() / 2e-4
        assert float((-mean.grad * pull).sum()) == pytest.approx(float(slope), rel=1e-5)
        assert not found["kl"].any()
    with pytest.raises(ValueError, match="last 1 to 4 steps, not 5"):
        ipro.ipro_loss(None, None, noise, sigmas, reward, last=5)
