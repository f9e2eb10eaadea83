"""Relations without words: a VLM's hidden states as conditioning."""

import logging
from dataclasses import replace

import comfy.model_management
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter.backbones.relations import attach_relations, combine
from ..idcrafter.modules.aligner import USES, Reading
from ..idcrafter.subjects.references import order_photos, picture
from ..idcrafter.subjects.subject import Cast
from ..model_loaders import aligner as aligners
from ..model_loaders import checkpoint, files, video_dit
from ..model_loaders.vlm_states import states_of_clip, states_of_vlm
from .shown import show
from .types import AlignerType, CastType, VLMType

log = logging.getLogger(__name__)

AUTO = "auto"
# BindWeave's projector is in the files of its video model.
_IN_VIDEO_MODELS = f"{video_dit.FOLDER}/"
_LAST_LAYER = 200


class LoadAligner(io.ComfyNode):
    """A file -> what turns a VLM's hidden states into a video model's text tokens."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadAligner",
            display_name="Load Aligner (IDCrafter)",
            category="IDCrafter/load",
            description="Loads what turns a VLM's hidden states into tokens that a video model reads as its prompt, "
            "for Encode Relations: an aligner of this pack, or the projector in BindWeave's release. Every tensor is "
            "checked before memory is used.",
            search_aliases=["idcrafter", "cinema", "alignernet", "bindweave", "projector", "vlm", "loader"],
            inputs=[
                io.Combo.Input(
                    "aligner_name",
                    options=_aligner_names(),
                    tooltip="File in models/idcrafter_adapters. BindWeave's folder or file may lie in "
                    "models/diffusion_models; of its 14 billion weights only the projector is read.",
                ),
            ],
            outputs=[
                AlignerType.Output(display_name="aligner"),
                io.String.Output(display_name="summary", tooltip="What it turns into what, its use and its licence."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, aligner_name) -> io.NodeOutput:
        if aligner_name.startswith(_IN_VIDEO_MODELS):
            path = files.require(video_dit.FOLDER, aligner_name.removeprefix(_IN_VIDEO_MODELS))
        else:
            path = files.require(aligners.FOLDER, aligner_name)
        aligner = aligners.load_aligner(path)
        summary = f"{aligner.facts['file']}: {aligner.describe()}"
        return io.NodeOutput(aligner, summary, ui=show(cls, summary))


class EncodeRelations(io.ComfyNode):
    """Conditioning + cast + prompt, through a VLM -> conditioning that knows who is who without tags."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterEncodeRelations",
            display_name="Encode Relations (IDCrafter)",
            category="IDCrafter/relate",
            description="A vision-language model looks at all photos and reads the prompt; its hidden states become "
            "conditioning, so 'the one with the hat' needs no tag. Only a video model, or an adapter, that was trained "
            "with the aligner understands it; for any other it is noise. Without a VLM nothing changes.",
            search_aliases=[
                "idcrafter",
                "cinema",
                "id-crafter",
                "bindweave",
                "mllm",
                "qwen vl",
                "hidden states",
                "multimodal prompt",
                "relation",
            ],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The same prompt through the video model's own text encoder. Use a second node, with the "
                    "negative prompt, for the negative conditioning.",
                ),
                CastType.Input(
                    "cast", tooltip="Whose photos the VLM sees, in this order; a mask leaves the background out."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What happens. People may be spoken of as the photos show them. Names mean nothing to the "
                    "VLM, unless the aligner has it asked as Relate asks (nano's does).",
                ),
                io.Combo.Input(
                    "use",
                    options=[AUTO, *USES],
                    default=AUTO,
                    tooltip="Where the VLM's tokens go. 'replace': in the place of the text (CINEMA); 'append': behind "
                    "it; 'prepend': before it (BindWeave); 'hierarchy': only to the hierarchy of Inject Identity's "
                    "adapter (ID-Crafter). 'auto': as the aligner was trained; without an aligner, 'hierarchy'.",
                ),
                io.Int.Input(
                    "layer",
                    default=0,
                    min=-_LAST_LAYER,
                    max=_LAST_LAYER,
                    advanced=True,
                    tooltip="Whose hidden states are taken: 1 is the VLM's first layer, -1 its last. 0 is the one that "
                    "the aligner was trained on; it knows no other.",
                ),
                io.Int.Input(
                    "photos",
                    default=1,
                    min=1,
                    max=8,
                    advanced=True,
                    tooltip="Of each subject, how many photos at most the VLM sees. Each takes up to 256 of its tokens "
                    "(BindWeave: 529), so time and memory grow with them.",
                ),
                VLMType.Input(
                    "vlm", optional=True, tooltip="From Load VLM, the one that the aligner was trained with."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="In the place of a vlm: ComfyUI's own Qwen2.5-VL-7B or Qwen3-VL from Load CLIP. It really "
                    "sees the photos here.",
                ),
                AlignerType.Input(
                    "aligner",
                    optional=True,
                    tooltip="From Load Aligner. Without it the bare hidden states go to an adapter's hierarchy that "
                    "was trained on them.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Unchanged when no VLM is connected."),
                io.String.Output(display_name="report", tooltip="What was read, what became of it, and warnings."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(
        cls, conditioning, cast, prompt="", use=AUTO, layer=0, photos=1, vlm=None, clip=None, aligner=None
    ) -> io.NodeOutput:
        if vlm is None and clip is None:
            report = "Neither a VLM nor a CLIP is connected: the conditioning is unchanged."
            return io.NodeOutput(conditioning, report, ui=show(cls, report))
        if vlm is not None and clip is not None:
            raise ValueError(
                "A vlm and a clip are connected; disconnect the one that the aligner was not trained with."
            )
        if use == AUTO:
            use = "hierarchy" if aligner is None else aligner.reading.use
        if aligner is None and use != "hierarchy":
            raise ValueError(
                f"'{use}' puts the VLM's tokens among those of the text, which takes an aligner; connect one, or "
                "choose 'hierarchy'."
            )
        reading = Reading() if aligner is None else aligner.reading
        trained = reading.layer
        if layer:
            reading = replace(reading, layer=layer)
        seen = [ref for ref in order_photos(cast) if ref.photo < photos]
        shown = [picture(cast, ref) for ref in seen] if reading.pictures != "relate" else _with_photos(cast, photos)
        comfy.model_management.throw_exception_if_processing_interrupted()
        if vlm is not None:
            found = states_of_vlm(vlm, shown, prompt, reading)
        else:
            found = states_of_clip(clip, shown, prompt, reading)
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens, keys = found.states, found.keys
        if aligner is not None:
            tokens, keys = aligner.tokens(tokens, keys)
        if use == "hierarchy":
            told = attach_relations(conditioning, tokens, keys)
        else:
            told = combine(conditioning, tokens, keys, use)
        warnings = []
        wanted = aligner.facts.get("vlm") if aligner is not None else None
        if wanted and vlm is not None and wanted != found.model:
            warnings.append(f"The aligner was trained with {wanted}; what it makes of {found.model} may be noise.")
        if aligner is not None and reading.layer != trained:
            warnings.append(f"The aligner was trained on layer {trained}; what it makes of layer {layer} may be noise.")
        for warning in warnings:
            log.warning(warning)
        done = (
            f"{found.model} has seen {len(seen)} photos; layer {found.layer} of {found.layers}: "
            f"{int(found.keys.sum())} states of width {found.states.shape[-1]} to {int(keys.sum())} tokens of width "
            f"{tokens.shape[-1]}, use: {use}."
        )
        report = "\n".join([*warnings, done])
        return io.NodeOutput(told, report, ui=show(cls, report))


def _with_photos(cast: Cast, count: int) -> Cast:
    """The cast with at most so many photos of each, and without faces."""
    subjects = (replace(s, photos=s.photos[:count], masks=s.masks[:count]) for s in cast.subjects)
    return Cast(tuple(subjects))


def _aligner_names() -> list[str]:
    """Our folder's files, and video models that are called BindWeave."""
    names = checkpoint.list_names(folder_paths.get_filename_list(aligners.FOLDER))
    others = checkpoint.list_names(folder_paths.get_filename_list(video_dit.FOLDER))
    return names + [_IN_VIDEO_MODELS + name for name in others if "bindweave" in name.lower()]


NODES = [LoadAligner, EncodeRelations]
