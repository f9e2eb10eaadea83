"""One random step of a flow model, as five papers take it, and the log-probability of what came out.

Rectified flow: x = (1 - sigma) x0 + sigma x1 with the clip x0 and the noise x1 ~ N(0, 1), and the model's velocity
v = x1 - x0, so x0 = x - sigma v and x1 = x + (1 - sigma) v. A step goes from sigma down to sigma_next with
dt = sigma_next - sigma < 0; each kind says mean and standard deviation of a Gaussian for what comes next:

    x_next = mean + std * noise,  noise ~ N(0, 1)

    kind      mean                                                  std
    Flow-SDE  x + v dt + g^2 x1 / (2 sigma) dt                      g sqrt(-dt), g = eta sqrt(sigma / (1 - sigma))
    Wan-SDE   the same                                              the same, g = last + (second - last) sigma
    Dance     the same                                              the same, g = eta
    SAGE      x + v dt - std^2 x1 / (2 sigma)                       eta sqrt(log((1 - sigma_next) / (1 - sigma)) + dt)
    CPS       (1 - sigma_next) x0 + sqrt(sigma_next^2 - std^2) x1   sigma_next sin(eta pi / 2)

-x1 / sigma is the score, so the first four are Euler-Maruyama steps of SDEs with the marginals of the flow; CPS keeps
the shares of clip and noise exact however long the step is. With eta 0 all but Wan-SDE are the Euler step of the ODE.

Levels are floats. Latents are tensors of any floating type and device; the mean is differentiable in the velocity.
ComfyUI is not needed. Where a paper and its released code differ, the code is followed; what it does at the edges is
said at each kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

SAGE_CEILING = 1 - 3e-3  # upstream's, for the level inside the logarithm


@dataclass(frozen=True)
class Transition:
    """The Gaussian of a step: centre x_share * x + v_share * v, standard deviation std (0: the step is not random).

    |v_share| / std is how far a change of the velocity moves the log-probability: what the papers balance over steps.
    """

    x_share: float
    v_share: float
    std: float

    def mean(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.x_share * x + self.v_share * v


def flow_sde(sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """Flow-GRPO (arXiv 2505.05470; yifan123/flow_grpo flow_grpo/diffusers_patch/sd3_sde_with_logprob.py).

    g grows without bound towards sigma 1. At exactly 1, where only a first step begins, the schedule's second level
    takes its place below the fraction line, as upstream: it is the level that this step goes to.
    """
    inner = sigma_next if sigma >= 1 else sigma
    return _euler_maruyama(sigma, sigma_next, eta * math.sqrt(sigma / (1 - inner)))


def wan_sde(sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """Flow-GRPO for Wan and Identity-GRPO (arXiv 2510.14256; alibaba/identity-grpo
    flow_grpo/diffusers_patch/wan_vace_pipeline_with_logprob.py; the same in flow_grpo's wan_pipeline_with_logprob.py).

    g runs linearly from the schedule's last to its second level: about sigma. Upstream's configuration has a noise
    level that this step does not use; so does eta here.
    """
    return _euler_maruyama(sigma, sigma_next, schedule[-1] + (schedule[1] - schedule[-1]) * sigma)


def dance(sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """DanceGRPO (arXiv 2505.07818; XueZeyue/DanceGRPO fastvideo/train_grpo_hunyuan.py and train_grpo_flux.py,
    flux_step): noise as strong at the end as at the beginning."""
    return _euler_maruyama(sigma, sigma_next, eta)


def sage(sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """SAGE-GRPO (arXiv 2603.21872; Tencent-Hunyuan/SAGE-GRPO hyvideo/schedulers/scheduling_flow_match_discrete.py,
    sde_type sage_grpo with its sde_solver on, as its training calls it).

    The variance is Flow-SDE's integrated over the step, eta^2 times the integral of s / (1 - s) ds, with the level
    inside the logarithm held at 0.997. Where nothing of it is left (a step that ends above that; upstream's root is
    NaN there), the step is not random.
    """
    held = min(sigma, SAGE_CEILING)
    variance = eta**2 * max(0.0, sigma_next - sigma + math.log((1 - sigma_next) / (1 - held)))
    return _with_score(sigma, sigma_next, variance)


def cps(sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """Coefficients-preserving sampling (arXiv 2509.05952; IamCreateAI/FlowCPS and yifan123/flow_grpo,
    flow_grpo/diffusers_patch/sd3_sde_with_logprob.py).

    Core's euler_ancestral is this with an eta that changes from step to step: `cps_eta`.
    """
    angle = eta * math.pi / 2
    clip, noise = 1 - sigma_next, sigma_next * math.cos(angle)
    return Transition(clip + noise, (1 - sigma) * noise - sigma * clip, sigma_next * math.sin(angle))


def cps_eta(sigma: float, sigma_next: float, ancestral_eta: float) -> float:
    """The eta with which CPS takes the step that core's euler_ancestral takes on a flow model with its own eta
    (ComfyUI comfy/k_diffusion/sampling.py, sample_euler_ancestral_RF, s_noise 1)."""
    down = sigma_next * (1 + (sigma_next / sigma - 1) * ancestral_eta)
    kept = down * (1 - sigma_next) / (1 - down)
    return 2 / math.pi * math.asin(math.sqrt(max(0.0, sigma_next**2 - kept**2)) / sigma_next)


@dataclass(frozen=True)
class Kind:
    """A way to take a random step.

    transition  (sigma, sigma_next, eta, schedule) -> Transition
    eta         the noise level to begin with; None when it has none
    largest     the largest eta that makes sense
    gaussian    whether its log-probability is the Gaussian's; see `log_prob`
    """

    transition: Callable[[float, float, float, Sequence[float]], Transition]
    eta: float | None
    largest: float = 2.0
    gaussian: bool = True


KINDS = MappingProxyType(
    {
        "Flow-SDE": Kind(flow_sde, 0.7),  # flow_grpo's config for SD3 and FLUX; Flow-Factory has 0.9 for Wan
        "Wan-SDE": Kind(wan_sde, None),
        "CPS": Kind(cps, 0.8, largest=1.0, gaussian=False),  # flow_grpo's README
        "Dance": Kind(dance, 0.3),  # its scripts for Wan, SkyReels and FLUX; 0.25 for Hunyuan
        "SAGE": Kind(sage, 0.5),  # its post_train.py
    }
)


def find_kind(name: str, eta: float) -> Kind:
    """The kind of this name; ValueError when there is none, or when it cannot take this eta."""
    if name not in KINDS:
        raise ValueError(f"There is no kind of random step named {name!r}; choose one of {', '.join(KINDS)}.")
    if not 0 <= eta <= KINDS[name].largest:
        raise ValueError(f"eta of {name} lies between 0 and {KINDS[name].largest:g}, not at {eta:g}.")
    return KINDS[name]


def transition(kind: str, sigma: float, sigma_next: float, eta: float, schedule: Sequence[float]) -> Transition:
    """The Gaussian of the step from sigma to sigma_next.

    schedule  all levels of the run, first to last; Wan-SDE looks at the second and the last one
    Raises the ValueErrors of `find_kind`, and one for levels that do not fall from at most 1 to at least 0.
    """
    if not 0 <= sigma_next < sigma <= 1:
        raise ValueError(
            f"A random step goes from a noise level of at most 1 down to a lower one, not from {sigma:g} to "
            f"{sigma_next:g}."
        )
    return find_kind(kind, eta).transition(sigma, sigma_next, eta, schedule)


def velocity(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    """v in float64 from what ComfyUI's samplers get of a flow model: x0 at x, guidance included."""
    return (x.double() - denoised.double()) / sigma


def log_prob(kind: str, x_next: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    """[B] float64: how probable a step's outcome x_next [B, ...] was, as a mean over all values of the latent.

    A mean and not a sum, as in all five codes: a density tempered by the number of values, which is why their ratios
    are clipped at 1e-6 to 1e-3 and not at 0.2. For CPS it is -(x_next - mean)^2 without the variance and the constant,
    as upstream, so its log-ratios are smaller by 2 std^2.
    """
    if std <= 0:
        raise ValueError("A step without noise has no log-probability.")
    values = -((x_next.double() - mean.double()) ** 2)
    if KINDS[kind].gaussian:
        values = values / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    # Row by row: the order of a sum must not depend on how many takes there are.
    return torch.stack([row.mean() for row in values])


def _euler_maruyama(sigma: float, sigma_next: float, g: float) -> Transition:
    return _with_score(sigma, sigma_next, g**2 * (sigma - sigma_next))


def _with_score(sigma: float, sigma_next: float, variance: float) -> Transition:
    """x + v dt + variance / 2 * score, where the score is -(x + (1 - sigma) v) / sigma."""
    drift = variance / (2 * sigma)
    return Transition(1 - drift, sigma_next - sigma - (1 - sigma) * drift, math.sqrt(variance))
