"""ComfyUI-IDCrafter: cast several people from photos into one video, keep every one of them, and measure it."""

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

WEB_DIRECTORY = "./web"
_WEIGHTS = Path(__file__).parent / "idcrafter" / "nano" / "weights"


def _add_model_folder(name: str, extensions: set[str], *paths: Path) -> None:
    """Add search paths to a model folder; one that somebody else registered keeps its paths and extensions."""
    if name not in folder_paths.folder_names_and_paths:
        folder_paths.folder_names_and_paths[name] = ([], extensions)
    for path in paths:
        folder_paths.add_model_folder_path(name, str(path))


_MODELS, _OUTPUT = Path(folder_paths.models_dir), Path(folder_paths.get_output_directory())
_add_model_folder("idcrafter_bundles", {".json"}, _MODELS / "idcrafter_bundles", _WEIGHTS / "bundles")
_add_model_folder("insightface", {".onnx"}, _MODELS / "insightface", _WEIGHTS / "insightface")
for _name in ("idcrafter_adapters", "idcrafter_rewards"):
    _add_model_folder(_name, folder_paths.supported_pt_extensions, _MODELS / _name)
# Where Train Adapter writes, as core's own training does with LoRAs.
_add_model_folder("idcrafter_adapters", folder_paths.supported_pt_extensions, _OUTPUT / "idcrafter_adapters")
for _name in ("diffusion_models", "vae", "text_encoders", "loras", "idcrafter_adapters", "idcrafter_rewards"):
    _add_model_folder(_name, folder_paths.supported_pt_extensions, _WEIGHTS / _name)


class IDCrafterExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import NODES

        return NODES


async def comfy_entrypoint() -> IDCrafterExtension:
    return IDCrafterExtension()
