"""Several processes that train one model together, each on its own GPU and on its own part of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """This process among all.

    rank    from 0; rank 0 writes the files
    count   of processes
    mean    a tensor -> its mean over all processes; every process must call it in the same order
    wait    returns when all processes have called it
    """

    rank: int = 0
    count: int = 1
    mean: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    wait: Callable[[], None] = lambda: None

    @property
    def part(self) -> tuple[int, int]:
        """Which part of a batch is this process's: (rank, count)."""
        return self.rank, self.count

    def average_(self, gradient: torch.Tensor) -> None:
        """The mean over all processes, in place."""
        gradient.copy_(self.mean(gradient))


ALONE = Processes()


def launched() -> bool:
    """Whether a launcher (`accelerate launch`, `torchrun`) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool = False) -> Processes:
    """This process among those of its launcher, through accelerate; before any model is loaded, because it chooses the
    GPU. `cpu`: without GPUs.

    Raises RuntimeError where accelerate is not installed.
    """
    try:
        import accelerate
    except ImportError as error:
        raise RuntimeError(
            "Training with several processes needs the package accelerate; install it by `pip install accelerate` into "
            "ComfyUI's Python and start with `accelerate launch -m idcrafter train-adapter ...`, or start one process."
        ) from error
    found = accelerate.Accelerator(cpu=cpu)
    return Processes(
        found.process_index,
        found.num_processes,
        lambda tensor: found.reduce(tensor.detach(), "mean"),
        found.wait_for_everyone,
    )
