"""An identity adapter (and a LoRA) trained on a data set, from its files to the finished weights."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ops
import torch
from safetensors.torch import save_file

from ...conditioning.rules import choose_rule
from ...modules.identity_adapter import IdentityAdapter, initialise
from ...subjects.faces import FaceAnalyzer
from ..curves import draw_curves, read_curve
from ..dataset.clip import TrainingDataset
from ..dataset.reader import read_dataset
from ..loop import Trainer
from ..lora import LoRA
from ..processes import ALONE, Processes
from .encode import Encoder, encode_dataset
from .encodings import Encodings
from .network import AdapterNetwork
from .objective import adapter_loss
from .presets import adapter_config, crop_of
from .settings import DTYPES, NO_RULE, Settings
from .stages import set_stage, stage_loss
from .validation import Validation

log = logging.getLogger("idcrafter.training")

NAME = "adapter"
# Lines of the curve that a training has at most.
_ROWS = 400


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training has made.

    adapter  with the averaged weights, float16 on the CPU
    lora     tensors of a LoRA file, or None
    licence  of the data, which the files should say
    facts    for the adapter's metadata
    curve    rows of the curve
    """

    adapter: IdentityAdapter
    lora: dict[str, torch.Tensor] | None
    licence: str
    facts: dict[str, str]
    curve: list[dict]

    def save_lora(self, path: Path) -> Path:
        """Write the LoRA's file, in one step."""
        part = path.with_name(f"{path.name}.part")
        save_file(self.lora, part, {"format": "pt", "licence": self.licence, **self.facts})
        os.replace(part, path)
        return path


# (steps and clips done, of how many, what is going on); it may raise to stop the training.
Progress = Callable[[int, int, str], None]


def train_adapter(
    model: Any,
    vae: Any,
    clip: Any,
    analyzer: FaceAnalyzer,
    folder: Path,
    work: Path,
    settings: Settings,
    *,
    cache: Path | None = None,
    resume: bool = True,
    processes: Processes = ALONE,
    on_progress: Progress | None = None,
) -> Trained:
    """Train on the data set in `folder`; `work` gets state, curve and validation videos.

    model, vae, clip  ComfyUI's MODEL, VAE and CLIP, which are left as they are
    analyzer          finds and embeds the references' faces
    cache             for the encoded clips, which trainings may share; None: in `work`
    resume            go on where a training with the same settings stopped
    on_progress       called after every clip and step; what it raises ends the training, after the state is saved
    Everything that is drawn depends on the seed and the step, so a resumed training ends with the same weights.
    Raises ValueError for data or settings that do not fit, FileNotFoundError where there is no data set.
    """
    tell = on_progress or (lambda done, total, what: None)
    # Nodes run in inference mode, in which nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        dataset = read_dataset(folder)
        total = len(dataset.clips) + settings.steps
        rule = None if settings.rule == NO_RULE else choose_rule(settings.rule, model)
        size = (settings.width, settings.height, settings.frames)
        encoder = Encoder(model, vae, clip, analyzer, rule, settings.wording, *size, crop_of(settings.size))
        cache = cache or work / "encodings"
        paths = encode_dataset(dataset, encoder, cache, lambda i, n: tell(i, total, f"clip {i} of {n}"), processes.part)
        processes.wait()
        encodings = Encodings(paths, settings.seed)
        if not any(entry.placed for entry in encodings.entries):
            log.warning("The data set does not say who is where in any clip, so the router is not told either.")
        config = adapter_config(settings.size, model, *encodings.widths, gates=settings.reference_attention)
        network = build_network(computing_safely(model), config, settings)
        trainer = make_trainer(network, work, settings, f"{dataset.digest} {encoder.digest()}", resume, processes)
        validation = None
        if settings.validate_every and processes.rank == 0:
            validation = Validation(vae, analyzer, dataset, work / "validation", seed=settings.seed)
        fit(trainer, encodings, settings, processes, validation, lambda n, what: tell(len(paths) + n, total, what))
        adapter = network.adapter.to("cpu", torch.float16).requires_grad_(False)
        return Trained(
            adapter,
            None if network.lora is None else network.lora.export(),
            "; ".join(dataset.licences),
            facts_of(model, analyzer, dataset, settings),
            read_curve(trainer.curve),
        )


def computing_safely(model: Any) -> Any:
    """The MODEL, or a clone that computes in bfloat16 where it would in float16, whose gradients vanish."""
    if model.model.get_dtype_inference() is not torch.float16:
        return model
    model = model.clone()
    model.set_model_compute_dtype(torch.bfloat16)
    return model


def build_network(model: Any, config, settings: Settings) -> AdapterNetwork:
    """A new adapter on the MODEL, and a LoRA where one is wanted; both the same for the same seed."""
    # Its weights may have another type than the model computes in.
    adapter = IdentityAdapter(config, comfy.ops.manual_cast)
    initialise(adapter, settings.seed)
    lora = None
    if settings.lora_rank:
        lora = LoRA(model.model.diffusion_model, settings.lora_rank, settings.seed)
    network = AdapterNetwork(model, adapter, lora, settings.checkpoint)
    return network.to(model.load_device)


def make_trainer(
    network: AdapterNetwork,
    work: Path,
    settings: Settings,
    data: str,
    resume: bool = True,
    processes: Processes = ALONE,
) -> Trainer:
    """A trainer of this network, at the step at which a former one with the same settings stopped.

    data  a digest of what is trained on
    """
    if not resume and processes.rank == 0:
        (work / f"{NAME}.state.safetensors").unlink(missing_ok=True)
    processes.wait()
    return Trainer(
        network,
        work,
        NAME,
        settings.steps,
        settings.rate,
        warmup=max(1, min(50, settings.steps // 10)),
        dtype=DTYPES[settings.dtype],
        keep_float32=("lora_",),
        # Rows of these are added, not multiplied, so that Muon's directions mean nothing for them.
        adam=("lora_", "latents", "null", "id_merge", "reference_gates"),
        optimizer=settings.optimizer,
        facts={**settings.facts(), "data": data, "processes": str(processes.count)},
        average=processes.average_ if processes.count > 1 else None,
        writes=processes.rank == 0,
    )


def fit(
    trainer: Trainer,
    encodings: Encodings,
    settings: Settings,
    processes: Processes = ALONE,
    validation: Validation | None = None,
    on_step: Callable[[int, str], None] | None = None,
) -> None:
    """Train to the end; the network then has the averaged weights."""
    network = trainer.model
    device = next(network.parameters()).device
    has_router = network.adapter is not None and network.adapter.router is not None
    every = settings.validate_every

    def stage_of(n: int) -> str:
        return settings.stages.at(n, settings.steps, has_router)

    def step(network: AdapterNetwork, n: int) -> dict[str, torch.Tensor]:
        stage = stage_of(n)
        set_stage(network, stage)
        drops = (settings.drop_text, settings.drop_people)
        batch = encodings.draw(n, settings.batch, processes.part, *drops, device=device)
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + n) % 2**63)
        shift = network.noising.shift
        weight = settings.router_weight
        losses = adapter_loss(network, batch, generator, shift, weight, processes.part, processes.mean)
        return stage_loss(losses, stage, weight)

    def after(trainer: Trainer) -> None:
        n = trainer.n
        if on_step is not None:
            on_step(n, f"step {n} of {settings.steps} ({stage_of(n - 1)})")
        if every and (n % every == 0 or n == settings.steps):
            if validation is not None:
                with trainer.averaged():
                    interrupted = None if on_step is None else lambda: on_step(n, f"validation at step {n}")
                    scores = validation.run(network, encodings, n, interrupted)
                if scores:
                    with trainer.curve.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"step": n, **scores}) + "\n")
                network.load()
            processes.wait()
        if trainer.writes and (n % log_every == 0 or n == settings.steps):
            draw_curves(read_curve(trainer.curve), settings.steps).save(trainer.curve.with_suffix(".png"))

    log_every = max(1, -(-settings.steps // _ROWS))
    trainer.run(step, log_every, after)
    network.requires_grad_(True)


def facts_of(model: Any, analyzer: FaceAnalyzer, dataset: TrainingDataset, settings: Settings) -> dict[str, str]:
    """What the adapter's file says about its making; "recogniser" is the sha256 of the one that it knows."""
    facts = {"made_by": "idcrafter", "steps": str(settings.steps), "seed": str(settings.seed), "data": dataset.digest}
    known = getattr(getattr(analyzer, "recogniser", None), "facts", None)
    digests = list(getattr(known, "files", {}).values())
    if digests:
        facts["recogniser"] = digests[0]
    base = model.get_attachment("idcrafter") or {}
    return facts | {f"base_{name}": str(base[name]) for name in ("file", "sha256") if base.get(name)}
