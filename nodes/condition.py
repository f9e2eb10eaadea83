"""How a cast reaches a backbone."""

import logging

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..idcrafter.conditioning.rules import RULES, apply_rule, choose_rule
from ..idcrafter.conditioning.shot import Shot
from ..idcrafter.subjects.references import FRAMINGS, MAX_PHOTOS
from .types import CastType

log = logging.getLogger(__name__)

# What core allows a side (and, here as there, a length) to be.
MAX_PIXELS = 16384


class CastToVideo(io.ComfyNode):
    """Cast -> conditioning and an empty latent, by the backbone's reference rule."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterCastToVideo",
            display_name="Cast to Video (IDCrafter)",
            category="IDCrafter/condition",
            description="Fits every subject's photos to the video without cropping, encodes them and attaches them to "
            "the conditioning in cast order, by the rule of the model: Phantom, SkyReels-V3, RefAlign, VACE, HuMo or "
            "Bernini. Feeds Sample Takes, or core's Dual CFG Guider (cond1 = positive, cond2 = negative_text, negative "
            "= negative_images, style regular).",
            search_aliases=[
                "idcrafter",
                "phantom",
                "vace",
                "humo",
                "skyreels",
                "refalign",
                "bernini",
                "subject to video",
                "reference",
                "conditioning",
                "wan",
            ],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt from Relate, encoded by the model's text encoder."
                ),
                io.Conditioning.Input("negative", tooltip="What the video must not show; may be an empty prompt."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE; each reference costs one encoding of a single frame."),
                CastType.Input(
                    "cast",
                    tooltip="At most 4 subjects, 8 for Bernini. Faces are only needed for the framings 'faces' and "
                    "'both'.",
                ),
                io.Int.Input(
                    "width",
                    default=832,
                    min=16,
                    max=MAX_PIXELS,
                    step=16,
                    tooltip="Pixels, a multiple of 16. Phantom-Wan was trained at 832x480, nano at 96x64.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=16,
                    max=MAX_PIXELS,
                    step=16,
                    tooltip="Pixels, a multiple of 16.",
                ),
                io.Int.Input(
                    "length",
                    default=81,
                    min=1,
                    max=MAX_PIXELS,
                    step=4,
                    tooltip="Frames, 4n + 1. 81 at 16 fps are 5 seconds; nano makes 9 at 8 fps.",
                ),
                io.Combo.Input(
                    "rule",
                    options=["auto", *RULES],
                    default="auto",
                    tooltip="How the model takes references; the help page has them all. 'auto' asks the connected "
                    "MODEL, and is phantom without one. Phantom, SkyReels-V3, RefAlign and Bernini files look alike: "
                    "for a MODEL from another pack's loader (GGUF), set it by hand or put Load Video DiT in between.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Tells 'auto' which rule to use. RefAlign needs it, because its rule changes the model: "
                    "then sample with the MODEL that comes out.",
                ),
                io.Combo.Input(
                    "framing",
                    options=list(FRAMINGS),
                    default="whole",
                    optional=True,
                    tooltip="'whole' shows the photos, 'faces' only the squares around the faces (a stronger likeness, "
                    "clothes and build are up to the prompt), 'both' first the one and then the other, as far as there "
                    "is room. 'faces' and 'both' need the cast from Extract Faces.",
                ),
                io.Int.Input(
                    "photos",
                    default=MAX_PHOTOS,
                    min=1,
                    max=MAX_PHOTOS,
                    optional=True,
                    tooltip="At most this many photos a subject. More of them show the subject from more sides, and "
                    "each costs the time of one more latent frame. Where the model has room for fewer, the first one "
                    "and those that differ most from it are used.",
                ),
                io.Boolean.Input(
                    "cut_out",
                    default=True,
                    optional=True,
                    tooltip="On: masks remove the background of the photos, so that it cannot leak into the video. "
                    "Off: masks only say whose face is meant.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="VACE only: scales what its context (references and control video) adds to the video; 0 is "
                    "plain text to video. Other models have no such thing: there cfg_images weighs the references.",
                ),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="VACE: depth, pose, or a video whose masked part is made anew. Bernini: the video to edit. "
                    "Scaled and cropped to the size; frames beyond the length are dropped.",
                ),
                io.Mask.Input(
                    "control_masks",
                    optional=True,
                    tooltip="VACE: white is made anew, black keeps the control video. One mask for all frames, or one "
                    "a frame.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the references."),
                io.Conditioning.Output(
                    display_name="negative_text", tooltip="The negative prompt with the references."
                ),
                io.Conditioning.Output(
                    display_name="negative_images",
                    tooltip="The negative prompt without references (with VACE, which has no guidance by images, the "
                    "same as negative_text).",
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="An empty video of this size, batch 1; with VACE longer by trim_latent.",
                ),
                io.Image.Output(
                    display_name="references",
                    tooltip="The photos as the model gets them, in order: look at them before a long run.",
                ),
                io.Int.Output(
                    display_name="trim_latent",
                    tooltip="Latent frames to cut from the front of the result before decoding (core's Trim Video "
                    "Latent). Only VACE has any: one a reference.",
                ),
                io.Model.Output(display_name="model", tooltip="The MODEL, changed where the rule needs it (RefAlign)."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        cast,
        width,
        height,
        length,
        rule="auto",
        model=None,
        framing="whole",
        photos=MAX_PHOTOS,
        cut_out=True,
        strength=1.0,
        control_video=None,
        control_masks=None,
    ) -> io.NodeOutput:
        chosen = choose_rule(rule, model)
        shot = Shot(
            positive=positive,
            negative=negative,
            vae=vae,
            cast=cast,
            width=width,
            height=height,
            length=length,
            framing=framing,
            photos=photos,
            cut_out=cut_out,
            strength=strength,
            control_video=control_video,
            control_masks=control_masks,
            model=model,
        )
        out = apply_rule(chosen, shot)
        log.info("References by the %s rule: %s.", chosen.title, ", ".join(ref.label(cast) for ref in out.used))
        if out.left_out:
            log.warning(
                "The %s rule takes %d references; left out: %s.",
                chosen.title,
                chosen.limit,
                ", ".join(ref.label(cast) for ref in out.left_out),
            )
        given = (
            out.model if out.model is not None else ExecutionBlocker("Connect a MODEL to Cast to Video to get one out.")
        )
        return io.NodeOutput(
            out.positive, out.negative_text, out.negative_images, out.latent, out.references, out.trim, given
        )


NODES = [CastToVideo]
