"""The pack inside a command: ComfyUI is found, set up for this machine, and the pack imported as ComfyUI imports it;
how a training is stopped there, and what it says.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..nano.recipes.core import use_comfyui

log = logging.getLogger("idcrafter")
ROOT = Path(__file__).resolve().parents[2]


def load_pack(comfyui: Path | None = None) -> ModuleType:
    """The pack's package, with its model folders and those of extra_model_paths.yaml registered.

    comfyui  ComfyUI's folder; None: `IDCRAFTER_COMFYUI`, or where python finds it
    Raises FileNotFoundError for a folder that is no ComfyUI, RuntimeError where there is none.
    """
    if comfyui is not None:
        if not (comfyui / "folder_paths.py").is_file():
            raise FileNotFoundError(f"'{comfyui}' is no ComfyUI: it has no folder_paths.py. Give --comfyui its folder.")
        os.environ["IDCRAFTER_COMFYUI"] = str(comfyui.resolve())
    use_comfyui()
    name = str(ROOT).replace(".", "_x_")  # as ComfyUI names packs
    if name not in sys.modules:
        import folder_paths

        extra = Path(folder_paths.__file__).parent / "extra_model_paths.yaml"
        if extra.is_file():
            from utils.extra_config import load_extra_path_config

            load_extra_path_config(str(extra))
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pack_module(pack: ModuleType, name: str) -> ModuleType:
    """A module of the pack, for example "model_loaders.faces"."""
    return importlib.import_module(f"{pack.__name__}.{name}")


@contextmanager
def interrupts() -> Iterator[list]:
    """A list that is not empty any more after Ctrl+C: a training stops between two steps, not inside of one."""
    stopped: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


class ProgressLog:
    """Progress as lines of the log, one a hundredth."""

    def __init__(self):
        self.told = -1

    def tell(self, done: int, total: int, what: str) -> None:
        part = 100 * done // total
        if part != self.told:
            self.told = part
            log.info("%d %%: %s", part, what)
