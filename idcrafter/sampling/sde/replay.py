"""How probable a model would have made the random steps of a take: what is recorded, asked again.

With the weights, guidance and conditioning that sampled the take, the answer is the recorded log-probability to the
last bit, so the ratio of new to old is exactly 1 before the first update. Another batch size, device, precision or
attention kernel changes the model's answer a little, and with it the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.samplers
import torch

from ..seeds import take_noise
from .record import SdeRecord
from .sampler import check_flow
from .steps import log_prob, transition, velocity


def replay_log_prob(record: SdeRecord, index: int, denoised: torch.Tensor, schedule: Sequence[float]) -> torch.Tensor:
    """[] float64: the log-probability of the record's random step `index` (0 = its first) under a model's answer.

    denoised  [1, C, T, h, w] the model's x0, guidance included, at x_t of this step; it may carry a gradient
    schedule  all levels of the run: Takes.sigmas.tolist()
    """
    sigma, sigma_next = record.sigmas[index].tolist()
    step = transition(record.kind, sigma, sigma_next, record.eta, schedule)
    x = record.x_t[index : index + 1].to(denoised.device, torch.float32)
    mean = step.mean(x.double(), velocity(x, denoised, sigma))
    return log_prob(record.kind, record.x_next[index : index + 1].to(denoised.device), mean, step.std)[0]


def replay(guider, record: SdeRecord, sigmas: torch.Tensor, latent: dict, seed: int) -> torch.Tensor:
    """[n] float64 on the CPU: the log-probabilities of a take's random steps under the guider's model.

    sigmas, latent, seed  those that the take was sampled with (latent as `run.prepare_latent` returns it)
    Interrupts pass through.
    """
    found: list[torch.Tensor] = []
    schedule = sigmas.tolist()

    @torch.no_grad()
    def follow(model, x, sigmas, extra_args=None, callback=None, disable=None):
        check_flow(model.inner_model.model_patcher)
        ones = x.new_ones([x.shape[0]])
        for index, step in enumerate(record.steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            forced = record.x_t[index : index + 1].to(x.device, x.dtype)
            denoised = model(forced, sigmas[step] * ones, **(extra_args or {}))
            # On the CPU as in the sampler, because sums come out differently on a GPU.
            found.append(replay_log_prob(record, index, denoised.cpu(), schedule))
            if callback is not None:
                callback({"x": forced, "i": index, "sigma": sigmas[step], "denoised": denoised})
        return x

    guider.sample(
        take_noise(latent, seed),
        latent["samples"],
        comfy.samplers.KSAMPLER(follow),
        sigmas.clone(),
        denoise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=seed,
    )
    return torch.stack(found)
