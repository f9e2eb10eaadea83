"""`python -m idcrafter train-rollouts`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .checkpointing import DEPTHS
from .host import ProgressLog, interrupts, load_pack, pack_module
from .processes import ALONE, join, launched
from .rl_settings import METHODS, OLD, Settings

log = logging.getLogger("idcrafter")
_DEFAULTS = Settings()


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add it to a command line; it sets `run`, which takes the options and returns the exit code."""
    train = commands.add_parser(
        "train-rollouts",
        help="train a LoRA on what a model made, and how it was rewarded",
        description="Trains a LoRA by reinforcement learning on a folder of rollouts, as Save Rollouts and 'collect' "
        "write them. Goes on where it stopped. On several GPUs: accelerate launch -m idcrafter train-rollouts ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    own = "below 0: the method's own"
    add("rollouts", type=Path, help="their folder")
    add("--model", type=Path, required=True, help="file or folder of the video model that made them")
    add("--out", type=Path, required=True, help="folder for lora.safetensors, state, curve and videos")
    add("--method", default=_DEFAULTS.method, choices=list(METHODS), help="how it learns, see Train from Rollouts")
    add("--steps", type=int, default=_DEFAULTS.steps, help="of training")
    add("--rank", type=int, default=32, help="of the LoRA")
    add("--rewards", default="", help="NAME=WEIGHT[@LOW-HIGH],...; empty: the reward of the collection")
    add("--rate", type=float, default=-1.0, help=f"learning rate; {own}")
    add("--beta", type=float, default=-1.0, help=f"strength, step size or temperature; {own}")
    add("--kl", type=float, default=-1.0, help=f"weight of the distance from the model; {own}")
    add("--clip", type=float, default=-1.0, help=f"of the ratio; {own}")
    add("--groups", type=int, default=0, help="a step and process; 0: the method's own")
    add("--takes", type=int, default=_DEFAULTS.takes, help="of each group")
    add("--best", type=int, default=0, help="with --worst: only so many takes of each group; 0 and 0 for all")
    add("--worst", type=int, default=0, help="see --best")
    add("--noise", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="shares that are trained on")
    add("--old", default=OLD[0], choices=OLD, help="what the LoRA is compared with")
    add("--permute", action="store_true", help="control: advantages change places within their groups")
    add("--seed", type=int, default=0, help="draws weights, takes and noise")
    add("--checkpoint", type=int, default=2, choices=DEPTHS, help="depth of gradient checkpointing")
    add("--min-spread", type=float, default=0.0, help="groups whose rewards differ less are left out")
    add("--label", default="", help="only groups with this label")
    add("--vae", type=Path, help="the model's VAE, for videos while it trains and for ipro")
    add("--validate-every", type=int, default=0, help="steps between videos; 0 for none")
    add("--shots", type=int, default=4, help="videos each time")
    add("--monitor", help="face analyzer that no reward has used, as in Load Face Analyzer; needs stored photos")
    add("--patience", type=int, default=3, help="its evaluations without a new best that end the training; 0: never")
    add("--faces", help="face analyzer whose similarity ipro raises, as in Load Face Analyzer; needs stored photos")
    add("--provider", default="auto", choices=("auto", "cuda", "cpu"), help="where it runs")
    add("--no-resume", action="store_true", help="begin anew")
    add("--comfyui", type=Path, help="ComfyUI's folder (default: $IDCRAFTER_COMFYUI)")
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    settings = Settings.of(
        options.method,
        options.rewards,
        options.groups,
        low=options.noise[0],
        high=options.noise[1],
        **{
            name: getattr(options, name)
            for name in ("steps", "takes", "rate", "beta", "kl", "clip", "best", "worst", "old", "permute", "seed")
        },
    )
    # Before anything is on a GPU: it chooses which.
    processes = join() if launched() else ALONE
    if processes.rank:
        log.setLevel(logging.WARNING)
    pack = load_pack(options.comfyui)

    def module(name: str):
        return pack_module(pack, name)

    dataset, run = module("idcrafter.rollouts.dataset"), module("idcrafter.training.rl_run")
    rollouts = dataset.load(options.rollouts, dataset.Filters(min_spread=options.min_spread, label=options.label))
    model = module("model_loaders.video_dit").load_video_dit(options.model)
    hashes = module("idcrafter.rollouts.provenance").patcher_hashes(model, module("model_loaders.files").sha256_of)
    vae = options.vae and module("model_loaders.vae").load_vae(options.vae)
    monitor, faces = (
        name and module("model_loaders.faces").load_named_analyzer(name, "auto", options.provider)
        for name in (options.monitor, options.faces)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with interrupts() as stopped:
        progress = ProgressLog()

        def on_progress(done: int, total: int, what: str) -> None:
            progress.tell(done, total, what)
            if stopped:
                raise KeyboardInterrupt

        trained = run.train_lora(
            model,
            hashes["policy"],
            rollouts,
            options.out,
            settings,
            options.rank,
            checkpoint=options.checkpoint,
            looks=run.Looks(options.validate_every, options.shots, options.patience, vae, monitor),
            faces=faces,
            resume=not options.no_resume,
            processes=processes,
            on_progress=on_progress,
        )
    if processes.rank == 0:
        path = trained.save(options.out / "lora.safetensors")
        log.info("%s\n%s: put it into models/loras", trained.summary, path)
    return 0
