"""Loading: a bundle, or a single video model."""

import folder_paths
from comfy_api.latest import io

from ..model_loaders import bundle as bundles
from ..model_loaders import files, video_dit
from .types import FaceAnalyzerType


class LoadBundle(io.ComfyNode):
    """A manifest -> everything that the job needs."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadBundle",
            display_name="Load Bundle (IDCrafter)",
            category="IDCrafter/load",
            description="Loads a video model, its text encoder, its VAE and a face analyzer from one manifest. "
            "The bundled 'nano' set runs on a laptop CPU; real sets need their files in the model folders.",
            search_aliases=["idcrafter", "checkpoint", "wan", "phantom", "insightface", "loader", "nano"],
            inputs=[
                io.Combo.Input(
                    "bundle",
                    options=[name for name in folder_paths.get_filename_list(bundles.FOLDER) if name.endswith(".json")],
                    tooltip="Manifest (.json) in models/idcrafter_bundles. All its files are looked for first; what is "
                    "missing is listed with the command that downloads it. Nothing is downloaded by itself.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                FaceAnalyzerType.Output(display_name="face_analyzer"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle):
        return bundles.fingerprint(files.require(bundles.FOLDER, bundle))

    @classmethod
    def execute(cls, bundle) -> io.NodeOutput:
        return io.NodeOutput(*bundles.load_bundle(files.require(bundles.FOLDER, bundle)))


class LoadVideoDiT(io.ComfyNode):
    """One diffusion model, identified before it is loaded."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadVideoDiT",
            display_name="Load Video DiT (IDCrafter)",
            category="IDCrafter/load",
            description="Loads a video model that takes references (Wan 2.1 T2V layout: Phantom-Wan 1.3B and 14B, "
            "nano) and says what a wrong file holds instead. Its family, size and licence go into the report.",
            search_aliases=["idcrafter", "unet", "diffusion model", "wan", "phantom", "loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(video_dit.FOLDER),
                    tooltip="File in models/diffusion_models. Its keys and shapes are checked before memory is used.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(video_dit.WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="fp8 halves the memory of the weights for a little likeness; 'fast' also multiplies in fp8 "
                    "(RTX 40 and newer). 'default' keeps the file's own precision.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype="default") -> io.NodeOutput:
        return io.NodeOutput(video_dit.load_video_dit(files.require(video_dit.FOLDER, model_name), weight_dtype))


NODES = [LoadBundle, LoadVideoDiT]
