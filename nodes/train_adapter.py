"""An identity adapter trained inside of ComfyUI."""

import logging
import re
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..idcrafter import drawing
from ..idcrafter.conditioning.rules import RULES
from ..idcrafter.relations.compose import WORDINGS
from ..idcrafter.training.adapter.presets import PRESETS
from ..idcrafter.training.adapter.settings import NO_RULE, Settings
from ..idcrafter.training.adapter.stages import Stages
from ..idcrafter.training.checkpointing import DEPTHS
from ..idcrafter.training.loop import OPTIMIZERS
from ..model_loaders import adapter as adapters
from .condition import MAX_PIXELS
from .shown import show
from .types import AdapterType, FaceAnalyzerType

log = logging.getLogger(__name__)

# In ComfyUI's output folder; Load Adapter and the LoRA loaders look into the second and the third.
WORK, ADAPTERS, LORAS = "idcrafter_training", adapters.FOLDER, "loras"
CACHE = ".encodings"  # no training can have this name
_DEFAULTS = Settings()
_NAME = re.compile(r"\w[\w .+-]*")


class TrainAdapter(io.ComfyNode):
    """MODEL + VAE + CLIP + a data set -> an adapter that knows the faces of a recogniser."""

    @classmethod
    @override
    def define_schema(cls):
        def share(name: str, default: float, tooltip: str):
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, round=0.001, tooltip=tooltip)

        return io.Schema(
            node_id="IDCrafterTrainAdapter",
            display_name="Train Adapter (IDCrafter)",
            category="IDCrafter/train",
            is_output_node=True,
            is_experimental=True,
            description="Trains an identity adapter for a video model on a folder of clips: first what brings the "
            "faces in, then the router, then both. The model itself is left as it is, but for an optional LoRA. Can "
            "be stopped and goes on where it was. Takes hours to days on a GPU; the same training runs outside of "
            "graphs by 'python -m idcrafter train-adapter', also on several GPUs.",
            search_aliases=["idcrafter", "train", "fine-tune", "lora", "identity", "adapter", "router", "ingredients"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan or CogVideoX model; the adapter will fit this size only."),
                io.Vae.Input("vae", tooltip="The model's VAE. Encodes the clips once, and looks at the faces."),
                io.Clip.Input("clip", tooltip="The model's text encoder. Encodes the captions once."),
                FaceAnalyzerType.Input(
                    "analyzer",
                    tooltip="Finds the faces of the references; the adapter will know this recogniser's embeddings, "
                    "and no other's.",
                ),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip="Folder with metadata.jsonl, inside of ComfyUI's input or output folder. Made by "
                    "'python -m idcrafter build-dataset'.",
                ),
                io.String.Input(
                    "name",
                    default="my_adapter",
                    tooltip=f"Of the file in output/{ADAPTERS} and of the training's folder in output/{WORK}, by which "
                    "it is found again to go on.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(PRESETS),
                    default=_DEFAULTS.size,
                    tooltip="Of the adapter's modules. 'large' is Ingredients' (about a tenth of a 5B model); smaller "
                    "ones need fewer clips and steps. 'nano' is for the nano model.",
                ),
                io.Int.Input(
                    "width",
                    default=_DEFAULTS.width,
                    min=16,
                    max=MAX_PIXELS,
                    step=16,
                    tooltip="Pixels. Clips are scaled to fill it and cut in the middle.",
                ),
                io.Int.Input(
                    "height", default=_DEFAULTS.height, min=16, max=MAX_PIXELS, step=16, tooltip="Pixels, as the width."
                ),
                io.Int.Input(
                    "length",
                    default=_DEFAULTS.frames,
                    min=1,
                    max=MAX_PIXELS,
                    step=4,
                    tooltip="Frames of a clip, from its start, 4n + 1; the rest is not seen. Shorter clips give what "
                    "they have.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=1,
                    max=1_000_000,
                    tooltip="Of training. The rate falls over all of them, so it cannot be changed while it goes on.",
                ),
                io.Int.Input("batch", default=1, min=1, max=256, tooltip="Clips a step; memory grows with it."),
                io.Float.Input(
                    "rate",
                    default=_DEFAULTS.rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="Learning rate. Halve it when the curve jumps up, double it when it hardly falls.",
                ),
                share("align", _DEFAULTS.stages.align, "Share of the steps in which the router waits: faces first."),
                share("route", _DEFAULTS.stages.route, "Share in which only the router learns who is where."),
                share("joint", _DEFAULTS.stages.joint, "Share in which all of it is trained together."),
                io.Int.Input(
                    "lora_rank",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Of a LoRA on the video model that is trained along and saved beside it; 0 for none. With "
                    "it the model follows the adapter more closely and needs both files.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=[str(depth) for depth in DEPTHS],
                    default=str(_DEFAULTS.checkpoint),
                    tooltip="Memory against time: 0 keeps everything (most memory), 2 computes each block twice (a "
                    "third slower), 3 each part of a block. The result is the same.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The same seed, clips and settings give the same adapter on the same machine.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="On: go on where the training of this name stopped; other settings than then are refused. "
                    "Off: begin anew.",
                ),
                io.Combo.Input(
                    "rule",
                    options=["auto", NO_RULE, *RULES],
                    default=_DEFAULTS.rule,
                    advanced=True,
                    tooltip="How the model takes references, as in Cast to Video. 'none' trains without them.",
                ),
                io.Combo.Input(
                    "wording",
                    options=list(WORDINGS),
                    default=_DEFAULTS.wording,
                    advanced=True,
                    tooltip="What captions say in the place of the names, as in Relate. Nano reads ordinals.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=_DEFAULTS.optimizer,
                    advanced=True,
                    tooltip="muon needs fewer steps, and torch 2.9 or newer; adamw runs everywhere.",
                ),
                io.Boolean.Input(
                    "reference_attention",
                    default=False,
                    advanced=True,
                    tooltip="On: the reference tokens of each person also see each other apart from all others. Wan "
                    "models with references only.",
                ),
                io.Int.Input(
                    "validate_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip=f"Steps after which two videos are made and scored, into output/{WORK}; 0 for never.",
                ),
            ],
            outputs=[
                AdapterType.Output(display_name="adapter", tooltip="For Inject Identity."),
                io.String.Output(display_name="file", tooltip="Of the adapter, as in Load Adapter."),
                io.String.Output(display_name="lora", tooltip="File of the LoRA, as in LoRA loaders; empty without."),
                io.Image.Output(display_name="curve", tooltip="The losses over the steps; lower is better."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset, **inputs):
        from ..idcrafter.training.dataset.clip import METADATA

        try:
            return (dataset_folder(dataset) / METADATA).stat().st_mtime_ns
        except (OSError, ValueError):
            return dataset

    @classmethod
    @override
    def execute(
        cls,
        model,
        vae,
        clip,
        analyzer,
        dataset,
        name,
        size=_DEFAULTS.size,
        width=_DEFAULTS.width,
        height=_DEFAULTS.height,
        length=_DEFAULTS.frames,
        steps=_DEFAULTS.steps,
        batch=1,
        rate=_DEFAULTS.rate,
        align=_DEFAULTS.stages.align,
        route=_DEFAULTS.stages.route,
        joint=_DEFAULTS.stages.joint,
        lora_rank=0,
        checkpoint=str(_DEFAULTS.checkpoint),
        seed=0,
        resume=True,
        rule=_DEFAULTS.rule,
        wording=_DEFAULTS.wording,
        optimizer=_DEFAULTS.optimizer,
        reference_attention=False,
        validate_every=0,
    ) -> io.NodeOutput:
        # Not needed to show the node.
        from ..idcrafter.training.adapter.train import train_adapter
        from ..idcrafter.training.curves import draw_curves

        folder = dataset_folder(dataset)
        check_name(name)
        settings = Settings(
            size=size,
            reference_attention=reference_attention,
            width=width,
            height=height,
            frames=length,
            rule=rule,
            wording=wording,
            steps=steps,
            batch=batch,
            rate=rate,
            stages=Stages(align, route, joint),
            lora_rank=lora_rank,
            checkpoint=int(checkpoint),
            seed=seed,
            optimizer=optimizer,
            validate_every=validate_every,
        )
        target, number = free_name(f"{ADAPTERS}/{name}")
        work = Path(folder_paths.get_output_directory()) / WORK
        bar = comfy.utils.ProgressBar(1)

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update_absolute(done, total)
            comfy.model_management.throw_exception_if_processing_interrupted()

        trained = train_adapter(
            model,
            vae,
            clip,
            analyzer,
            folder,
            work / target.name,
            settings,
            cache=work / CACHE,
            resume=resume,
            on_progress=on_progress,
        )
        path = target.with_name(f"{target.name}_{number:05}_.safetensors")
        adapters.save_adapter(trained.adapter, path, trained.licence, **trained.facts)
        lora = ""
        if trained.lora is not None:
            beside, _ = free_name(f"{LORAS}/{name}")
            lora = trained.save_lora(beside.with_name(path.name)).name
        summary = f"Trained in {steps} steps: {ADAPTERS}/{path.name}" + (f", {LORAS}/{lora}." if lora else ".")
        log.info(summary)
        curve = drawing.to_tensor(draw_curves(trained.curve, steps))
        return io.NodeOutput(adapters.load_whole(path), path.name, lora, curve, ui=show(cls, summary))


def dataset_folder(text: str) -> Path:
    """A folder in ComfyUI's input or output folder; ValueError for one that is not there or elsewhere."""
    roots = [Path(root()).resolve() for root in (folder_paths.get_input_directory, folder_paths.get_output_directory)]
    text = text.strip()
    for root in roots:
        path = (root / text).resolve()
        if text and path.is_dir() and (path == root or root in path.parents):
            return path
    raise ValueError(
        f"The data set '{text}' is no folder inside of ComfyUI's input folder ({roots[0]}) or output folder "
        f"({roots[1]}); put it there and give its name."
    )


def check_name(name: str) -> None:
    """ValueError for what no file can be called, or what would leave its folder."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"The name '{name}' is no file name; use letters, digits, '-', '_' and spaces.")


def free_name(prefix: str) -> tuple[Path, int]:
    """(path without a number, the next free number) in ComfyUI's output folder, which must not be left."""
    output = folder_paths.get_output_directory()
    folder, stem, number, _, _ = folder_paths.get_save_image_path(prefix, output)
    return Path(folder) / stem, number


NODES = [TrainAdapter]
