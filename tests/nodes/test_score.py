"""IDCrafterScoreTakes and IDCrafterPickTake as ComfyUI runs them."""

import dataclasses
import json
import weakref
from pathlib import Path

import pytest
import torch

from idcrafter.sampling.takes import Take, Takes
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint

LEFT, RIGHT = 10, 60


class Vae:
    """Decodes the latent of take k to clip k; at any time only one clip may be alive besides the stored ones."""

    def __init__(self, clips):
        self.clips = clips
        self.decoded = []
        self._last = lambda: None

    def decode(self, samples):
        assert self._last() is None, "the frames of the take before are still in memory"
        k = int(samples[0, 0, 0, 0, 0])
        self.decoded.append(k)
        frames = self.clips[k].clone().unsqueeze(0)
        self._last = weakref.ref(frames)
        return frames


def clip(a, b, frames=6):
    video = blank(count=frames)
    for frame in video:
        paint(paint(frame, 0, LEFT, a), 1, RIGHT, b)
    return video


@pytest.fixture(scope="module")
def cast():
    subjects = [make_subject(n, "person", "", paint(blank(), i, 20)[None]) for i, n in enumerate(["Ada", "Zo\u00eb"])]
    cast = make_cast(subjects)
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))


def make_takes(count, first_seed=7):
    takes = tuple(
        Take(first_seed + k, torch.full((1, 4, 2, 3, 3), float(k)), seconds=0.5, resumed=k == 0) for k in range(count)
    )
    return Takes(takes, first_seed, "euler", torch.tensor([1.0, 0.5, 0.0]), {"family": "wan", "size": 12})


@pytest.fixture
def shot(cast):
    """Three takes; the second one is best."""
    return make_takes(3), Vae([clip(0.5, 0.4), clip(0.8, 0.7), clip(0.9, 0.3)]), cast


def score(pack, shot, frames=0):
    takes, vae, cast = shot
    return pack.execute("IDCrafterScoreTakes", takes=takes, vae=vae, cast=cast, frames=frames)


@pytest.fixture
def pick(pack):
    def run(takes, scorecard, vae, take=-1, filename_prefix="tests/report"):
        inputs = {"takes": takes, "scorecard": scorecard, "vae": vae, "take": take, "filename_prefix": filename_prefix}
        return pack.execute("IDCrafterPickTake", **inputs)

    return run


def output_folder():
    import folder_paths

    return Path(folder_paths.get_output_directory())


def test_scores_and_facts(pack, shot):
    result = score(pack, shot)
    scorecard, timeline, table, picture = result
    report = scorecard.report
    assert report["best"] == 1
    assert [round(take["score"], 3) for take in report["takes"]] == [0.425, 0.725, 0.45]
    assert [take["seed"] for take in report["takes"]] == [7, 8, 9]
    assert [take["resumed"] for take in report["takes"]] == [True, False, False]
    assert report["sampling"] == {"base_seed": 7, "sampler": "euler", "steps": 2, "sigmas": [1.0, 0.5, 0.0]}
    assert report["model"] == {"family": "wan", "size": 12} and report["software"]["comfyui"]
    assert timeline.shape[0] == picture.shape[0] == 1 and timeline.dtype == picture.dtype == torch.float32
    assert table.splitlines()[3].startswith("*  1") and result.ui == {"text": (table,)}
    assert shot[1].decoded == [0, 1, 2]


@pytest.mark.parametrize(("frames", "expected"), [(0, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 5]), (99, [0, 1, 2, 3, 4, 5])])
def test_frames_are_spread_evenly(pack, shot, frames, expected):
    report = score(pack, shot, frames)[0].report
    for take in report["takes"]:
        assert [frame["frame"] for frame in take["frames"]] == expected


def test_image_vae_output_without_batch(pack, shot):
    takes, vae, cast = shot
    decode = vae.decode
    vae.decode = lambda samples: decode(samples)[0]
    assert score(pack, (takes, vae, cast))[0].report["best"] == 1


def test_nan_latent_scores_zero_and_is_not_decoded(pack, shot):
    takes, vae, _ = shot
    takes.takes[0].samples[0, 0, 0, 0, 1] = float("nan")
    report = score(pack, shot)[0].report
    assert [take["score"] > 0 for take in report["takes"]] == [False, True, True]
    assert report["takes"][0]["note"] == "the latent holds NaN or infinite values"
    assert vae.decoded == [1, 2] and report["best"] == 1


def test_nan_frames_score_zero(pack, shot):
    shot[1].clips[1][2] = float("nan")
    report = score(pack, shot)[0].report
    assert "decoded frames hold NaN" in report["takes"][1]["note"] and report["best"] == 2


def test_cast_without_faces_is_refused_before_decoding(pack, shot):
    takes, vae, cast = shot
    with pytest.raises(ValueError, match="wire IDCrafterExtractFaces before the node that scores"):
        score(pack, (takes, vae, make_cast(cast.subjects)))
    assert vae.decoded == []


def test_interrupt_takes_effect_between_frames(pack, shot, monkeypatch):
    import comfy.model_management
    import comfy.utils

    def interrupted(value, total, preview, node_id=None):
        assert total == 18
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        score(pack, shot)
    assert shot[1].decoded == [0]


def test_picks_the_best_and_saves_the_report(pack, shot, pick):
    takes, vae, _ = shot
    scorecard = score(pack, shot)[0]
    result = pick(takes, scorecard, vae)
    latent, images, text = result
    assert latent["samples"] is takes.takes[1].samples
    assert torch.equal(images, vae.clips[1])
    saved, table = result.ui["files"]
    path = output_folder() / saved["subfolder"] / saved["filename"]
    assert table["filename"] == f"{path.stem}.csv" and path.with_suffix(".csv").read_text("utf-8-sig").count("\n") == 37
    assert saved["type"] == "output" and path.parent == output_folder() / "tests" and path.suffix == ".json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report == json.loads(text) == {**scorecard.report, "picked": 1}
    assert "picked" not in scorecard.report
    assert [subject["name"] for subject in report["subjects"]] == ["Ada", "Zo\u00eb"]
    assert result.ui["text"][0].startswith("Take 1 (seed 8, score 0.725): the highest score.")
    assert not list(path.parent.glob("*.tmp"))


def test_reports_are_numbered(pack, shot, pick):
    scorecard = score(pack, shot)[0]
    results = [pick(shot[0], scorecard, shot[1], filename_prefix="numbered/r") for _ in range(3)]
    names = [result.ui["files"][0]["filename"] for result in results]
    assert names == ["r_00001.json", "r_00002.json", "r_00003.json"]


def test_references_before_the_video_are_left_out(pack, shot, pick):
    """VACE's takes begin with them: they are neither scored nor handed on."""
    takes = dataclasses.replace(shot[0], leading=1)
    seen = []

    class Watched(Vae):
        def decode(self, samples):
            seen.append(samples.shape[2])
            return super().decode(samples)

    vae = Watched(shot[1].clips)
    scorecard = score(pack, (takes, vae, shot[2]))[0]
    latent, images, _ = pick(takes, scorecard, vae)
    assert set(seen) == {1} and torch.equal(latent["samples"], takes.takes[1].samples[:, :, 1:])
    assert torch.equal(images, vae.clips[1])


def test_picks_by_number(pack, shot, pick):
    result = pick(shot[0], score(pack, shot)[0], shot[1], take=2)
    assert torch.equal(result[1], shot[1].clips[2]) and json.loads(result[2])["picked"] == 2
    assert "chosen by number" in result.ui["text"][0]


@pytest.mark.parametrize("take", [3, 64, -2])
def test_take_out_of_range(pack, shot, pick, take):
    with pytest.raises(ValueError, match=rf"Take {take} does not exist; choose 0 to 2, or -1 for the best"):
        pick(shot[0], score(pack, shot)[0], shot[1], take=take)


def test_scorecard_of_other_takes(pack, shot, pick):
    scorecard = score(pack, shot)[0]
    for other in (make_takes(2), Takes(shot[0].takes[::-1], 7, "euler", shot[0].sigmas, {})):
        with pytest.raises(ValueError, match="scorecard was made from other takes"):
            pick(other, scorecard, shot[1])


def test_take_that_is_not_finite(pack, shot, pick):
    shot[0].takes[1].samples[0, 0, 0, 0, 1] = float("inf")
    scorecard = score(pack, shot)[0]
    with pytest.raises(ValueError, match="Take 1 holds NaN or infinite values; pick another take"):
        pick(shot[0], scorecard, shot[1], take=1)
    assert json.loads(pick(shot[0], scorecard, shot[1])[2])["picked"] == 2


@pytest.mark.parametrize("prefix", ["../climb", "a/../../climb", "/tmp/climb"])
def test_prefix_that_leaves_the_output_folder(pack, shot, pick, prefix):
    scorecard = score(pack, shot)[0]
    shot[1].decoded.clear()
    with pytest.raises(Exception, match="outside the output folder is not allowed"):
        pick(shot[0], scorecard, shot[1], filename_prefix=prefix)
    assert shot[1].decoded == []
    assert not list(output_folder().parent.glob("climb*")) and not Path("/tmp/climb_00001.json").exists()


def test_damaged_scorecard(pack, shot, pick):
    scorecard = score(pack, shot)[0]
    scorecard.report["version"] = 99
    with pytest.raises(ValueError, match="version 99; score the takes again"):
        pick(shot[0], scorecard, shot[1])


def test_the_reward_decides_and_the_score_is_reported(pack, shot, pick):
    """Weight -1 turns the order around: take 0, of the lowest score, becomes the best."""
    takes, vae, cast = shot
    terms = pack.submodule("idcrafter.rewards.terms")
    reward = terms.RewardSpec((terms.RewardTerm("identity", -1.0),))
    result = pack.execute("IDCrafterScoreTakes", takes=takes, vae=vae, cast=cast, frames=0, reward=reward)
    report = result[0].report
    assert report["best"] == 0 and [take["reward"] for take in report["takes"]] == [
        pytest.approx(-take["score"], abs=1e-6) for take in report["takes"]
    ]
    assert report["reward"]["terms"]["identity"]["weight"] == -1.0
    picked = pick(takes, result[0], vae)
    assert torch.equal(picked[1], vae.clips[0]) and "the highest reward" in picked.ui["text"][0]


def test_a_take_that_cannot_be_measured_has_no_reward_and_is_never_best(pack, shot):
    takes, vae, cast = shot
    takes.takes[1].samples[0, 0, 0, 0, 1] = float("nan")
    terms = pack.submodule("idcrafter.rewards.terms")
    for combine in ("sum", "gdpo", "max_group_std"):
        spec = terms.RewardSpec((terms.RewardTerm("identity"), terms.RewardTerm("exact_count")), combine)
        report = pack.execute("IDCrafterScoreTakes", takes=takes, vae=vae, cast=cast, frames=0, reward=spec)[0].report
        assert report["takes"][1]["reward"] is None and report["takes"][1]["terms"] is None and report["best"] == 2


def test_the_monitor_chooses_nothing(pack, shot):
    takes, vae, cast = shot
    plain = score(pack, shot)[0].report
    inputs = {"takes": takes, "vae": vae, "cast": cast, "frames": 0, "monitor": PaintedFaceAnalyzer()}
    watched = pack.execute("IDCrafterScoreTakes", **inputs)[0].report
    assert watched["best"] == plain["best"] and "monitor" not in plain
    assert [take["score"] for take in watched["takes"]] == [take["score"] for take in plain["takes"]]
    seen = watched["takes"][1]["subjects"]["Ada"]
    assert seen["monitor_seen"] == pytest.approx(seen["similarity_seen"], abs=1e-5)
