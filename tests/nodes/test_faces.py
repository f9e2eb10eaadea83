"""IDCrafterExtractFaces as ComfyUI runs it."""

import pytest
import torch

from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


def cast_of(*photos):
    return make_cast([make_subject(f"S{i}", "person", "", photo[None]) for i, photo in enumerate(photos, 1)])


def run(pack, cast, no_face="error", several_faces="error"):
    return pack.execute(
        "IDCrafterExtractFaces",
        cast=cast,
        face_analyzer=PaintedFaceAnalyzer(),
        no_face=no_face,
        several_faces=several_faces,
    )


def test_outputs(pack):
    cast = cast_of(paint(blank(), 1, 10), paint(blank(), 2, 10))
    result = run(pack, cast)
    scored, sheet, report = result
    assert [own.mean.shape for own in scored.faces.subjects] == [(512,), (512,)]
    assert cast.faces is None  # the input is left as it was
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.dtype == torch.float32
    assert "S1 (person): 1 of 1 photos used" in report
    assert result.ui == {"text": (report,)}


def test_policies_reach_the_library(pack):
    cast = cast_of(blank(), paint(paint(blank(), 1, 10), 2, 50))
    with pytest.raises(ValueError, match="photo 1 of subject 'S1': no face found"):
        run(pack, cast)
    with pytest.raises(ValueError, match="photo 1 of subject 'S2': 2 faces found"):
        run(pack, cast, no_face="skip")
    scored, _, report = run(pack, cast, no_face="skip", several_faces="largest")
    assert scored.faces.subjects[0] is None and scored.faces.subjects[1] is not None
    assert "Warning: person 'S1' has no usable face" in report


def test_saved_faces_are_loaded_again(pack):
    import folder_paths

    cast = cast_of(paint(blank(), 1, 10), paint(blank(), 2, 10))
    scored = run(pack, cast)[0]
    saved = pack.execute("IDCrafterSaveFaces", cast=scored, filename_prefix="idcrafter/faces")
    (file,) = saved
    assert file == "idcrafter/faces_00001_.safetensors" and "Faces of S1, S2" in saved.ui["text"][0]
    assert pack.execute("IDCrafterSaveFaces", cast=scored)[0] == "idcrafter/faces_00002_.safetensors"
    node = pack.nodes["IDCrafterLoadFaces"]
    choice = f"{file} [output]"
    assert choice in node.define_schema().inputs[2].options
    analyzer = PaintedFaceAnalyzer()
    loaded = pack.execute("IDCrafterLoadFaces", cast=cast, face_analyzer=analyzer, file=choice)
    assert [own.mean.tolist() for own in loaded[0].faces.subjects] == [
        own.mean.tolist() for own in scored.faces.subjects
    ]
    assert analyzer.calls == 0 and loaded[0].faces.analyzer is analyzer
    assert loaded.ui == {"text": (loaded[1],)} and "S1 (person): 1 of 1 photos used" in loaded[1]
    assert node.fingerprint_inputs(file=choice) is not None and node.fingerprint_inputs(file="gone") is None
    with pytest.raises(FileNotFoundError, match="'gone.safetensors' is not in ComfyUI's input or output folder"):
        pack.execute("IDCrafterLoadFaces", cast=cast, face_analyzer=analyzer, file="gone.safetensors")
    assert folder_paths.get_output_directory() not in file


def test_faces_are_not_saved_outside_of_the_output_folder(pack):
    scored = run(pack, cast_of(paint(blank(), 1, 10)))[0]
    with pytest.raises(Exception, match="output"):
        pack.execute("IDCrafterSaveFaces", cast=scored, filename_prefix="../../escaped")


def test_interrupt_takes_effect_between_photos(pack, monkeypatch):
    import comfy.model_management
    import comfy.utils

    def interrupted(*args, **kwargs):
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(pack, cast_of(paint(blank(), 1, 10), paint(blank(), 2, 10)))
