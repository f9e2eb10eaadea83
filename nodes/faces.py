"""The faces of the cast: found, saved, loaded."""

import os

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from typing_extensions import override

from ..idcrafter.subjects.embeddings import restore_faces, save_faces
from ..idcrafter.subjects.faces import NO_FACE_POLICIES, SEVERAL_FACES_POLICIES, extract_faces
from ..idcrafter.subjects.sheet import cast_report, contact_sheet
from .shown import show
from .types import CastType, FaceAnalyzerType

SUFFIX = ".safetensors"
_FROM_OUTPUT = " [output]"


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
                    "face_analyzer",
                    tooltip="From Load Bundle or Load Face Analyzer. Its licence is written into reports.",
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
            hidden=[io.Hidden.unique_id],
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
        return io.NodeOutput(cast, contact_sheet(cast), report, ui=show(cls, report))


class SaveFaces(io.ComfyNode):
    """The faces of a cast -> a safetensors file that says where they came from."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterSaveFaces",
            display_name="Save Faces (IDCrafter)",
            category="IDCrafter/cast",
            description="Saves the face embeddings of the cast with their provenance: the analyzer, its licence, and "
            "the digests of its model files and of the photos. The photos themselves are not in the file.",
            search_aliases=["idcrafter", "face embedding", "save embeddings", "safetensors", "identity"],
            inputs=[
                CastType.Input("cast", tooltip="The cast from Extract Faces."),
                io.String.Input(
                    "filename_prefix",
                    default="idcrafter/faces",
                    tooltip="Where the file goes, inside the output folder; a number and .safetensors are appended. "
                    "%year%, %month%, %day% and so on work as in Save Image.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="The saved file, relative to the output folder."),
            ],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(cls, cast, filename_prefix="idcrafter/faces") -> io.NodeOutput:
        folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{filename}_{counter:05}_{SUFFIX}"
        facts = save_faces(cast, os.path.join(folder, file))
        name = os.path.join(subfolder, file).replace(os.sep, "/")
        text = f"Faces of {', '.join(entry['name'] for entry in facts['subjects'])}: {name}"
        return io.NodeOutput(
            name, ui={"text": (text,), "files": [ui.SavedResult(file, subfolder, io.FolderType.output)]}
        )


class LoadFaces(io.ComfyNode):
    """A file of Save Faces + its cast -> the cast with these faces."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterLoadFaces",
            display_name="Load Faces (IDCrafter)",
            category="IDCrafter/cast",
            description="Gives a cast the faces that were saved for it, so that every run and every machine scores "
            "against the same embeddings. Photos, subjects and recogniser must be those of the file.",
            search_aliases=["idcrafter", "face embedding", "load embeddings", "safetensors", "identity"],
            inputs=[
                CastType.Input("cast", tooltip="The cast whose faces were saved: same photos, same masks, same order."),
                FaceAnalyzerType.Input(
                    "face_analyzer",
                    tooltip="Will find the faces in the takes. Its recogniser must be the one that made the file.",
                ),
                io.Combo.Input(
                    "file",
                    options=_face_files(),
                    tooltip="A .safetensors file of Save Faces, in ComfyUI's input folder or, with [output], where "
                    "Save Faces has put it.",
                ),
            ],
            outputs=[
                CastType.Output(display_name="cast"),
                io.String.Output(display_name="report", tooltip="Who is in the file, with all warnings."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, cast=None, face_analyzer=None, file=None):
        path = folder_paths.get_annotated_filepath(file)
        return os.path.getmtime(path) if os.path.isfile(path) else None

    @classmethod
    @override
    def execute(cls, cast, face_analyzer, file) -> io.NodeOutput:
        path = folder_paths.get_annotated_filepath(file)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"'{file}' is not in ComfyUI's input or output folder; save the faces first.")
        cast = restore_faces(cast, path, face_analyzer)
        report = cast_report(cast)
        return io.NodeOutput(cast, report, ui=show(cls, report))


def _face_files() -> list[str]:
    """What Load Faces offers: files of the input folder, and of Save Faces' default place in the output folder."""
    inputs, outputs = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    own = [name for name in sorted(os.listdir(inputs)) if name.endswith(SUFFIX)]
    saved = []
    for root, folders, names in os.walk(os.path.join(outputs, "idcrafter")):
        folders[:] = [name for name in folders if name != "takes"]
        for name in sorted(names):
            if name.startswith("faces") and name.endswith(SUFFIX):
                saved.append(os.path.relpath(os.path.join(root, name), outputs).replace(os.sep, "/") + _FROM_OUTPUT)
    return own + saved


NODES = [ExtractFaces, SaveFaces, LoadFaces]
