"""The text encoder alone, for graphs that load the parts of a set one by one."""

import folder_paths
from comfy_api.latest import io

from ..model_loaders import files
from ..model_loaders.text_encoder import load_text_encoder

FOLDER = "text_encoders"


class LoadTextEncoder(io.ComfyNode):
    """A UMT5 file -> CLIP."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadTextEncoder",
            display_name="Load Text Encoder (IDCrafter)",
            category="IDCrafter/load",
            description="Loads the UMT5 encoder of the Wan models: the released UMT5-XXL as core's Load CLIP with the "
            "type wan does, and small ones of the same layout (nano), which core does not know. Says what a wrong file "
            "holds instead.",
            search_aliases=["idcrafter", "umt5", "t5", "clip", "prompt encoder", "wan", "loader"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="File in models/text_encoders, for example umt5_xxl_fp8_e4m3fn_scaled.safetensors (6.7 "
                    "GB; fp16 takes twice that). Its keys and shapes are checked before memory is used.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, text_encoder) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(files.require(FOLDER, text_encoder)))


NODES = [LoadTextEncoder]
