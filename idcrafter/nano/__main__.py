"""``python -m idcrafter.nano``: trains, evaluates and installs the nano weights.

train vae|text|recogniser|monitor|detector|dit|t2v|adapter|vlm|guidance|all [--dir DIR]   resumes where it stopped
rl [--dir DIR] [--only RUN ...] [--groups N]   collects rollouts of the installed weights and trains LoRAs on them
install [all|rl] [--dir DIR]   copies the results into idcrafter/nano/weights; all: and writes the bundles and the card
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from . import install
from .recipes import adapter, dit, faces, guidance, rl, text, vae, vlm

RECIPES = {
    "vae": vae.train,
    "text": text.train,
    "recogniser": faces.train_recogniser,
    "monitor": faces.train_monitor,
    "detector": faces.train_detector,
    "dit": dit.train,
    "t2v": dit.train_text_to_video,
    "adapter": adapter.train,
    "vlm": vlm.train,
    "guidance": guidance.train,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m idcrafter.nano", description="Trains and installs the nano weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one part or all of them; resumes where it stopped")
    train.add_argument("part", choices=[*RECIPES, "all"])
    train.add_argument("--start", type=Path, help="for dit: an earlier DiT to go on from")
    learn = commands.add_parser("rl", help="collect rollouts of the installed weights and train LoRAs on them")
    learn.add_argument("--only", nargs="+", default=(), metavar="RUN", help="for example nft-0 (default: all runs)")
    learn.add_argument("--groups", type=int, default=rl.GROUPS, help="to collect (default: %(default)s)")
    place = commands.add_parser("install", help="copy trained weights into the pack")
    place.add_argument(
        "part", nargs="?", choices=("all", "rl"), default="all",
        help="all parts, with the bundles and the card, or the LoRAs that 'rl' made (default: %(default)s)",
    )  # fmt: skip
    for command in (train, learn, place):
        command.add_argument(
            "--dir",
            type=Path,
            default=Path("nano-training"),
            help="folder of the training run (default: ./nano-training)",
        )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.command == "install":
        if arguments.part == "rl":
            install.install_rl(arguments.dir / "rl" / "loras")
        else:
            install.install(arguments.dir)
        return
    arguments.dir.mkdir(parents=True, exist_ok=True)
    if arguments.command == "rl":
        logging.info("the LoRAs are in %s", rl.train(arguments.dir / "rl", arguments.only, arguments.groups))
        return
    for name, recipe in RECIPES.items():
        if arguments.part in (name, "all"):
            options = {"start": arguments.start} if name == "dit" else {}
            logging.info("%s is in %s", name, recipe(arguments.dir, **options))


if __name__ == "__main__":
    main()
