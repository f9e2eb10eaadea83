"""IDCrafterScoreVideo as ComfyUI runs it: video files and frames, its results on disk, a reward, a second opinion."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint

LEFT, RIGHT = 10, 60


@pytest.fixture(scope="module")
def cast():
    subjects = [make_subject(n, "person", "", paint(blank(), i, 20)[None]) for i, n in enumerate(["Ada", "Zo\u00eb"])]
    cast = make_cast(subjects)
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))


def clip(frames=6, gone_from=99):
    video = blank(count=frames)
    for t, frame in enumerate(video):
        paint(frame, 0, LEFT, 0.8)
        if t < gone_from:
            paint(frame, 1, RIGHT, 0.6)
    return video


def score(pack, video, cast, **inputs):
    result = pack.execute("IDCrafterScoreVideo", video=video, cast=cast, filename_prefix="tests/card", **inputs)
    return result, result[0].report


def lossless(path, frames, fps=4):
    """A video file that gives the painted colours back exactly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for pixels in (frames.numpy() * 255).round().astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return str(path)


class RoundedAnalyzer(PaintedFaceAnalyzer):
    """Reads paint that has been through 8 bits."""

    def analyze(self, image):
        face = image[..., 2] < 0.5
        image = image.clone()
        image[face] = torch.stack([image[face][:, 0].mul(16).round() / 16, image[face][:, 1], image[face][:, 2]], -1)
        return super().analyze(image)


def test_frames(pack, cast):
    result, report = score(pack, clip(8, gone_from=5), cast)
    (take,) = report["takes"]
    assert take["fps"] is None and take["seed"] is None and len(take["frames"]) == 8
    assert [(event["kind"], event["subjects"], event["first"]) for event in take["events"]] == [
        ("missing", ["Zo\u00eb"], 5)
    ]
    scorecard, picture, table, text = result
    assert picture.shape[0] == 1 and picture.shape[2] == 1280 and json.loads(text) == report
    assert "62%" in table and "Measured by: Ada: own photos: only one" in table


def test_results_are_saved_under_one_number(pack, cast):
    import folder_paths

    result, report = score(pack, clip(), cast)
    names = [result.ui["images"][0], *result.ui["files"]]
    paths = [Path(folder_paths.get_output_directory()) / each["subfolder"] / each["filename"] for each in names]
    assert [path.suffix for path in paths] == [".png", ".json", ".csv"] and len({path.stem for path in paths}) == 1
    assert all(path.is_file() for path in paths) and {each["type"] for each in names} == {"output"}
    assert json.loads(paths[1].read_text("utf-8")) == report
    again, _ = score(pack, clip(), cast)
    assert again.ui["images"][0]["filename"] != names[0]["filename"]


def test_a_video_file_is_the_same_as_its_frames(pack, cast, tmp_path):
    from comfy_api.latest import InputImpl

    exact = cast.with_faces(extract_faces(cast, RoundedAnalyzer(), "error", "error"))
    video = InputImpl.VideoFromFile(lossless(tmp_path / "clip.mkv", clip(8, gone_from=4)))
    _, report = score(pack, video, exact)
    (take,) = report["takes"]
    assert take["fps"] == 4.0 and len(take["frames"]) == 8
    _, plain = score(pack, clip(8, gone_from=4), cast)
    assert take["score"] == pytest.approx(plain["takes"][0]["score"], abs=0.01)
    assert take["events"] == plain["takes"][0]["events"]
    _, trimmed = score(pack, video.as_trimmed(0.5, 1.0, strict_duration=False), exact)
    assert len(trimmed["takes"][0]["frames"]) == 4


def test_a_video_of_components(pack, cast):
    from comfy_api.latest import InputImpl, Types

    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=clip(), audio=None, frame_rate=Fraction(12)))
    _, report = score(pack, video, cast, frames=3)
    assert report["takes"][0]["fps"] == 12.0
    assert [frame["frame"] for frame in report["takes"][0]["frames"]] == [0, 2, 5]


def test_frames_that_are_too_far_apart_are_warned_of(pack, cast):
    from comfy_api.latest import InputImpl, Types

    parts = Types.VideoComponents(images=clip(12), audio=None, frame_rate=Fraction(1))
    result, report = score(pack, InputImpl.VideoFromComponents(parts), cast, frames=4)
    assert any("4.0 s apart" in warning for warning in report["warnings"]) and "4.0 s apart" in result[2]


def test_reward_and_monitor_are_reported(pack, cast):
    terms = pack.submodule("idcrafter.rewards.terms")
    reward = terms.RewardSpec((terms.RewardTerm("identity"), terms.RewardTerm("exact_count", 0.5)))
    _, report = score(pack, clip(), cast, reward=reward, monitor=PaintedFaceAnalyzer())
    (take,) = report["takes"]
    assert take["terms"] == pytest.approx({"identity": take["score"], "exact_count": 1.0}, abs=1e-5)
    assert take["reward"] == pytest.approx(take["score"] + 0.5, abs=1e-5)
    assert set(report["reward"]["terms"]) == {"identity", "exact_count"}
    assert report["monitor"]["name"] == "painted"
    assert take["subjects"]["Ada"]["monitor_seen"] == pytest.approx(0.8, abs=1e-5)


def test_mistakes(pack, cast, tmp_path):
    with pytest.raises(ValueError, match="wire IDCrafterExtractFaces before the node that scores"):
        score(pack, clip(), make_cast(cast.subjects))
    bad = clip()
    bad[3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Frame 4 of the clip holds NaN or infinite pixels"):
        score(pack, bad, cast)
    with pytest.raises(Exception, match="outside the output folder is not allowed"):
        pack.execute("IDCrafterScoreVideo", video=clip(), cast=cast, filename_prefix="../climb")


def test_interrupt(pack, cast, monkeypatch):
    import comfy.model_management
    import comfy.utils

    def stop(value, total, preview, node_id=None):
        assert (value, total) == (1, 6)
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        score(pack, clip(), cast)
