"""What happens between the subjects."""

from comfy_api.latest import io

from ..idcrafter.relations.compose import WORDINGS, compose
from .types import CastType


class Relate(io.ComfyNode):
    """Cast + action by name -> prompt."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterRelate",
            display_name="Relate (IDCrafter)",
            category="IDCrafter/relate",
            description="Turns an action that uses the subjects' names into a prompt that describes each of them the "
            "same way every time. The same inputs always give the same prompt.",
            search_aliases=["idcrafter", "prompt", "action", "interaction", "caption", "relation", "story"],
            inputs=[
                CastType.Input("cast", tooltip="Subjects that the action does not name are introduced as well."),
                io.String.Input(
                    "action",
                    default="",
                    multiline=True,
                    tooltip="What happens, with the subjects' names: 'Ada hugs Bo. Ada smiles.' A name counts as a "
                    "whole word with its case, so 'Will will wait' keeps its verb.",
                ),
                io.Combo.Input(
                    "wording",
                    options=list(WORDINGS),
                    default="descriptions",
                    tooltip="'descriptions' puts each description in the place of the name (Phantom, SkyReels-V3, "
                    "RefAlign, HuMo, VACE). 'ordinals' first lists them ('The first is ...') and then says 'the first' "
                    "(nano); 'people' does so with 'the first person' (the Identity-GRPO LoRAs). 'images' "
                    "adds 'from image0', 'from image1' to the descriptions (Bernini).",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
        )

    @classmethod
    def execute(cls, cast, action, wording="descriptions") -> io.NodeOutput:
        return io.NodeOutput(compose(cast.subjects, action, wording))


NODES = [Relate]
