"""The faces of the cast."""

import comfy.utils
from comfy_api.latest import io, ui
from typing_extensions import override

from ..idcrafter.subjects.faces import NO_FACE_POLICIES, SEVERAL_FACES_POLICIES, extract_faces
from ..idcrafter.subjects.sheet import cast_report, contact_sheet
from .types import CastType, FaceAnalyzerType


class ExtractFaces(io.ComfyNode):
    """Cast -> the same cast with a face embedding of everybody, and a contact sheet to check it by eye."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterExtractFaces",
            display_name="Extract Faces (IDCrafter)",
            category="IDCrafter/cast",
            description="Finds and embeds the face in every photo of the cast, and warns when two subjects look alike "
            "or the photos of one subject disagree. Scores need it.",
            search_aliases=["idcrafter", "face detection", "face embedding", "insightface", "arcface", "contact sheet"],
            inputs=[
                CastType.Input("cast", tooltip="From Cast; every photo of every subject is searched for faces."),
                FaceAnalyzerType.Input(
                    "face_analyzer", tooltip="From Load Bundle. Its licence is written into reports."
                ),
                io.Combo.Input(
                    "no_face",
                    options=list(NO_FACE_POLICIES),
                    default="error",
                    tooltip="A person's photo without a face: 'error' stops the run and names the photo, 'skip' leaves "
                    "it out. Who has no face in any photo is not scored. Photos of animals are always skipped.",
                ),
                io.Combo.Input(
                    "several_faces",
                    options=list(SEVERAL_FACES_POLICIES),
                    default="error",
                    tooltip="A photo with several faces: 'error' stops the run and names the photo, 'largest' takes "
                    "the largest face, 'skip' leaves the photo out. With a mask only faces inside it count.",
                ),
            ],
            outputs=[
                CastType.Output(display_name="cast"),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="Each photo with the face found in it, its aligned crop, and the similarity of all faces.",
                ),
                io.String.Output(display_name="report", tooltip="The contact sheet in words, with all warnings."),
            ],
        )

    @classmethod
    @override
    def execute(cls, cast, face_analyzer, no_face, several_faces) -> io.NodeOutput:
        photos = sum(len(subject.photos) for subject in cast.subjects if subject.kind != "object")
        # Its update is also where an interrupt takes effect.
        progress = comfy.utils.ProgressBar(photos)
        faces = extract_faces(cast, face_analyzer, no_face, several_faces, on_photo=lambda: progress.update(1))
        cast = cast.with_faces(faces)
        report = cast_report(cast)
        return io.NodeOutput(cast, contact_sheet(cast), report, ui=ui.PreviewText(report))


NODES = [ExtractFaces]
