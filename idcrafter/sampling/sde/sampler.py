"""A SAMPLER that takes random steps inside a window of the schedule and Euler steps of the ODE outside it.

Works with every guider of core on flow models (Wan, Hunyuan, LTX, Flux, SD3: velocity = (x - x0) / sigma whatever the
shift). Each row of the batch has a noise generator of its own on the CPU, and the arithmetic of a random step is done
there in float64, so take k of a batch is take k alone, on any device; Euler steps are core's `sample_euler` bit for
bit. The last step, down to sigma 0, is never random: noise added there would stay in the clip (DanceGRPO decodes x0 of
its last step, Flow-Factory leaves the last step out; Flow-GRPO and Identity-GRPO keep that noise and do not train it).
"""

from __future__ import annotations

import copy
import hashlib

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import to_d
from comfy.utils import model_trange

from ..seeds import take_seeds
from .record import Recorder
from .steps import find_kind, log_prob, transition, velocity

RECORDER = "idcrafter_sde_recorder"  # in a guider's model_options
NO_END = 10000  # core's "to the last step"


def sde_sampler(
    kind: str,
    eta: float | None = None,
    start_at_step: int = 0,
    end_at_step: int = NO_END,
    sigma_from: float = 1.0,
    sigma_to: float = 0.0,
    record: bool = False,
) -> comfy.samplers.KSAMPLER:
    """The SAMPLER.

    kind                        of `steps.KINDS`
    eta                         its noise level; None = the kind's usual one
    start_at_step, end_at_step  random are the steps from the first of these (0 = the first step) up to but without the
                                second ...
    sigma_from, sigma_to        ... that begin at a noise level between these two, both included
    record                      whether `with_recorder` makes it note its random steps. Its latents are then rounded to
                                bfloat16 before and after each, so that storing them in bfloat16 loses nothing.
    Raises ValueError for an unknown kind, an eta that it cannot take and an empty window.
    """
    usual = find_kind(kind, eta or 0.0).eta
    eta = float(eta if eta is not None else usual or 0.0)
    if start_at_step >= end_at_step or sigma_from < sigma_to:
        raise ValueError(
            f"The window from step {start_at_step} to before step {end_at_step}, from sigma {sigma_from:g} down to "
            f"{sigma_to:g}, holds no step; widen it."
        )
    # Plain values, because the key of a run's stored takes is made from them.
    options = {
        "kind": kind,
        "eta": eta,
        "steps": (int(start_at_step), int(end_at_step)),
        "levels": (float(sigma_from), float(sigma_to)),
        "record": bool(record),
    }
    return comfy.samplers.KSAMPLER(sample_sde, options)


def random_steps(schedule: list[float], steps: tuple[int, int], levels: tuple[float, float]) -> list[int]:
    """The steps of this schedule inside the window of `sde_sampler`, but the one to sigma 0 and any that go nowhere.

    Raises ValueError when there is none: the takes of a group would all be alike but for their first noise.
    """
    inside = [
        i
        for i in range(len(schedule) - 1)
        if steps[0] <= i < steps[1] and levels[1] <= schedule[i] <= levels[0] and 0 < schedule[i + 1] < schedule[i]
    ]
    if not inside:
        raise ValueError(
            f"None of the {len(schedule) - 1} steps of this schedule (sigma {schedule[0]:.3f} to {schedule[-1]:.3f}) "
            f"can be random: the window holds steps {steps[0]} to {steps[1] - 1} that begin between sigma "
            f"{levels[0]:g} and {levels[1]:g}, and the step to sigma 0 never is. Widen the window or add steps."
        )
    return inside


def check_flow(patcher) -> None:
    """ValueError, with the model's name, unless it is a flow model with noise of variance 1."""
    sampling = patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.IMG_TO_IMG_FLOW) or not isinstance(
        sampling, comfy.model_sampling.CONST
    ):
        prediction = type(sampling).__bases__[-1].__name__
        raise ValueError(
            f"The SDE sampler takes flow models (Wan, Hunyuan, LTX, ...), and {type(patcher.model).__name__} is not "
            f"one: it predicts {prediction}. Choose euler_ancestral or another SAMPLER of core's for it."
        )
    if getattr(sampling, "noise_scale", 1.0) != 1.0:
        raise ValueError(
            f"The SDE sampler's formulas are for noise of variance 1, and {type(patcher.model).__name__} uses noise "
            f"{sampling.noise_scale:g} times as strong. Choose euler_ancestral for it."
        )


def noise_generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator a take on the CPU, for seed, seed + 1, ...

    Not seeded with the seed itself, from which the first noise comes, nor with a neighbour's.
    """
    names = (f"idcrafter sde {take}".encode() for take in take_seeds(seed, count))
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    return [torch.Generator().manual_seed(int.from_bytes(digest, "little")) for digest in digests]


def with_recorder(guider, sampler) -> tuple:
    """(guider, None), or for a SAMPLER that records (a copy of the guider, the Recorder that its runs fill).

    The SAMPLER itself remembers nothing, because ComfyUI keeps it from one run of the graph to the next.
    """
    options = getattr(sampler, "extra_options", {})
    if getattr(sampler, "sampler_function", None) is not sample_sde or not options["record"]:
        return guider, None
    recorder = Recorder(options["kind"], options["eta"])
    guider = copy.copy(guider)
    guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    guider.model_options[RECORDER] = recorder
    return guider, recorder


@torch.no_grad()
def sample_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    kind: str,
    eta: float,
    steps: tuple[int, int],
    levels: tuple[float, float],
    record: bool,
):
    """A sampler function as in comfy.k_diffusion.sampling; the options are those of `sde_sampler`."""
    extra_args = extra_args or {}
    check_flow(model.inner_model.model_patcher)
    schedule = sigmas.tolist()
    inside = set(random_steps(schedule, steps, levels))
    if extra_args.get("seed") is None:
        raise ValueError("The SDE sampler needs a seed; give the sampling a NOISE with one, such as Random Noise.")
    generators = noise_generators(extra_args["seed"], x.shape[0])
    recorder = extra_args.get("model_options", {}).get(RECORDER)
    ones = x.new_ones([x.shape[0]])
    for i in model_trange(len(schedule) - 1, disable=disable):
        comfy.model_management.throw_exception_if_processing_interrupted()
        step = transition(kind, schedule[i], schedule[i + 1], eta, schedule) if i in inside else None
        random = step is not None and step.std > 0
        if random and record:
            x = _rounded(x)
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if not random:
            x = x + to_d(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
            continue
        before = x.cpu()
        mean = step.mean(before.double(), velocity(before, denoised.cpu(), schedule[i]))
        noise = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
        after = (mean + step.std * noise).to(x.dtype)
        if record:
            after = _rounded(after)
        if recorder is not None:
            values = log_prob(kind, after, mean, step.std)
            recorder.add(i, schedule[i], schedule[i + 1], before, after, mean, step.std, values)
        x = after.to(x.device)
    return x


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(x.dtype)
