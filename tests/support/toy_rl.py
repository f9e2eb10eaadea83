"""A flow model whose best answer is known: clips are Gaussian, and what is trained is where their mean lies.

A clip's values are independent, of mean 0 and standard deviation S. The velocity of such a model is known in closed
form; one whose mean is `shift` differs from it by -shift * sigma / variance at every noise level. The reward of a clip
is its product with DIRECTION, a unit vector.
"""

from __future__ import annotations

import torch
from torch import nn

from idcrafter.rollouts.record import Sample
from idcrafter.rollouts.store import RolloutStore
from idcrafter.sampling.sde import steps

from .rollouts import POLICY, make_part

S = 0.8
SHAPE = (4, 2, 3, 3)
SIGMAS = tuple(torch.tensor([1.0, 0.85, 0.6, 0.3, 0.0]).tolist())  # as float32 has them
STEP = 1
GUIDED = {"cfg_text": 1.0}


def direction(dtype=torch.float32) -> torch.Tensor:
    """[C, T, h, w] of length 1."""
    found = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=dtype)
    return found / found.norm()


class FlowNoising:
    """What a policy's `noising` is for Wan, without ComfyUI."""

    flow, shift = True, 1.0

    def levels(self, u, shift):
        return (shift * u / (1 + (shift - 1) * u)).clamp(min=1e-3)

    def coefficients(self, sigma):
        return 1 - sigma, sigma

    def noised(self, clean, noise, sigma):
        sigma = sigma.view(-1, *[1] * (clean.ndim - 1))
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean, noise, sigma):
        return noise - clean

    def clip(self, noisy, velocity, sigma):
        return noisy - sigma.view(-1, *[1] * (noisy.ndim - 1)) * velocity

    def stepped(self, noisy, denoised, sigma, lower):
        return (1 - lower) * denoised + lower * (noisy - (1 - sigma) * denoised) / sigma


def velocity(x, sigma, mean):
    """E[noise - clip | x] for clips of this mean."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1)).to(x)
    variance = (1 - sigma) ** 2 * S**2 + sigma**2
    return (sigma - (1 - sigma) * S**2) / variance * (x - (1 - sigma) * mean) - mean


class ToyPolicy(nn.Module):
    """Trains the mean; it begins at that of the old policy."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(SHAPE))
        self.old = torch.zeros(SHAPE)
        self.noising, self.device = FlowNoising(), torch.device("cpu")
        self.calls: list[tuple[str, bool]] = []

    @property
    def old_is_reference(self):
        return not self.old.any()

    def to_model(self, latents):
        return latents

    def velocity(self, noisy, sigma, group, guided=False):
        self.calls.append(("trained", guided))
        return velocity(noisy, sigma, self.mean)

    @torch.no_grad()
    def old_velocity(self, noisy, sigma, group, guided=False):
        self.calls.append(("old", guided))
        return velocity(noisy, sigma, self.old)

    @torch.no_grad()
    def reference_velocity(self, noisy, sigma, group, guided=False):
        self.calls.append(("reference", guided))
        return velocity(noisy, sigma, torch.zeros(SHAPE))

    def follow(self, average):
        self.old = average["mean"].view(SHAPE).clone()

    @property
    def along(self) -> float:
        """How far the mean has gone towards the reward."""
        return float((self.mean.detach() * direction()).sum())


def sample(count: int, seed: int, kind: str = "Flow-SDE", eta: float = 0.7):
    """`count` takes with one random step: x0, and what the sampler would have recorded of each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, *SHAPE), generator=generator)
    recorded = {}
    for i, (sigma, lower) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        v = velocity(x, torch.full((count,), sigma), torch.zeros(SHAPE))
        if i != STEP:
            x = x + (lower - sigma) * v
            continue
        x = x.bfloat16()
        v = velocity(x.float(), torch.full((count,), sigma), torch.zeros(SHAPE))
        step = steps.transition(kind, sigma, lower, eta, SIGMAS)
        mean = step.mean(x.double(), v.double())
        x_next = (mean + step.std * torch.randn(x.shape, generator=generator, dtype=torch.float64)).bfloat16()
        log_probs = steps.log_prob(kind, x_next, mean, step.std)
        recorded = {"x_t": x, "x_next": x_next, "log_prob": log_probs}
        x = x_next.float()
    return x, recorded


def samples(count: int, seed: int, kind: str = "Flow-SDE", eta: float = 0.7, policy: str = POLICY) -> list[Sample]:
    """Scored takes of a group, "reward" their product with the direction, "other" that with its opposite half."""
    x0, recorded = sample(count, seed, kind, eta)
    found = []
    for i in range(count):
        reward = float((x0[i] * direction()).sum())
        other = float(x0[i, 0].mean())
        tensors = {name: tensor[i][None] for name, tensor in recorded.items()}
        sde = {"kind": kind, "eta": eta, "steps": [STEP]}
        found.append(
            Sample(1000 * seed + i, x0[i], {"reward": reward, "other": other}, reward, policy, 1.0, tensors, sde)
        )
    return found


def write(folder, groups: int = 16, takes: int = 8, kind: str = "Flow-SDE", eta: float = 0.7, seed: int = 1, **more):
    """A folder of rollouts, loaded."""
    from idcrafter.rollouts import dataset

    store = RolloutStore(folder)
    for i in range(groups):
        made = samples(takes, seed * 10_000 + i, kind, eta)
        store.save(make_part(made, prompt=f"shot {seed}.{i}", sigmas=torch.tensor(SIGMAS), **more))
    return dataset.load(folder)
