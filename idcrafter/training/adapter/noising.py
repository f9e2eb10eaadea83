"""How a model's clips are noised, and what it predicts of them: flow matching (Wan) or v-prediction (CogVideoX).

A noised clip is a * clip + s * noise. In both cases the network's own answer is compared with its target, unweighted:

    flow          a = 1 - sigma, s = sigma          velocity = noise - clip
    v-prediction  a = 1 / sqrt(1 + sigma^2), s = sigma * a     velocity = a * noise - s * clip

The second is the loss of CogVideoX's training too: its weight 1 / (1 - alpha_cumprod) on the clip's error is the same
(diffusers, examples/cogvideo). Core gives such a model the noised clip of this formula as it is
(comfy/model_sampling.py, V_PREDICTION_DDPM).
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import torch


@dataclass(frozen=True, eq=False)
class Noising:
    """The noise levels of one MODEL.

    sampling  its `model_sampling`
    flow      whether it is a flow-matching model
    """

    sampling: object
    flow: bool

    @classmethod
    def of(cls, model) -> Noising:
        """ValueError for a MODEL that predicts something else."""
        sampling = model.get_model_object("model_sampling")
        flow = isinstance(sampling, comfy.model_sampling.CONST)
        if not flow and not isinstance(sampling, comfy.model_sampling.V_PREDICTION_DDPM):
            raise ValueError(
                f"The MODEL ({type(model.model).__name__}) is neither trained by flow matching nor by CogVideoX's "
                "v-prediction; connect a Wan or CogVideoX model."
            )
        return cls(sampling, flow)

    @property
    def shift(self) -> float:
        """By which noise levels are shifted; 1 for none."""
        return float(getattr(self.sampling, "shift", 1.0)) if self.flow else 1.0

    def levels(self, u: torch.Tensor, shift: float) -> torch.Tensor:
        """Uniform u in 0..1 -> sigmas as training draws them, float32."""
        if self.flow:
            return shifted(u, shift).clamp(min=1e-3)
        last = self.sampling.num_timesteps - 1
        device = self.sampling.log_sigmas.device
        return self.sampling.sigma((u * last).to(device)).to(u)

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, s) of the formula, shaped like sigma."""
        if self.flow:
            return 1 - sigma, sigma
        a = (1 + sigma**2).rsqrt()
        return a, sigma * a

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        a, s = self.coefficients(_like(sigma, clean))
        return a * clean + s * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The velocity that the model should predict."""
        if self.flow:
            return noise - clean
        a, s = self.coefficients(_like(sigma, clean))
        return a * noise - s * clean

    def velocity(self, noisy: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The velocity behind a prediction of the clip."""
        a, s = self.coefficients(_like(sigma, noisy))
        return (noisy - denoised) / s if self.flow else (a * noisy - denoised) / s

    def clip(self, noisy: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The prediction of the clip behind a velocity."""
        a, s = self.coefficients(_like(sigma, noisy))
        return noisy - s * velocity if self.flow else a * noisy - s * velocity

    def stepped(
        self, noisy: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, lower: torch.Tensor
    ) -> torch.Tensor:
        """A deterministic step from one noise level to a lower one (for flow: Euler's)."""
        a, s = self.coefficients(sigma)
        a_lower, s_lower = self.coefficients(lower)
        return a_lower * denoised + s_lower * (noisy - a * denoised) / s


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Uniform u in 0..1 -> noise levels as a model with this shift is sampled (Wan: shift * u / (1 + (shift-1) u))."""
    return shift * u / (1 + (shift - 1) * u)


def _like(sigma: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return sigma.view(-1, *[1] * (clean.ndim - 1))
