"""How a cast reaches a backbone."""

import logging

from comfy_api.latest import io

from ..idcrafter.conditioning import phantom
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
            "the conditioning in cast order. Feeds Sample Takes, or core's Dual CFG Guider (cond1 = positive, cond2 = "
            "negative_text, negative = negative_images, style regular).",
            search_aliases=["idcrafter", "phantom", "subject to video", "reference", "conditioning", "wan"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt from Relate, encoded by the model's text encoder."
                ),
                io.Conditioning.Input("negative", tooltip="What the video must not show; may be an empty prompt."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE; each reference costs one encoding of a single frame."),
                CastType.Input("cast", tooltip="At most 4 subjects for Phantom. Faces are not needed here."),
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
                    options=["auto", "phantom"],
                    default="auto",
                    tooltip="How the model takes references. 'phantom': letterboxed on white, one latent frame each "
                    "behind the video, first photos of all subjects first, at most 4. 'auto' is phantom for now.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the references."),
                io.Conditioning.Output(
                    display_name="negative_text", tooltip="The negative prompt with the references."
                ),
                io.Conditioning.Output(
                    display_name="negative_images", tooltip="The negative prompt with references of zeros."
                ),
                io.Latent.Output(display_name="latent", tooltip="An empty video of this size, batch 1."),
                io.Image.Output(
                    display_name="references",
                    tooltip="The photos as the model gets them, in order: look at them before a long run.",
                ),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, vae, cast, width, height, length, rule="auto") -> io.NodeOutput:
        out = phantom.condition(positive, negative, vae, cast, width, height, length)
        log.info("References in order: %s.", ", ".join(ref.label(cast) for ref in out.used))
        if out.left_out:
            log.warning(
                "The Phantom rule takes %d references; left out: %s.",
                phantom.MAX_REFERENCES,
                ", ".join(ref.label(cast) for ref in out.left_out),
            )
        return io.NodeOutput(out.positive, out.negative_text, out.negative_images, out.latent, out.references)


NODES = [CastToVideo]
