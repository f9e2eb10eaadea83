"""Who is in the video: subjects and the cast."""

from comfy_api.latest import io

from ..idcrafter.subjects.subject import KINDS, MAX_NAME, MAX_SUBJECTS, make_cast, make_subject
from .types import CastType, SubjectType

_PREFIX = "subject"


class Subject(io.ComfyNode):
    """Photos and a name -> one cast member."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterSubject",
            display_name="Subject (IDCrafter)",
            category="IDCrafter/cast",
            description="One person, animal or object that must be recognisable in the video, from one or more photos.",
            search_aliases=["idcrafter", "character", "person", "actor", "identity", "reference", "pet", "product"],
            inputs=[
                io.String.Input(
                    "name",
                    default="Ada",
                    tooltip=f"How Relate, scores and reports call this subject; the model never sees it. Unique in the "
                    f"cast, at most {MAX_NAME} characters, any language.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="person",
                    tooltip="Faces are looked for in a person or an animal, never in an object.",
                ),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    tooltip="What the subject looks like, as a noun phrase: 'a woman with red hair in a green coat'. "
                    "Goes into the prompt; models keep a subject better when the prompt describes it.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="One photo, or a batch of photos of the same subject (16 to 8192 px a side). The first one "
                    "is used first; more photos make the face embedding steadier.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = the subject; everything else becomes white background. One mask, or one per "
                    "photo. Load Image's MASK is the opposite (white = transparent): put Invert Mask in between. "
                    "Without a mask, an alpha channel is used.",
                ),
            ],
            outputs=[SubjectType.Output(display_name="subject")],
        )

    @classmethod
    def execute(cls, name, kind, description, images, mask=None) -> io.NodeOutput:
        return io.NodeOutput(make_subject(name, kind, description, images, mask))


class Cast(io.ComfyNode):
    """Subjects -> the cast of one shot."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterCast",
            display_name="Cast (IDCrafter)",
            category="IDCrafter/cast",
            description="Joins 1 to 8 subjects. Their order is the order of the references, of 'the first', 'the "
            "second' in the prompt, and of the rows in every report.",
            search_aliases=["idcrafter", "characters", "group", "multi subject", "multiple people"],
            inputs=[
                io.Autogrow.Input(
                    "subjects",
                    template=io.Autogrow.TemplatePrefix(
                        input=SubjectType.Input("subject", tooltip="A subject; names must differ."),
                        prefix=_PREFIX,
                        min=1,
                        max=MAX_SUBJECTS,
                    ),
                ),
            ],
            outputs=[CastType.Output(display_name="cast")],
        )

    @classmethod
    def execute(cls, subjects=None) -> io.NodeOutput:
        # The server hands the slots over in any order; their numbers are the order on the node.
        slots = sorted(subjects or {}, key=lambda slot: int(slot.removeprefix(_PREFIX)))
        return io.NodeOutput(make_cast([subjects[slot] for slot in slots if subjects[slot] is not None]))


NODES = [Subject, Cast]
