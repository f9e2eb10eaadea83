"""`python -m idcrafter train-adapter`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..checkpointing import DEPTHS
from ..host import ProgressLog, interrupts, load_pack, pack_module
from ..loop import OPTIMIZERS
from ..processes import ALONE, join, launched
from .presets import PRESETS
from .settings import DTYPES, Settings
from .stages import Stages

log = logging.getLogger("idcrafter")

_DEFAULTS = Settings()


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add it to a command line; it sets `run`, which takes the options and returns the exit code."""
    train = commands.add_parser(
        "train-adapter",
        help="train an identity adapter on a data set",
        description="Trains an identity adapter (and a LoRA) for a video model on a data set. Goes on where it "
        "stopped. On several GPUs: accelerate launch -m idcrafter train-adapter ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("dataset", type=Path, help="folder of the data set")
    add("--model", type=Path, required=True, help="file or folder of the video model")
    add("--vae", type=Path, required=True, help="its VAE")
    add("--clip", type=Path, required=True, help="its text encoder")
    add("--out", type=Path, required=True, help="folder for adapter.safetensors, lora.safetensors, state and curve")
    add("--faces", default="buffalo_l", help="face detector, as in Load Face Analyzer")
    add("--recogniser", default="auto", help="face recogniser, as in Load Face Analyzer")
    add("--provider", default="auto", choices=("auto", "cuda", "cpu"), help="where they run")
    add("--size", default=_DEFAULTS.size, choices=list(PRESETS), help="of the adapter's modules")
    add("--width", type=int, default=_DEFAULTS.width, help="pixels, a multiple of 16")
    add("--height", type=int, default=_DEFAULTS.height, help="pixels, a multiple of 16")
    add("--frames", type=int, default=_DEFAULTS.frames, help="of a clip, 4 n + 1")
    add("--steps", type=int, default=_DEFAULTS.steps, help="of training")
    add("--batch", type=int, default=_DEFAULTS.batch, help="clips a step and process")
    add("--rate", type=float, default=_DEFAULTS.rate, help="learning rate")
    shares = (_DEFAULTS.stages.align, _DEFAULTS.stages.route, _DEFAULTS.stages.joint)
    add(
        "--stages", type=float, nargs=3, default=shares, metavar=("ALIGN", "ROUTE", "JOINT"), help="shares of the steps"
    )
    add("--router-weight", type=float, default=_DEFAULTS.router_weight, help="of the cross-entropy in the joint stage")
    add("--lora-rank", type=int, default=_DEFAULTS.lora_rank, help="of a LoRA that is trained along; 0 for none")
    add("--checkpoint", type=int, default=_DEFAULTS.checkpoint, choices=DEPTHS, help="depth of gradient checkpointing")
    add("--seed", type=int, default=_DEFAULTS.seed, help="draws weights, clips and noise")
    add("--rule", default=_DEFAULTS.rule, help="how the model takes references, as in Cast to Video; none for none")
    add("--wording", default=_DEFAULTS.wording, help="of the prompts, as in Relate")
    add("--optimizer", default=_DEFAULTS.optimizer, choices=OPTIMIZERS, help="muon needs torch 2.9")
    add("--dtype", default=_DEFAULTS.dtype, choices=list(DTYPES), help="in which the adapter computes")
    add("--reference-attention", action="store_true", help="train attention among a subject's references, too")
    add("--validate-every", type=int, default=_DEFAULTS.validate_every, help="steps between videos; 0 for none")
    add("--no-resume", action="store_true", help="begin anew")
    add("--comfyui", type=Path, help="ComfyUI's folder (default: $IDCRAFTER_COMFYUI)")
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    plain = {name: value for name, value in vars(options).items() if name in vars(_DEFAULTS) and name != "stages"}
    settings = Settings(**plain, stages=Stages(*options.stages))
    # Before anything is on a GPU: it chooses which.
    processes = join() if launched() else ALONE
    if processes.rank:
        log.setLevel(logging.WARNING)
    pack = load_pack(options.comfyui)

    def module(name: str):
        return pack_module(pack, name)

    faces = module("model_loaders.faces")
    analyzer = faces.load_named_analyzer(options.faces, options.recogniser, options.provider)
    options.out.mkdir(parents=True, exist_ok=True)
    with interrupts() as stopped:
        progress = ProgressLog()

        def on_progress(done: int, total: int, what: str) -> None:
            progress.tell(done, total, what)
            if stopped:
                raise KeyboardInterrupt

        trained = module("idcrafter.training.adapter.train").train_adapter(
            module("model_loaders.video_dit").load_video_dit(options.model),
            module("model_loaders.vae").load_vae(options.vae),
            module("model_loaders.text_encoder").load_text_encoder(options.clip),
            analyzer,
            options.dataset,
            options.out,
            settings,
            resume=not options.no_resume,
            processes=processes,
            on_progress=on_progress,
        )
    if processes.rank == 0:
        path = options.out / "adapter.safetensors"
        module("model_loaders.adapter").save_adapter(trained.adapter, path, trained.licence, **trained.facts)
        log.info("%s: put it into models/idcrafter_adapters", path)
        if trained.lora is not None:
            log.info("%s: put it into models/loras", trained.save_lora(options.out / "lora.safetensors"))
    return 0
