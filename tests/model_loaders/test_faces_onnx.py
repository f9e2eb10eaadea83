"""Loading packs with the real insightface: what is taken, what is refused and why, and where it runs."""

import logging
import shutil

import numpy as np
import pytest
import torch

from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support import onnx_faces
from support.onnx_faces import picture


@pytest.fixture(scope="module")
def load(pack):
    return pack.submodule("model_loaders.faces").load_face_analyzer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return onnx_faces.write_pack(tmp_path_factory.mktemp("faces") / "tiny")


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the pack that a test may damage."""
    return shutil.copytree(folder, tmp_path / "tiny")


def test_a_recogniser_that_takes_one_face_at_a_time(load, broken):
    import onnx

    model = onnx.load(broken / "rec_tiny.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, broken / "rec_tiny.onnx")
    faces = load(broken, det_size=128, provider="cpu").analyze(picture((0, 1, 0.0), (2, 1, 1.0), (3, 2, 0.5)))
    assert len(faces) == 3 and faces[0].embedding @ faces[1].embedding < 0.99


def test_detector_with_a_fixed_size(load, tmp_path):
    pack = onnx_faces.write_pack(tmp_path / "fixed", size=128)
    (face,) = load(pack, det_size=640).analyze(picture((1, 2, 0.0)))
    assert face.box.tolist() == [32, 64, 64, 96]


def test_automatic_detection_size(load, folder):
    image = picture((5, 7, 0.0), size=(640, 640))  # too small for 128 pixels, right for 640
    assert load(folder, det_size=128, provider="cpu").analyze(image) == []
    (face,) = load(folder, det_size=None, provider="cpu").analyze(image)
    assert face.box[:2].tolist() == [160, 224]


def test_loading_is_quiet_and_local(load, folder, capfd, monkeypatch):
    import insightface.app.face_analysis

    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(insightface.app.face_analysis, "ensure_available", refuse)
    load(folder, provider="cpu").analyze(picture((1, 1, 0.0)))
    assert capfd.readouterr().out == ""


def test_nested_folder_is_found(load, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "antelopev2" / "antelopev2")
    analyzer = load(tmp_path / "antelopev2", det_size=128, provider="cpu")
    assert analyzer.name == "antelopev2" and len(analyzer.analyze(picture((1, 1, 0.0)))) == 1


def test_missing_folder(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        load(tmp_path / "nowhere")


def test_empty_folder(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .onnx files"):
        load(tmp_path)


def test_no_detector(load, broken):
    (broken / "det_tiny.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no face detector .*found: rec_tiny\.onnx"):
        load(broken)


def test_no_recogniser(load, broken):
    (broken / "rec_tiny.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no face recogniser .*found: det_tiny\.onnx"):
        load(broken)


def test_detector_without_landmarks(load, broken):
    onnx_faces.write_detector(broken / "det_tiny.onnx", landmarks=False)
    with pytest.raises(ValueError, match="det_tiny.onnx' finds boxes but no landmarks"):
        load(broken)


def test_recogniser_of_another_size(load, broken):
    onnx_faces.write_recogniser(broken / "rec_tiny.onnx", dimensions=128)
    with pytest.raises(ValueError, match="rec_tiny.onnx' gives 128 numbers a face, expected 512"):
        load(broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00", "is not an ONNX file but a Python pickle"),
        (b"PK\x03\x04rest", "but a zip archive or PyTorch checkpoint"),
        (b"<!DOCTYPE html>", "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer"),
        (bytes(range(1, 200)), "is damaged or truncated"),
    ],
)
@pytest.mark.parametrize("name", ["det_tiny.onnx", "rec_tiny.onnx"])
def test_wrong_files(load, broken, name, content, message):
    (broken / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' {message}" if message.startswith("is") else message) as error:
        load(broken)
    assert name in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file(load, broken, share):
    path = broken / "rec_tiny.onnx"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="rec_tiny.onnx' is damaged or truncated"):
        load(broken)


def test_embedding_that_is_not_finite(load, broken):
    import onnx

    path = broken / "rec_tiny.onnx"
    model = onnx.load(path)
    weight = np.full((3, 512), np.inf, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(model, path)
    with pytest.raises(RuntimeError, match="no usable embedding"):
        load(broken, det_size=128).analyze(picture((1, 1, 0.0)))


def test_unknown_provider(load, folder):
    with pytest.raises(ValueError, match="one of auto, cuda, cpu, got 'tpu'"):
        load(folder, provider="tpu")


def test_cuda_without_support(load, folder, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="no CUDA support"):
        load(folder, provider="cuda")


def _pretend_cuda(monkeypatch):
    """onnxruntime lists CUDA but its sessions come up on the CPU, as with missing CUDA libraries."""
    import insightface.model_zoo.model_zoo as zoo
    import onnxruntime

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    start = zoo.PickableInferenceSession.__init__
    monkeypatch.setattr(
        zoo.PickableInferenceSession,
        "__init__",
        lambda self, path, **kwargs: start(self, path, **{**kwargs, "providers": ["CPUExecutionProvider"]}),
    )


def test_cuda_that_does_not_start(load, folder, monkeypatch):
    _pretend_cuda(monkeypatch)
    with pytest.raises(RuntimeError, match="could not start 'tiny' on CUDA"):
        load(folder, provider="cuda")


def test_silent_fall_to_the_cpu_is_a_warning(load, folder, monkeypatch, caplog):
    _pretend_cuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        analyzer = load(folder, det_size=128, provider="auto")
    assert analyzer.provider == "cpu" and "runs on the CPU" in caplog.text
    (warning,) = analyzer.describe()["warnings"]
    assert "'tiny' runs on the CPU although there is a GPU" in warning
    photo = make_subject("Ada", "person", "", picture((1, 1, 0.0), size=(128, 128))[None])
    assert warning in extract_faces(make_cast([photo]), analyzer, "error", "error").warnings


def test_no_warning_where_there_is_no_gpu(load, folder, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        load(folder, provider="auto")
    assert caplog.text == ""
