"""Loading: a bundle, a single video model, a LoRA for it, or a face analyzer."""

import folder_paths
from comfy_api.latest import io

from ..model_loaders import bundle as bundles
from ..model_loaders import checkpoint, faces, faces_catalogue, families, files, lora, video_dit
from .shown import show
from .types import FaceAnalyzerType

# In the list of files: the MODEL of another loader takes the place of a file.
CONNECTED = "connected model"


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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle):
        return bundles.fingerprint(files.require(bundles.FOLDER, bundle))

    @classmethod
    def execute(cls, bundle) -> io.NodeOutput:
        loaded = bundles.load_bundle(files.require(bundles.FOLDER, bundle))
        return io.NodeOutput(*loaded, ui=show(cls, faces.summary(loaded.face_analyzer)))


class LoadVideoDiT(io.ComfyNode):
    """One diffusion model, identified before it is loaded."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadVideoDiT",
            display_name="Load Video DiT (IDCrafter)",
            category="IDCrafter/load",
            description="Loads a video model that takes references: Wan 2.1 and 2.2, Phantom, VACE, HuMo, Bernini-R, "
            "SkyReels-V3-R2V, RefAlign, CogVideoX; one file or a diffusers folder. Says what it found, and what a "
            "wrong file holds instead. Its family, size and licence go into the report.",
            search_aliases=[
                "idcrafter",
                "unet",
                "diffusion model",
                "wan",
                "phantom",
                "vace",
                "humo",
                "bernini",
                "skyreels",
                "refalign",
                "cogvideox",
                "diffusers",
                "loader",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=[*checkpoint.list_names(folder_paths.get_filename_list(video_dit.FOLDER)), CONNECTED],
                    tooltip="File in models/diffusion_models, or a folder there whose model comes in parts. Its "
                    f"keys and shapes are checked before memory is used. '{CONNECTED}' reads no file.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(video_dit.WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="fp8 halves the memory of the weights for a little likeness; 'fast' also multiplies in fp8 "
                    "(RTX 40 and newer). 'default' keeps the file's own precision.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(families.CHOICES),
                    default=families.AUTO,
                    optional=True,
                    tooltip="Phantom, SkyReels-V3, RefAlign and Bernini-R have the same tensors as plain Wan "
                    "text-to-video, but take references differently. 'auto' goes by the names of the file and its "
                    "folders; choose when a renamed file, or a connected model, is taken for something else.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A MODEL from another loader, as a GGUF loader; it is looked at in place of the file, "
                    "which is then not read. Set family to say which rule its references follow.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(
                    display_name="summary", tooltip="What was found: family, size, precision, layout and licence."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype="default", family=families.AUTO, model=None) -> io.NodeOutput:
        if model is not None:
            patcher = video_dit.adopt_model(model, family)
        elif model_name == CONNECTED:
            raise ValueError(f"model_name is '{CONNECTED}', but no MODEL is connected; connect one, or choose a file.")
        else:
            patcher = video_dit.load_video_dit(files.require(video_dit.FOLDER, model_name), weight_dtype, family=family)
        summary = video_dit.describe(patcher.get_attachment(video_dit.ATTACHMENT))
        return io.NodeOutput(patcher, summary, ui=show(cls, summary))


class LoadLoRA(io.ComfyNode):
    """A LoRA in diffusers', PEFT's, kohya's or native names."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadLoRA",
            display_name="Load LoRA (IDCrafter)",
            category="IDCrafter/load",
            description="Loads a LoRA that core's loader cannot map: PEFT adapters and diffusers' LoRAs for Wan, VACE "
            "(Identity-GRPO's release) and CogVideoX. Says which modules of the file the model does not have.",
            search_aliases=["idcrafter", "lora", "peft", "adapter", "identity-grpo", "diffusers", "cogvideox"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan or CogVideoX model from any loader; it is not changed."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list(lora.FOLDER),
                    tooltip="File in models/loras. Of a PEFT adapter its adapter_model.safetensors; keep the "
                    "adapter_config.json beside it, its scale is read from there.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1 is the strength of the training. 0 leaves the model as it is.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Custom("LORA_MODEL").Output(
                    display_name="lora",
                    tooltip="The LoRA in ComfyUI's own names, for Save LoRA Weights, or Load LoRA Model with bypass.",
                ),
                io.String.Output(
                    display_name="summary", tooltip="How many modules and of what rank; those that did not fit."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, lora_name, strength=1.0) -> io.NodeOutput:
        found = lora.load_lora(files.require(lora.FOLDER, lora_name), model)
        patched = lora.apply_lora(model, found.weights, strength) if strength else model
        return io.NodeOutput(patched, found.weights, found.summary, ui=show(cls, found.summary))


class LoadFaceAnalyzer(io.ComfyNode):
    """A detector and a recogniser, chosen apart."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadFaceAnalyzer",
            display_name="Load Face Analyzer (IDCrafter)",
            category="IDCrafter/load",
            description="Loads what finds and recognises faces, and says under which licence. A second one can watch "
            "over the first: scores that only one of them believes are suspect.",
            search_aliases=[
                "idcrafter",
                "insightface",
                "buffalo_l",
                "antelopev2",
                "auraface",
                "sface",
                "yunet",
                "arcface",
            ],
            inputs=[
                io.Combo.Input(
                    "detector",
                    options=faces_catalogue.detectors(),
                    tooltip="What finds faces. buffalo_l and antelopev2 (insightface, detection at 640 px) may be used "
                    "for non-commercial research only; yunet (MIT) for anything; idcrafter_nano sees only the nano "
                    "world's puppets. Your own packs are folders in models/insightface/models.",
                ),
                io.Combo.Input(
                    "recogniser",
                    options=list(faces_catalogue.RECOGNISERS),
                    default="auto",
                    tooltip="What tells people apart. 'auto' is the pack's own, and AuraFace for yunet. AuraFace and "
                    "SFace (Apache-2.0) may be used commercially; CurricularFace is the one of OpenS2V's scores, for "
                    "research. Scores of different recognisers do not compare.",
                ),
                io.Combo.Input(
                    "provider",
                    options=list(faces.PROVIDERS),
                    default="auto",
                    tooltip="'auto' takes the GPU, or the CPU with a warning on this node; 'cuda' stops where the GPU "
                    "cannot be used; 'cpu' leaves the GPU's memory to the video model. YuNet and SFace always run on "
                    "the CPU.",
                ),
            ],
            outputs=[
                FaceAnalyzerType.Output(display_name="face_analyzer"),
                io.String.Output(display_name="summary", tooltip="What was loaded, where it runs, its licence."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, detector, recogniser="auto", provider="auto"):
        return faces_catalogue.fingerprint(detector, recogniser)

    @classmethod
    def execute(cls, detector, recogniser="auto", provider="auto") -> io.NodeOutput:
        analyzer = faces.load_named_analyzer(detector, recogniser, provider)
        summary = faces.summary(analyzer)
        return io.NodeOutput(analyzer, summary, ui=show(cls, summary))


NODES = [LoadBundle, LoadVideoDiT, LoadLoRA, LoadFaceAnalyzer]
