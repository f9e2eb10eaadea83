"""OpenCV's own FaceDetectorYN and FaceRecognizerSF on tiny files of YuNet's and SFace's layout."""

import cv2
import numpy as np
import pytest
import torch

from support import onnx_faces
from support.onnx_opencv import write_sface, write_yunet


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.faces_opencv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opencv") / "modèles"  # OpenCV by itself fails here on Windows
    write_yunet(folder / "yunet.onnx")
    write_sface(folder / "sface.onnx")
    return folder


@pytest.fixture(scope="module")
def analyzer(pack, loader, folder):
    return pack.submodule("model_loaders.faces").ModelFaceAnalyzer(
        "yunet + sface",
        loader.load_yunet(folder / "yunet.onnx", "MIT"),
        loader.load_sface(folder / "sface.onnx", "MIT"),
    )


def test_boxes_landmarks_and_scores_are_in_the_pictures_pixels(loader, folder):
    detector = loader.load_yunet(folder / "yunet.onnx", "MIT")
    # Fitted to 640 px this is twice its size: a face of 16 px fills one cell.
    bgr = np.zeros((160, 320, 3), np.uint8)
    bgr[32:48, 64:80, 2] = 255
    (face,) = detector.detect(bgr)
    np.testing.assert_allclose(face.box, [64, 32, 80, 48], atol=0.01)
    np.testing.assert_allclose(face.landmarks, onnx_faces.MARKS * 16 + (64, 32), atol=0.01)
    assert face.score == pytest.approx(1, abs=0.01)


def test_same_answer_as_opencv_itself(loader, folder):
    theirs = cv2.FaceDetectorYN.create(str(folder / "yunet.onnx"), "", (640, 640), 0.6, 0.3, 5000)
    image = np.zeros((640, 640, 3), np.uint8)
    image[64:96, 32:64, 2] = 255
    row = theirs.detect(image)[1][0]
    (face,) = loader.load_yunet(folder / "yunet.onnx", "MIT").detect(image)
    np.testing.assert_allclose(face.box, [row[0], row[1], row[0] + row[2], row[1] + row[3]], atol=1e-4)
    np.testing.assert_allclose(face.landmarks.ravel(), row[4:14], atol=1e-4)


def test_embedding_equals_opencvs_own_way(analyzer, folder):
    image = torch.rand((640, 640, 3), generator=torch.Generator().manual_seed(0)) * 0.1
    image[64:96, 32:64, 0] = 1.0
    (face,) = analyzer.analyze(image)
    theirs = cv2.FaceRecognizerSF.create(str(folder / "sface.onnx"), "")
    bgr = np.ascontiguousarray((image.numpy() * 255).round().astype(np.uint8)[..., ::-1])
    row = np.concatenate([face.box[:2], face.box[2:] - face.box[:2], face.landmarks.ravel(), [face.score]])
    crop = theirs.alignCrop(bgr, row[None].astype(np.float32))
    feature = theirs.feature(crop)[0]
    assert face.embedding.shape == (128,)
    # OpenCV's alignment rounds the template's middle to four digits.
    assert float(face.embedding @ feature / np.linalg.norm(feature)) > 0.9999


def test_batches_equal_single_pictures(analyzer):
    frames = torch.zeros(3, 640, 640, 3)
    for t in range(3):
        for k in range(t + 1):
            frames[t, 64:96, 32 + 96 * k : 64 + 96 * k] = torch.tensor([1.0, 0.0, 0.3 * k + 0.1 * t])
    together = analyzer.analyze_frames(frames)
    assert [len(faces) for faces in together] == [1, 2, 3]
    for frame, faces in zip(frames, together, strict=True):
        for ours, alone in zip(faces, analyzer.analyze(frame), strict=True):
            np.testing.assert_allclose(ours.embedding, alone.embedding, atol=1e-6)
            np.testing.assert_array_equal(ours.box, alone.box)


def test_channel_order_is_rgb(analyzer):
    image = torch.zeros(640, 640, 3)
    image[64:96, 32:64, 2] = 1.0
    assert analyzer.analyze(image) == []


@pytest.mark.parametrize("shape", [(1, 1), (16, 12000), (12000, 16), (1, 4000)])
def test_extreme_shapes_do_not_fail(analyzer, shape):
    assert analyzer.analyze(torch.zeros(*shape, 3)) == []


def test_facts(analyzer):
    facts = analyzer.describe()
    assert facts["provider"] == "cpu" and facts["det_size"] == 640 and f"OpenCV {cv2.__version__}" in facts["runtime"]
    assert list(facts["detector"]["files"]) == ["yunet.onnx"] and list(facts["recogniser"]["files"]) == ["sface.onnx"]


@pytest.mark.parametrize("load", ["load_yunet", "load_sface"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer"),
        (b"<!DOCTYPE html>", "but a web page"),
        (bytes(range(1, 200)), "or it is damaged"),
    ],
)
def test_wrong_files(loader, tmp_path, load, content, message):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.onnx' .*{message}"):
        getattr(loader, load)(tmp_path / "model.onnx", "")


def test_the_older_yunet_and_other_networks_are_refused(loader, folder, tmp_path):
    older = write_yunet(tmp_path / "face_detection_yunet_2022mar.onnx", ("cls", "bbox", "kps"))
    for path in (older, folder / "sface.onnx"):
        with pytest.raises(ValueError, match="is not a YuNet face detector of the 2023 layout"):
            loader.load_yunet(path, "")


def test_a_recogniser_of_another_size_is_refused(loader, tmp_path):
    with pytest.raises(ValueError, match="is not the SFace face recogniser"):
        loader.load_sface(write_sface(tmp_path / "other.onnx", dimensions=64), "")
