"""The real insightface on tiny real ONNX files."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_batches_equal_single_pictures(analyzer, pack, monkeypatch):
    monkeypatch.setattr(pack.submodule("model_loaders.faces"), "BATCH", 4)  # so that a batch ends within a frame
    columns = [(0,), (), (0, 1, 2), (3,), (1, 3)]
    frames = torch.stack([picture(*[(c, t % 4, 0.2 * c) for c in each]) for t, each in enumerate(columns)])
    ticks = []
    together = analyzer.analyze_frames(frames, on_frame=lambda: ticks.append(1))
    assert [len(faces) for faces in together] == [1, 0, 3, 1, 2] and len(ticks) == 5
    for frame, faces in zip(frames, together, strict=True):
        for ours, alone in zip(faces, analyzer.analyze(frame), strict=True):
            np.testing.assert_allclose(ours.embedding, alone.embedding, atol=1e-5)
            np.testing.assert_array_equal(ours.box, alone.box)
            np.testing.assert_array_equal(ours.landmarks, alone.landmarks)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(st.sets(st.integers(0, 15), max_size=6), min_size=1, max_size=6),
    batch=st.integers(1, 9),
)
def test_batches_of_any_size_change_nothing(analyzer, pack, frames, batch):
    """Cells of a 4x4 grid with a face, frame by frame."""
    module = pack.submodule("model_loaders.faces")
    clip = torch.stack([picture(*[(cell % 4, cell // 4, cell / 16) for cell in cells]) for cells in frames])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        together = analyzer.analyze_frames(clip)
        again = analyzer.embed(clip, together)
    for frame, cells, faces, embedded in zip(clip, frames, together, again, strict=True):
        alone = analyzer.analyze(frame)
        assert len(faces) == len(embedded) == len(alone) == len(cells)
        for a, b, c in zip(faces, embedded, alone, strict=True):
            np.testing.assert_allclose(a.embedding, c.embedding, atol=1e-6)
            np.testing.assert_allclose(b.embedding, c.embedding, atol=1e-6)
            np.testing.assert_array_equal(a.box, c.box)


def test_the_sessions_leave_the_cores_to_others(analyzer):
    for part in (analyzer.detector, analyzer.recogniser):
        options = part._model.session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == torch.get_num_threads()


def test_the_recogniser_runs_on_batches(analyzer, pack, monkeypatch):
    sizes = []
    embed = type(analyzer.recogniser).embed
    monkeypatch.setattr(
        type(analyzer.recogniser), "embed", lambda self, crops: sizes.append(len(crops)) or embed(self, crops)
    )
    analyzer.analyze_frames(torch.stack([picture((0, 1, 0.0), (2, 1, 1.0))] * 40))
    assert sizes == [32, 32, 16]


def test_embed_gives_its_own_embeddings_to_given_faces(analyzer):
    frames = torch.stack([picture((0, 1, 1.0), (3, 1, 0.2)), picture()])
    found = analyzer.analyze_frames(frames)
    # The same landmarks in other pictures: the embeddings follow the pictures, all else stays.
    swapped = analyzer.embed(torch.stack([picture((0, 1, 0.2), (3, 1, 1.0)), picture()]), found)
    (a, b), (c, d) = found[0], swapped[0]
    assert swapped[1] == [] and c.box is a.box and d.landmarks is b.landmarks
    np.testing.assert_allclose(c.embedding, b.embedding, atol=1e-4)
    np.testing.assert_allclose(d.embedding, a.embedding, atol=1e-4)


def test_bad_frames_are_named(analyzer):
    frames = torch.zeros(3, 64, 64, 3)
    with pytest.raises(ValueError, match="There are 3 frames but faces for 2"):
        analyzer.embed(frames, [[], []])
    with pytest.raises(ValueError, match=r"shape \[frames, height, width, 3\], got \[64, 64, 3\]"):
        analyzer.analyze_frames(frames[0])
    frames[1, 2, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="Frame 2 holds NaN or infinite pixels"):
        analyzer.analyze_frames(frames)


def test_pixels_so_large_that_their_sum_overflows_are_still_finite(analyzer):
    assert analyzer.analyze(torch.full((64, 64, 3), 3e38)) == []


def test_an_interrupt_in_on_frame_ends_the_analysis(analyzer):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyzer.analyze_frames(torch.zeros(3, 64, 64, 3), on_frame=stop)


def test_facts_for_the_report(analyzer):
    facts = analyzer.describe()
    assert (facts["name"], facts["licence"], facts["provider"]) == ("tiny", "Apache-2.0", "cpu")
    assert facts["det_size"] == 128 and "insightface" in facts["runtime"]
    files = {**facts["detector"]["files"], **facts["recogniser"]["files"]}
    assert set(files) == {"det_tiny.onnx", "rec_tiny.onnx"} and all(len(digest) == 64 for digest in files.values())
    assert "warnings" not in facts
