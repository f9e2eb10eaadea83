"""`python -m idcrafter COMMAND`: what the pack does outside of ComfyUI's graphs.

    build-dataset CLIPS OUT --licence TEXT   raw clips to a data set for adapter training
    check-dataset FOLDER                     what is wrong with a data set
    train-adapter DATASET --model FILE ...   an identity adapter for a video model
    train-rollouts FOLDER --model FILE ...   a LoRA from what the model made, and how it was rewarded
    collect GRAPH --table CSV --out DIR      an API graph over a table, on one ComfyUI or on many

Exit code 0: good; 1: it failed, and the last line says why; 2: wrong usage; 130: interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys

from .collect import command as collect
from .training import rl_command as rollouts
from .training.adapter import command as adapter
from .training.dataset import command as dataset

log = logging.getLogger("idcrafter")

# Each adds its commands to the parser; see `training.dataset.command.add_commands`.
ROOMS = (dataset, adapter, rollouts, collect)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m idcrafter", description="What IDCrafter does outside of graphs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in ROOMS:
        room.add_commands(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return options.run(options)
    except (ValueError, RuntimeError, OSError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; start it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
