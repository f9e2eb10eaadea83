"""Pausing a take and going on with it later, exactly, whatever the sampler.

A sampler's state (history, error estimates, noise generators) lives inside the sampler and cannot be taken out. But all
that it ever learns comes from the model's answers, and everything else in it follows from the seed. So a `Tape`
records the answers; to go on, the sampler starts again from its seed, hears the recorded answers up to the pause in no
time, and the model only works from there on. What comes out is bit for bit what it is without a pause, for one-step,
multistep, ancestral and adaptive samplers alike, on one thread.

Recorded is what `comfy.samplers.calc_cond_batch` returns: guidance and everything above it (CFG rescaling, cfg_pp
samplers) runs again. Each answer is kept with a digest of its question, so one that does not belong to the question is
never used. What a patch inside of the model remembers from step to step is not on the tape: `refuse_state`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import safetensors
import safetensors.torch
import torch

from .sde.record import SdeRecord
from .sde.sampler import with_recorder
from .seeds import take_noise

log = logging.getLogger(__name__)
WRAPPER_KEY = "idcrafter.tape"
_SIGMA_TOLERANCE = 1e-4  # a noise level that comes back from a sampler in other units


@dataclass(frozen=True, eq=False)
class Segment:
    """What playing a take up to a step, or to its end, gave.

    samples   [1, C, T, h, w] float32 on the CPU, in the VAE's space: the finished take, or a preview
    finished  whether `samples` is the finished take
    passes    model passes (conditions times calls) since the take began, recorded ones included
    looked    model passes for looking ahead, which the take itself does not need
    seconds   wall time of this segment
    sde       the take's random steps from its beginning on, when it is finished and the sampler records them
    """

    samples: torch.Tensor
    finished: bool
    passes: int
    looked: int
    seconds: float
    sde: SdeRecord | None = None


class Tape:
    """The answers of one take by the names of the calls: one file each in `folder`, or in memory without one."""

    def __init__(self, folder: Path | None = None, key: str = ""):
        self.folder = folder
        self.key = key
        self._memory: dict[str, tuple[str, dict[str, torch.Tensor]]] = {}

    def read(self, call: str, question: str) -> dict[str, torch.Tensor] | None:
        """The answer of this call, or None when it is not there or belongs to another question."""
        if call in self._memory:
            asked, answer = self._memory[call]
            return answer if asked == question else None
        path = self._path(call)
        if path is None or not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                if (file.metadata() or {}).get("question") != question:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            log.warning("The record of a model call in %s cannot be read (%s); the call is made again.", path, error)
            return None

    def write(self, call: str, question: str, answer: dict[str, torch.Tensor]) -> None:
        """Keep an answer. What the disk does not take stays in memory."""
        answer = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in answer.items()}
        path = self._path(call)
        if path is not None:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    temporary.write_bytes(safetensors.torch.save(answer, {"question": question}))
                    os.replace(temporary, path)
                    return
                finally:
                    temporary.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be written (%s); it is kept in memory.", path, error)
        self._memory[call] = (question, answer)

    def discard(self) -> None:
        """Forget everything, on disk too."""
        self._memory.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, call: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{call}.safetensors"


class Playback:
    """The model in one run of a sampler, from its first call on: answers from the tape as long as it has them.

    `calc_cond_batch` and `predict_noise` are wrappers for the functions of these names.

    passes   conditions evaluated so far, recorded or by the model
    looked   the same while `looking` ahead
    last     noisy latent, noise level [1], model options and x0 of the last evaluation under guidance
    """

    def __init__(self, tape: Tape):
        self.tape = tape
        self.calls = 0
        self.calls_ahead = 0
        self.passes = 0
        self.looked = 0
        self.looking = False
        self.last: tuple | None = None

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        present = [i for i, cond in enumerate(conds) if cond is not None]
        if self.looking:
            call = f"{self.calls:05}-ahead-{self.calls_ahead:03}"
            self.calls_ahead += 1
            self.looked += len(present)
        else:
            call = f"{self.calls:05}"
            self.calls += 1
            self.passes += len(present)
        question = _digest(self.tape.key, present, len(conds), x, timestep)
        answer = self.tape.read(call, question)
        if answer is None:
            outputs = executor(model, conds, x, timestep, model_options)
            self.tape.write(call, question, {str(i): outputs[i] for i in present})
        else:
            # A condition that is None counts as zeros, as in core's _calc_cond_batch.
            outputs = [torch.zeros_like(x) for _ in conds]
            for i in present:
                outputs[i] = answer[str(i)].to(x.device, copy=True)
        return outputs

    def predict_noise(self, executor, x, timestep, model_options, seed):
        x0 = executor(x, timestep, model_options, seed)
        self.last = (x, timestep, model_options, x0)
        return x0

    def look_ahead(self, guider, sigmas: Sequence[float], seed: int) -> torch.Tensor:
        """x0 after Euler steps from the last evaluation to each of these lower noise levels."""
        x, timestep, model_options, x0 = self.last
        self.looking = True
        for sigma in sigmas:
            following = torch.full_like(timestep, sigma)
            # A flow and a diffusion model alike: x = x0 + sigma d, where d stays for the step.
            x = x0 + (x - x0) * (following / timestep).reshape(-1, *[1] * (x.ndim - 1))
            timestep = following
            x0 = guider(x, timestep, model_options=model_options, seed=seed)
        self.looking = False
        return x0


def play(
    guider,
    sampler,
    sigmas: torch.Tensor,
    latent: dict,
    seed: int,
    tape: Tape,
    until: float | None,
    ahead: Sequence[float] = (),
    on_step=None,
) -> Segment:
    """Run a take from its seed with this tape, to the end or to the step whose noise level is `until`.

    The level counts and not the step, because some samplers (dpm_fast, dpm_adaptive) choose steps of their own. One
    that reports no step at that level or below it is played to the end.

    until    in the units of `sigmas`; None = the end
    ahead    lower noise levels to which the preview looks ahead from there; a latent's noise mask is not applied on
             this way
    latent   as `run.prepare_latent` returns it
    on_step  a sampler's callback (step from 0, x0, x, total), called after each step but that of the pause
    Raises ValueError for a sampler whose previews are not of the whole clip.
    """
    start = time.perf_counter()
    playback = Playback(tape)
    guider, recorder = with_recorder(copy.copy(guider), sampler)
    guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in (
        (kinds.CALC_COND_BATCH, playback.calc_cond_batch),
        (kinds.PREDICT_NOISE, playback.predict_noise),
    ):
        comfy.patcher_extension.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, guider.model_options, True)
    shape = latent["samples"].shape

    def callback(step, x0, x, total_steps):
        sigma = float(playback.last[1].max())
        if until is not None and sigma <= until * (1 + _SIGMA_TOLERANCE):
            if x0.shape != shape:
                raise ValueError(
                    f"This sampler previews {list(x0.shape)} of a latent of {list(shape)}, so takes cannot be compared "
                    "on the way; choose another sampler, or set budget to 0."
                )
            lower = [level for level in ahead if level < sigma * (1 - _SIGMA_TOLERANCE)]
            raise _Pause(playback.look_ahead(guider, lower, seed) if lower else x0.detach().clone())
        if on_step is not None:
            on_step(step, x0, x, total_steps)

    try:
        samples = guider.sample(
            take_noise(latent, seed),
            latent["samples"],
            sampler,
            sigmas.clone(),
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        finished = True
        sde = recorder.record() if recorder is not None else None
    except _Pause as pause:
        samples = guider.model_patcher.model.process_latent_out(pause.x0.to(torch.float32))
        finished = False
        sde = None
    samples = samples.detach().to("cpu", torch.float32)
    return Segment(samples, finished, playback.passes, playback.looked, time.perf_counter() - start, sde)


def refuse_state(guider) -> None:
    """ValueError for a MODEL that carries core's step caches: what they remember cannot be paused."""
    options = guider.model_options.get("transformer_options", {})
    if "easycache" in options:
        raise ValueError(
            "The MODEL carries EasyCache or LazyCache, which remember earlier steps and cannot go on after a pause; "
            "take that node out, or set budget to 0."
        )


class _Pause(Exception):
    """Leaves the sampler at a step; `x0` is the preview, in the model's space."""

    def __init__(self, x0: torch.Tensor):
        super().__init__()
        self.x0 = x0


def _digest(key: str, present: list[int], count: int, x: torch.Tensor, timestep: torch.Tensor) -> str:
    """What was asked: the key of the run, the conditions, the noisy latent and its noise level."""
    digest = hashlib.blake2b(f"{key} {present} {count} {tuple(x.shape)} {x.dtype}".encode(), digest_size=16)
    for tensor in (x, timestep):
        # A fresh copy, because a tensor of one element may have a stride that forbids viewing it as bytes.
        flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
