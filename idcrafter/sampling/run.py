"""Sample several takes of one shot, one after the other."""

from __future__ import annotations

import logging
import time

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch

from ..subjects.references import LEADING
from .fingerprint import sampler_name
from .sde.sampler import with_recorder
from .seeds import take_noise, take_seeds
from .store import TakeStore
from .takes import Take, Takes

log = logging.getLogger(__name__)
PREVIEW_FORMAT = "JPEG"


def sample_takes(
    guider, sampler, sigmas: torch.Tensor, latent: dict, base_seed: int, count: int, store: TakeStore | None = None
) -> Takes:
    """`count` takes with the seeds base_seed, base_seed + 1, ...

    Each take is what core's SamplerCustomAdvanced gives with RandomNoise at that seed. Takes that `store` already
    holds are not sampled again, and each new one is stored as soon as it is finished, so an interrupt
    (InterruptProcessingException, which passes through) costs only the take that it hits.

    latent  LATENT with one sample; a noise_mask is respected
    Raises ValueError for a batch, a nested latent or an empty schedule.
    """
    steps = check_schedule(sigmas)
    latent = prepare_latent(guider.model_patcher, latent)
    samples = latent["samples"]
    progress = Progress(guider.model_patcher, steps * count)
    takes = []
    for seed in take_seeds(base_seed, count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        take = store.load(seed, samples.shape) if store is not None else None
        if take is None:
            take = _sample(guider, sampler, sigmas, latent, seed, progress.callback(most=steps))
            if store is not None:
                store.save(take)
        takes.append(take)
        progress.advance(steps)
    resumed = sum(take.resumed for take in takes)
    if resumed:
        log.info("%d of %d takes were read back from %s.", resumed, count, store.folder)
    return Takes(
        takes=tuple(takes),
        base_seed=base_seed,
        sampler=sampler_name(sampler),
        sigmas=sigmas.detach().to("cpu", copy=True),
        model=model_facts(guider.model_patcher),
        leading=latent.get(LEADING, 0),
    )


def check_schedule(sigmas: torch.Tensor) -> int:
    """The number of steps; ValueError when there is none."""
    if sigmas.ndim != 1 or sigmas.shape[0] < 2:
        raise ValueError("The schedule (sigmas) has no steps; check the scheduler's steps and denoise.")
    return sigmas.shape[0] - 1


def prepare_latent(patcher, latent: dict) -> dict:
    """A copy of the LATENT in the model's layout; ValueError unless it holds exactly one plain sample."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "latent_image joins several latents (video and audio); takes are sampled from one video latent."
        )
    if samples.shape[0] != 1:
        raise ValueError(
            f"latent_image holds a batch of {samples.shape[0]}; connect one latent, takes sets the number."
        )
    latent = latent.copy()
    latent["samples"] = comfy.sample.fix_empty_latent_channels(
        patcher,
        samples,
        latent.pop("downscale_ratio_spacial", None),
        latent.pop("downscale_ratio_temporal", None),
    )
    return latent


def model_facts(patcher) -> dict:
    """What the report says about a MODEL: what our loaders attached, or what any MODEL tells about itself."""
    facts = patcher.get_attachment("idcrafter")
    if facts is not None:
        return dict(facts)
    return {
        "family": type(patcher.model).__name__,
        "size": sum(p.numel() for p in patcher.model.diffusion_model.parameters()),
    }


def _sample(guider, sampler, sigmas, latent: dict, seed: int, callback) -> Take:
    start = time.perf_counter()
    guider, recorder = with_recorder(guider, sampler)
    samples = guider.sample(
        take_noise(latent, seed),
        latent["samples"],
        sampler,
        # A copy for every take: core's uni_pc writes into the schedule that it is given.
        sigmas.clone(),
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    samples = samples.detach().to("cpu", torch.float32)
    sde = recorder.record() if recorder is not None else None
    return Take(seed=seed, samples=samples, seconds=time.perf_counter() - start, resumed=False, sde=sde)


class Progress:
    """One bar over the steps of all takes, with the preview that the server is set to."""

    def __init__(self, patcher, total: int):
        self.total = total
        self.done = 0
        self.bar = comfy.utils.ProgressBar(total)
        self.previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def callback(self, skip: int = 0, most: int | None = None):
        """A sampler's callback. Its first `skip` steps were counted before; it never shows more than `most` of them
        (adaptive samplers take more steps than the schedule has)."""

        def step_done(step, x0, x, total_steps):
            preview = None
            if self.previewer:
                preview = self.previewer.decode_latent_to_preview_image(PREVIEW_FORMAT, x0)
            steps = max(0, step + 1 - skip)
            self.bar.update_absolute(self.done + (steps if most is None else min(steps, most)), self.total, preview)

        return step_done

    def advance(self, steps: int):
        """These steps are done for good."""
        self.done += steps
        self.bar.update_absolute(self.done, self.total)
