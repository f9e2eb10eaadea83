"""Face analyzers by name, from the folders in which people have them."""

import logging
import shlex

import folder_paths
import pytest
import torch

from support import onnx_faces
from support.curricular_weights import empty_weights
from support.onnx_faces import picture
from support.onnx_opencv import write_sface, write_yunet


@pytest.fixture(scope="module")
def faces(pack):
    return pack.submodule("model_loaders.faces")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model folder with every known model, each with its published name and a tiny content."""
    root = tmp_path_factory.mktemp("insightface")
    models = root / "models"
    onnx_faces.write_pack(models / "buffalo_l")
    onnx_faces.write_pack(models / "antelopev2" / "antelopev2")  # as its zip unpacks
    onnx_faces.write_pack(models / "mine")
    write_yunet(models / "opencv" / "face_detection_yunet_2023mar.onnx")
    write_sface(models / "opencv" / "face_recognition_sface_2021dec.onnx")
    (models / "auraface").mkdir()
    onnx_faces.write_recogniser(models / "auraface" / "glintr100.onnx")
    (models / "curricularface").mkdir()
    torch.save(empty_weights(), models / "curricularface" / "glint360k_curricular_face_r101_backbone.bin")
    return root


@pytest.fixture
def folder(files, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "insightface", ([str(files)], {".onnx"}))
    return files


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "insightface", ([str(tmp_path)], {".onnx"}))
    return tmp_path


def face_at(size):
    """A picture in which one face fills a cell of the 32 px grid at the detector's size."""
    return picture((1, 2, 0.3), size=(size, size))


@pytest.mark.parametrize("name", ["buffalo_l", "antelopev2"])
def test_insightface_packs(faces, folder, name):
    analyzer = faces.load_named_analyzer(name, provider="cpu")
    facts = analyzer.describe()
    assert (facts["name"], facts["det_size"], facts["provider"]) == (name, 640, "cpu")
    assert "non-commercial" in analyzer.licence
    assert len(analyzer.analyze(face_at(640))) == 1
    # antelopev2 was repaired in memory: its folder is as it was unpacked.
    assert (folder / "models" / "antelopev2" / "antelopev2" / "det_tiny.onnx").is_file()
    assert not list((folder / "models" / "antelopev2").glob("*.onnx"))


def test_an_own_pack_has_an_unknown_licence(faces, folder):
    assert faces.load_named_analyzer("mine", provider="cpu").licence == "unknown, ask who made the pack"


@pytest.mark.parametrize(
    ("recogniser", "name", "dimensions"),
    [("auto", "auraface", 512), ("auraface", "auraface", 512), ("sface", "sface", 128)],
)
def test_the_clean_stack(faces, folder, recogniser, name, dimensions):
    analyzer = faces.load_named_analyzer("yunet", recogniser, provider="cpu")
    assert analyzer.name == f"yunet + {name}"
    assert analyzer.licence == f"yunet: MIT; {name}: Apache-2.0"
    assert "non-commercial" not in str(analyzer.describe())
    (face,) = analyzer.analyze(face_at(640))
    assert face.embedding.shape == (dimensions,)


def test_a_packs_detector_with_another_recogniser(faces, folder):
    analyzer = faces.load_named_analyzer("buffalo_l", "auraface", provider="cpu")
    assert analyzer.licence.startswith("buffalo_l: insightface") and analyzer.licence.endswith("auraface: Apache-2.0")
    assert len(analyzer.analyze(face_at(640))) == 1


def test_curricularface_is_a_recogniser_of_224_pixels(faces, folder):
    analyzer = faces.load_named_analyzer("buffalo_l", "curricularface", provider="cpu")
    assert analyzer.recogniser.crop_size == 224 and "research only" in analyzer.licence


def test_the_nano_pack_comes_with_the_pack(faces):
    analyzer = faces.load_named_analyzer("idcrafter_nano", provider="cpu")
    assert analyzer.licence == "Apache-2.0" and analyzer.describe()["det_size"] == 128


def test_licences_are_logged_and_summarised(faces, folder, caplog):
    with caplog.at_level(logging.INFO):
        analyzer = faces.load_named_analyzer("yunet", "sface", provider="auto")
    assert "yunet on cpu" in caplog.text and "licence: MIT" in caplog.text and "licence: Apache-2.0" in caplog.text
    assert faces.summary(analyzer).splitlines() == [
        "Face detection: yunet on cpu at 640 px, licence: MIT",
        "Face recognition: sface on cpu, licence: Apache-2.0",
    ]


@pytest.mark.parametrize(
    ("detector", "recogniser", "file", "command"),
    [
        ("buffalo_l", "auto", "models/buffalo_l", "curl -L --create-dirs -o"),
        ("antelopev2", "auto", "models/antelopev2", "antelopev2.zip"),
        ("yunet", "sface", "models/opencv/face_detection_yunet_2023mar.onnx", "opencv_zoo/raw/main"),
        ("yunet", "auto", "models/opencv/face_detection_yunet_2023mar.onnx", "opencv_zoo/raw/main"),
    ],
)
def test_a_missing_file_names_folder_and_command(faces, empty, detector, recogniser, file, command):
    with pytest.raises(FileNotFoundError) as error:
        faces.load_named_analyzer(detector, recogniser)
    text = str(error.value)
    assert f"'{file}' is missing from the model folder 'insightface'" in text and str(empty) in text
    got = text.split("Get it with: ")[1]
    assert command in got and str(empty) in got
    shlex.split(got)  # a shell can read it, also with blanks in the path


@pytest.mark.parametrize(
    ("recogniser", "command"),
    [
        ("auraface", "hf download fal/AuraFace-v1 glintr100.onnx --local-dir"),
        ("curricularface", "hf download BestWishYsh/OpenS2V-Weight glint360k_curricular_face_r101_backbone.bin"),
        ("sface", "face_recognition_sface_2021dec.onnx"),
    ],
)
def test_a_missing_recogniser_is_found_missing_before_anything_loads(faces, empty, recogniser, command, monkeypatch):
    onnx_faces.write_pack(empty / "models" / "buffalo_l")
    monkeypatch.setattr(faces, "_load_detector", lambda *args: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError, match=command):
        faces.load_named_analyzer("buffalo_l", recogniser)


def test_a_missing_own_pack_has_no_command(faces, empty):
    with pytest.raises(FileNotFoundError, match="'models/gone' is missing .* Put it into one of these folders"):
        faces.load_named_analyzer("gone")


def test_a_name_that_leaves_the_folder(faces, empty):
    with pytest.raises(ValueError, match="leaves its model folder"):
        faces.load_named_analyzer("../../etc")


def test_unknown_choices(faces, folder):
    with pytest.raises(ValueError, match="one of auto, cuda, cpu, got 'tpu'"):
        faces.load_named_analyzer("yunet", "auraface", "tpu")
    with pytest.raises(ValueError, match="one of auto, auraface, sface, curricularface, got 'dlib'"):
        faces.load_named_analyzer("yunet", "dlib")


def test_cuda_is_never_quietly_the_cpu(faces, folder, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="run in OpenCV on the CPU; set the provider to cpu or auto"):
        faces.load_named_analyzer("yunet", "sface", "cuda")
    for detector, recogniser in (("buffalo_l", "auto"), ("yunet", "auraface"), ("buffalo_l", "curricularface")):
        with pytest.raises(RuntimeError, match="set the provider to auto or cpu"):
            faces.load_named_analyzer(detector, recogniser, "cuda")


def test_opencvs_place_on_the_cpu_is_no_fall(faces, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert faces.load_named_analyzer("yunet", "sface", "auto").warnings == ()


def test_auraface_that_is_no_recogniser(faces, files, folder, tmp_path):
    loader = faces.load_named_analyzer.__globals__["_load_recogniser"]
    detector = tmp_path / "glintr100.onnx"
    onnx_faces.write_detector(detector)
    with pytest.raises(ValueError, match="glintr100.onnx' is not a face recogniser"):
        loader("auraface", detector, "cpu")
    onnx_faces.write_recogniser(detector, dimensions=128)
    with pytest.raises(ValueError, match="gives 128 numbers a face, expected 512"):
        loader("auraface", detector, "cpu")
    detector.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="glintr100.onnx' is not an ONNX file but a web page"):
        loader("auraface", detector, "cpu")


def test_what_a_graph_can_choose(pack, folder):
    catalogue = pack.submodule("model_loaders.faces_catalogue")
    known = ["buffalo_l", "antelopev2", "idcrafter_nano", "idcrafter_nano_monitor", "yunet"]
    assert catalogue.detectors() == [*known, "mine"]


def test_the_fingerprint_follows_the_files(pack, folder):
    catalogue = pack.submodule("model_loaders.faces_catalogue")
    before = catalogue.fingerprint("yunet", "auto")
    assert before == catalogue.fingerprint("yunet", "auraface") != catalogue.fingerprint("yunet", "sface")
    path = folder / "models" / "auraface" / "glintr100.onnx"
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    assert catalogue.fingerprint("yunet", "auto") != before
    path.write_bytes(data)
    assert catalogue.fingerprint("gone", "auto") == "[]"
