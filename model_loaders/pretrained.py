"""A local folder in the layout of transformers -> a live model, on the GPU only while it is used.

The folder is what `hf download REPOSITORY --local-dir FOLDER` makes: config.json, the weights, the tokenizer and
processor files, and mostly a README.md whose head names the licence. Nothing is downloaded, no code of the folder is
run, and weights that are not safetensors go through torch's weights_only reader.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from . import files

log = logging.getLogger(__name__)

FOLDER = "idcrafter_rewards"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model of transformers and what is known about it. `use` gives it for as long as it is needed."""

    name: str
    licence: str
    config: dict
    path: Path
    _patcher: comfy.model_patcher.ModelPatcher = field(repr=False)

    @contextlib.contextmanager
    def use(self) -> Iterator[tuple[Any, torch.device]]:
        """The model, whole on its device, without gradients."""
        comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)
        with torch.inference_mode():
            yield self._patcher.model.inner, self._patcher.load_device

    def describe(self) -> dict:
        return {"name": self.name, "licence": self.licence}


class _Inner(torch.nn.Module):
    """Lets ComfyUI note things on the model, which transformers' own classes refuse (`device`)."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner


def names(known: tuple[str, ...] = ()) -> list[str]:
    """The model folders in models/idcrafter_rewards, and `known` ones, whether they are there or not."""
    found = {
        path.parent.name for root in folder_paths.get_folder_paths(FOLDER) for path in Path(root).glob("*/config.json")
    }
    return sorted(found | set(known))


def require(name: str, repository: str) -> Path:
    """The model folder `name`; a missing one's error has the command that downloads `repository` to its place."""
    target = Path(folder_paths.get_folder_paths(FOLDER)[0]) / name
    return files.require(FOLDER, name, f'hf download {repository} --local-dir "{target}"')


def read_config(folder: Path) -> dict:
    """config.json of a model folder. Raises FileNotFoundError or ValueError that names the folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"The model folder '{folder}' has no config.json; download the whole repository into it."
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}); download it again.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"'{path}' names no model_type, so it is no model folder of transformers.")
    return config


def load(folder: Path, loader: Any, config: dict, dtype: torch.dtype = torch.float32, **extra: object) -> Pretrained:
    """Load a checked folder.

    loader  a class of transformers with from_pretrained, such as ViTModel
    extra   what else its constructor takes
    Raises ValueError for weights that are missing, damaged, or do not fit the config; every weight must be there.
    """
    import transformers

    # Older ones hand the new name on to the model, which does not know it.
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    extra["dtype" if (major, minor) >= (4, 56) else "torch_dtype"] = dtype
    try:
        model, report = loader.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True, **extra
        )
    except Exception as error:  # noqa: BLE001 - transformers, safetensors and torch each raise their own types
        raise ValueError(
            f"The model folder '{folder}' could not be loaded ({_first_line(error)}); download it again."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"The weights in '{folder}' lack {len(missing)} tensors of a {config['model_type']} (first: {missing[0]}); "
            "the download is incomplete, or it is another model."
        )
    model.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(
        _Inner(model),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    licence = _licence(folder)
    log.info("Loaded %s (%s), licence: %s.", folder.name, config["model_type"], licence)
    return Pretrained(folder.name, licence, config, folder, patcher)


def _licence(folder: Path) -> str:
    """The licence in the head of the folder's README.md."""
    readme = folder / "README.md"
    if readme.is_file():
        found = re.search(r"^license(?:_name)?:\s*(\S+)", readme.read_text("utf-8", "replace")[:4000], re.MULTILINE)
        if found:
            return found[1]
    return "not stated in the folder"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
