"""Identity adapters: loaded, brought into a MODEL, and looked at while they decide who is where."""

import logging

import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from typing_extensions import override

from ..idcrafter.backbones.identity import Injection, attach_subjects, inject, next_key
from ..idcrafter.backbones.router_maps import draw_maps, router_maps, to_frames
from ..idcrafter.backbones.schedule import check_percents
from ..idcrafter.modules.hierarchy import Levels
from ..model_loaders import adapter as adapters
from ..model_loaders import checkpoint, eva_clip, files, video_dit
from .shown import show
from .types import AdapterType, CastType

log = logging.getLogger(__name__)

AUTO = "auto"
# A download of Ingredients lies with the video models, because its DiT is in the same files.
_IN_VIDEO_MODELS = f"{video_dit.FOLDER}/"
RESIDUAL = (AUTO, "on", "off")
LAST_BLOCK = 999


class LoadAdapter(io.ComfyNode):
    """A file -> an adapter, with what looks at the faces for it."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadAdapter",
            display_name="Load Adapter (IDCrafter)",
            category="IDCrafter/load",
            description="Loads an identity adapter for Inject Identity: one of this pack, or Ingredients as released "
            "for CogVideoX-5B-I2V. Every tensor is checked before memory is used. Says for which model it is and under "
            "which licence.",
            search_aliases=["idcrafter", "ingredients", "identity", "ip-adapter", "face id", "router", "loader"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=_adapter_names(),
                    tooltip="File or folder in models/idcrafter_adapters. Ingredients' folder may lie in "
                    "models/diffusion_models, where Load Video DiT finds the rest of it.",
                ),
                io.Combo.Input(
                    "visual_encoder",
                    options=[AUTO, *folder_paths.get_filename_list(eva_clip.FOLDER)],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip=f"What looks at the faces for Ingredients: {eva_clip.STEM} in models/clip_vision, or in "
                    "the face_encoder folder of the download. 'auto' finds it there; adapters that look through the "
                    "VAE need none.",
                ),
            ],
            outputs=[
                AdapterType.Output(display_name="adapter"),
                io.String.Output(display_name="summary", tooltip="Which model it fits, what is in it, its licence."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, adapter_name, visual_encoder=AUTO) -> io.NodeOutput:
        if adapter_name.startswith(_IN_VIDEO_MODELS):
            path = files.require(video_dit.FOLDER, adapter_name.removeprefix(_IN_VIDEO_MODELS))
        else:
            path = files.require(adapters.FOLDER, adapter_name)
        encoder = None if visual_encoder == AUTO else files.require(eva_clip.FOLDER, visual_encoder)
        adapter = adapters.load_whole(path, encoder)
        summary = f"{adapter.facts['file']}: {adapters.describe(adapter.config, adapter.facts)}"
        return io.NodeOutput(adapter, summary, ui=show(cls, summary))


class InjectIdentity(io.ComfyNode):
    """MODEL + adapter + cast + conditioning -> MODEL and conditioning with the people in them."""

    @classmethod
    @override
    def define_schema(cls):
        def share(name: str, default: float, tooltip: str, most: float = 2.0):
            return io.Float.Input(name, default=default, min=0.0, max=most, step=0.05, round=0.001, tooltip=tooltip)

        return io.Schema(
            node_id="IDCrafterInjectIdentity",
            display_name="Inject Identity (IDCrafter)",
            category="IDCrafter/inject",
            description="Brings the faces of the cast into the video model through an adapter, whose router decides "
            "for each place of the video whom it shows. Up to 8 people; several of these nodes add up. For Wan and "
            "CogVideoX models that the adapter was trained on. Connect the conditionings that come out to the sampler.",
            search_aliases=[
                "idcrafter",
                "ingredients",
                "identity",
                "face id",
                "ip-adapter",
                "router",
                "multi subject",
                "instantid",
                "consisid",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the adapter was trained on; others are refused."),
                AdapterType.Input("adapter", tooltip="From Load Adapter."),
                CastType.Input(
                    "cast",
                    tooltip="From Extract Faces, with the recogniser that the adapter was trained with. Who has no "
                    "usable face is not injected.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt, mostly from Cast to Video; gets the people."),
                share(
                    "strength",
                    1.0,
                    "Of all that the adapter adds. 1 is as trained, 0 leaves the model exactly as it was; much above 1 "
                    "copies the photos and stiffens the faces.",
                ),
                share(
                    "intra",
                    1.0,
                    "How much the photos of one person are made consistent with each other. Without effect where the "
                    "adapter has no hierarchy, as Ingredients.",
                ),
                share(
                    "inter",
                    1.0,
                    "How much the people are told apart from each other. Without effect where the adapter has no "
                    "hierarchy.",
                ),
                share(
                    "cross_modal",
                    1.0,
                    "How much the people read the prompt, so that it knows who does what. Without effect where the "
                    "adapter has no hierarchy.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Of the router. Below 1 each place shows one person more clearly; above 1 people mix "
                    "more. 1 is as trained.",
                ),
                share("start_percent", 0.0, "Share of the schedule after which the adapter is on.", 1.0),
                share(
                    "end_percent",
                    1.0,
                    "Share of the schedule after which the adapter is off. Who stands where is decided early, the face "
                    "in the middle; less than 1 saves time.",
                    1.0,
                ),
                io.Int.Input(
                    "first_block",
                    default=0,
                    min=0,
                    max=LAST_BLOCK,
                    advanced=True,
                    tooltip="Block of the model, from 0, after which the adapter first adds something.",
                ),
                io.Int.Input(
                    "last_block",
                    default=LAST_BLOCK,
                    min=0,
                    max=LAST_BLOCK,
                    advanced=True,
                    tooltip=f"Block after which it last does; {LAST_BLOCK} is the model's last one.",
                ),
                io.Combo.Input(
                    "unconditional_residual",
                    options=list(RESIDUAL),
                    default=AUTO,
                    advanced=True,
                    tooltip="'on' gives all branches of guidance what the negative prompt's gets, so that guidance "
                    "does not exaggerate the faces. Ingredients' release works like that; 'auto' is on for it and off "
                    "for others.",
                ),
                io.Conditioning.Input(
                    "negative_text", optional=True, tooltip="The negative prompt; gets the people as well."
                ),
                io.Conditioning.Input(
                    "negative_images",
                    optional=True,
                    tooltip="The negative prompt without references, for guidance by images; gets no people.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The video model's VAE, for adapters that look at faces through it (nano).",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Unchanged when the strength is 0."),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative_text"),
                io.Conditioning.Output(display_name="negative_images"),
                io.String.Output(display_name="report", tooltip="Who was injected from how many photos, and warnings."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(
        cls,
        model,
        adapter,
        cast,
        positive,
        strength=1.0,
        intra=1.0,
        inter=1.0,
        cross_modal=1.0,
        temperature=1.0,
        start_percent=0.0,
        end_percent=1.0,
        first_block=0,
        last_block=LAST_BLOCK,
        unconditional_residual=AUTO,
        negative_text=None,
        negative_images=None,
        vae=None,
    ) -> io.NodeOutput:
        check_percents(start_percent, end_percent, "the adapter")
        if first_block > last_block:
            raise ValueError(f"first_block ({first_block}) lies behind last_block ({last_block}); exchange them.")
        if strength == 0.0:
            report = "The strength is 0: nobody is injected."
            given = [_or_blocker(conditioning) for conditioning in (positive, negative_text, negative_images)]
            return io.NodeOutput(model, *given, report, ui=show(cls, report))
        injection = Injection(
            strength,
            Levels(intra, inter, cross_modal),
            temperature,
            start_percent,
            end_percent,
            first_block,
            last_block,
            unconditional_residual == "on"
            or (unconditional_residual == AUTO and adapter.facts["layout"] == "ingredients"),
        )
        names = [subject.name for subject in cast.subjects]
        key = next_key(model)
        patched = inject(model, key, adapter.patcher, injection, names)
        progress = comfy.utils.ProgressBar(sum(len(subject.photos) for subject in cast.subjects))
        tokens, photos = adapter.identity_tokens(
            cast, vae, model.model.process_latent_in, on_photo=lambda: progress.update(1)
        )
        people = attach_subjects(positive, key, tokens, photos, names)
        others = []
        for conditioning, shown in ((negative_text, photos), (negative_images, photos * 0)):
            with_people = None if conditioning is None else attach_subjects(conditioning, key, tokens, shown, names)
            others.append(_or_blocker(with_people))
        counts = (f"{name} ({int(count)})" for name, count in zip(names, photos.sum(dim=1), strict=True) if count)
        warnings = adapter.warnings(cast)
        for warning in warnings:
            log.warning(warning)
        report = "\n".join([*warnings, f"Injected, with so many photos: {', '.join(counts)}."])
        return io.NodeOutput(patched, people, *others, report, ui=show(cls, report))


class RouterMaps(io.ComfyNode):
    """What the router of an injected adapter thinks who is where, in every frame."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterRouterMaps",
            display_name="Router Maps (IDCrafter)",
            category="IDCrafter/inject",
            description="Shows which person an adapter's router puts where: adds noise to a finished video, asks the "
            "model once, and paints each place in the colours of who it belongs to. One picture a frame, and a mask "
            "for each person. Costs one step of sampling.",
            search_aliases=["idcrafter", "router", "attention map", "segmentation", "who is where", "mask", "debug"],
            inputs=[
                io.Model.Input("model", tooltip="From Inject Identity, with an adapter that has a router."),
                io.Conditioning.Input("positive", tooltip="The positive conditioning from Inject Identity."),
                io.Latent.Input("latent", tooltip="The finished video as the sampler gives it, before it is decoded."),
                io.Float.Input(
                    "noise_level",
                    default=0.6,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the schedule that is undone. High levels show where people are put, low ones "
                    "where the faces are refined; must lie between start and end percent of Inject Identity.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise; the maps hardly depend on it.",
                ),
                io.Image.Input(
                    "video", optional=True, tooltip="The decoded video; the colours are laid over its frames."
                ),
                io.Int.Input(
                    "trim_latent",
                    default=0,
                    min=0,
                    max=64,
                    optional=True,
                    tooltip="VACE: latent frames at the front that are references, from Cast to Video.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="maps", tooltip="One picture a frame, with everybody's colour and share below."
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One batch a person in cast order, one mask a frame: the router's weight, 0..1.",
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, model, positive, latent, noise_level=0.6, seed=0, video=None, trim_latent=0) -> io.NodeOutput:
        samples = latent["samples"]
        maps = router_maps(model, positive, samples, noise_level, seed)
        scale = model.model.latent_format
        height, width = (side * scale.spacial_downscale_ratio for side in samples.shape[-2:])
        frames = to_frames(maps, height, width, scale.temporal_downscale_ratio, trim_latent)
        return io.NodeOutput(draw_maps(frames, maps.names, video), list(frames))


def _adapter_names() -> list[str]:
    """Our folder's files, and folders of video models that are called Ingredients."""
    names = checkpoint.list_names(folder_paths.get_filename_list(adapters.FOLDER))
    others = checkpoint.list_names(folder_paths.get_filename_list(video_dit.FOLDER))
    return names + [_IN_VIDEO_MODELS + name for name in others if "ingredients" in name.lower()]


def _or_blocker(conditioning: list | None) -> list | ExecutionBlocker:
    return ExecutionBlocker("Connect this conditioning to Inject Identity.") if conditioning is None else conditioning


NODES = [LoadAdapter, InjectIdentity, RouterMaps]
