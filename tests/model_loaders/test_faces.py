"""The real insightface on tiny real ONNX files."""

import logging
import shutil

import numpy as np
import pytest
import torch

from support import onnx_faces
from support.onnx_faces import picture

LANDMARK_TOLERANCE = 0.05


@pytest.fixture(scope="module")
def load(pack):
    return pack.submodule("model_loaders.faces").load_face_analyzer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return onnx_faces.write_pack(tmp_path_factory.mktemp("faces") / "tiny")


@pytest.fixture(scope="module")
def analyzer(load, folder):
    return load(folder, det_size=128, provider="cpu", licence="Apache-2.0")


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the pack that a test may damage."""
    return shutil.copytree(folder, tmp_path / "tiny")


def test_finds_faces_left_to_right(analyzer):
    faces = analyzer.analyze(picture((3, 1, 1.0), (0, 2, 0.0), (1, 0, 0.5)))
    assert [face.box.tolist() for face in faces] == [[0, 64, 32, 96], [32, 0, 64, 32], [96, 32, 128, 64]]
    for face in faces:
        assert face.score == pytest.approx(1.0, abs=0.01)
        expected = onnx_faces.MARKS * 32 + face.box[:2]
        np.testing.assert_allclose(face.landmarks, expected, atol=LANDMARK_TOLERANCE)
        assert face.embedding.shape == (512,) and face.embedding.dtype == np.float32
        assert np.linalg.norm(face.embedding) == pytest.approx(1.0, abs=1e-5)


def test_embedding_follows_the_face_not_its_place(analyzer):
    a, b = analyzer.analyze(picture((0, 1, 1.0), (3, 1, 0.0)))
    c, d = analyzer.analyze(picture((0, 1, 0.0), (3, 1, 1.0)))
    assert a.embedding @ d.embedding > 0.999 and b.embedding @ c.embedding > 0.999
    assert a.embedding @ b.embedding < 0.99


def test_coordinates_are_those_of_the_given_image(analyzer):
    # Twice the detector's size: found at half the resolution, reported in full pixels.
    (face,) = analyzer.analyze(picture((2, 1, 0.0), cell=64, size=(256, 256)))
    np.testing.assert_allclose(face.box, [128, 64, 192, 128], atol=0.01)


def test_channel_order_is_rgb(analyzer):
    blue_face = picture((1, 1, 0.0)).flip(-1)
    assert analyzer.analyze(blue_face) == []


def test_no_face(analyzer):
    assert analyzer.analyze(torch.zeros(64, 96, 3)) == []


@pytest.mark.parametrize("shape", [(1, 1), (16, 8192), (8192, 16), (1, 4000)])
def test_extreme_shapes_do_not_fail(analyzer, shape):
    assert analyzer.analyze(torch.zeros(*shape, 3)) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_same_answer_as_insightface_itself(analyzer, folder):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(folder), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=0, det_size=(128, 128))
    image = picture((2, 1, 0.3))
    (theirs,) = app.get((image.flip(-1) * 255).round().byte().numpy())
    (ours,) = analyzer.analyze(image)
    np.testing.assert_allclose(ours.embedding, theirs.normed_embedding, atol=1e-6)
    np.testing.assert_allclose(ours.landmarks, theirs.kps, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite(analyzer, bad):
    image = picture((1, 1, 0.0))
    image[5, 7, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        analyzer.analyze(image)


def test_a_batch_is_refused(analyzer):
    with pytest.raises(ValueError, match=r"shape \[height, width, 3\], got \[1, 64, 64, 3\]"):
        analyzer.analyze(torch.zeros(1, 64, 64, 3))


def test_facts_for_the_report(analyzer):
    facts = analyzer.describe()
    assert (facts["name"], facts["licence"], facts["provider"]) == ("tiny", "Apache-2.0", "cpu")
    assert facts["det_size"] == 128 and "insightface" in facts["runtime"]


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
        analyzer = load(folder, provider="auto")
    assert analyzer.provider == "cpu" and "runs on the CPU" in caplog.text


def test_no_warning_where_there_is_no_gpu(load, folder, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        load(folder, provider="auto")
    assert caplog.text == ""
