"""CurricularFace's file -> a monitor of another analyzer's faces."""

import cv2
import numpy as np
import pytest
import torch

from support import onnx_faces
from support.curricular_weights import empty_weights, seeded_weights
from support.onnx_faces import picture


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.faces_torch")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The released file's layout, counters included, as torch.save writes it."""
    weights = dict(seeded_weights())
    for name in [name for name in weights if name.endswith("running_mean")]:
        weights[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(1000)
    path = tmp_path_factory.mktemp("curricularface") / "glint360k_curricular_face_r101_backbone.bin"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def recogniser(loader, file):
    return loader.load_curricularface(file, "cpu", "research only")


def test_crops_are_halved_rgb_in_minus_one_to_one(recogniser):
    crop = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    (embedding,) = recogniser.embed([crop])
    # As OpenS2V's get_facesim.py prepares its crop.
    rgb = cv2.resize(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB), (112, 112))
    pixels = torch.from_numpy(np.transpose(rgb, (2, 0, 1))).float().div(255).sub(0.5).div(0.5)
    with torch.inference_mode():
        expected = recogniser._patcher.model(pixels[None])[0].numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_as_a_monitor_it_keeps_the_faces_and_brings_its_embeddings(pack, recogniser, tmp_path):
    faces = pack.submodule("model_loaders.faces")
    first = faces.load_face_analyzer(onnx_faces.write_pack(tmp_path / "tiny"), det_size=128, provider="cpu")
    monitor = faces.ModelFaceAnalyzer("tiny + curricularface", first.detector, recogniser)
    frames = torch.stack([picture((0, 1, 1.0), (3, 1, 0.2)), picture()])
    found = first.analyze_frames(frames)
    watched = monitor.embed(frames, found)
    assert [len(each) for each in watched] == [2, 0]
    for ours, theirs in zip(watched[0], found[0], strict=True):
        assert ours.box is theirs.box and ours.landmarks is theirs.landmarks and ours.score == theirs.score
        assert np.linalg.norm(ours.embedding) == pytest.approx(1, abs=1e-5)
        assert not np.allclose(ours.embedding, theirs.embedding, atol=1e-2)
    # Its embeddings are those that it gives as an analyzer of its own, one face at a time or all at once.
    alone = monitor.analyze(frames[0])
    for ours, theirs in zip(watched[0], alone, strict=True):
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-5)
    assert "research only" in monitor.licence and monitor.describe()["recogniser"]["files"]


def test_counters_may_be_missing(loader, tmp_path, recogniser):
    from safetensors.torch import save_file

    path = tmp_path / "converted.safetensors"
    save_file(seeded_weights(), path)
    crop = np.full((224, 224, 3), 90, np.uint8)
    again = loader.load_curricularface(path, "cpu", "").embed([crop])
    np.testing.assert_allclose(again, recogniser.embed([crop]), atol=1e-6)


def test_wrong_files(loader, tmp_path):
    def save(weights):
        torch.save(weights, tmp_path / "file.bin")
        return tmp_path / "file.bin"

    weights = {"body.0.res_layer.0.weight": torch.ones(64)}
    with pytest.raises(ValueError, match="'file.bin' looks like CurricularFace's IR-101, but .* tensors are missing"):
        loader.load_curricularface(save(weights), "cpu", "")
    weights = {**empty_weights(), "output_layer.3.weight": torch.ones(512, 10)}
    with pytest.raises(ValueError, match=r"output_layer.3.weight has the shape \[512, 10\]"):
        loader.load_curricularface(save(weights), "cpu", "")
    weights = {**empty_weights(), "body.0.res_layer.se_block.fc1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="holds 1 tensors that IR-101 does not have .*se_block"):
        loader.load_curricularface(save(weights), "cpu", "")
    (tmp_path / "code.bin").write_bytes(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.")
    with pytest.raises(ValueError, match="'code.bin' cannot be read as plain weights"):
        loader.load_curricularface(tmp_path / "code.bin", "cpu", "")


def test_cuda_that_comfyui_does_not_use(loader, file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there is one, and ComfyUI was started with --cpu
    with pytest.raises(RuntimeError, match="set to cuda, but ComfyUI runs on 'cpu'"):
        loader.load_curricularface(file, "cuda", "")
