"""Reports: what is in them, and what is refused."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.rewards.evidence import TensorFrames, gather_evidence
from idcrafter.rewards.record import failed_record, score_clip
from idcrafter.rewards.scorecard import (
    build_scorecard,
    latent_digest,
    spread_frames,
    validate_report,
    write_report,
)
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, embedding, paint
from support.reports import make_report

LEFT, RIGHT = 10, 60


def make_faces_cast(*names, kinds=None):
    kinds = kinds or ["person"] * len(names)
    photos = [torch.stack([paint(blank(), i, 20), paint(blank(), i, 20, 0.8)]) for i in range(len(names))]
    cast = make_cast([make_subject(n, k, "", p) for n, k, p in zip(names, kinds, photos, strict=True)])
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))


@pytest.fixture(scope="module")
def cast():
    return make_faces_cast("Ada", "Bo")


def clip(count=4, a=0.9, b=0.8):
    frames = blank(count=count)
    for frame in frames:
        paint(frame, 0, LEFT, a)
        paint(frame, 1, RIGHT, b)
    return frames


def facts(k):
    return {"seed": 100 + k, "seconds": 1.5, "resumed": k == 1, "latent_sha256": f"{k:064d}"}


def build(cast, *records, **kwargs):
    takes = [{**facts(k), **record} for k, record in enumerate(records)]
    parts = {"sampling": {"base_seed": 100}, "model": {"family": "wan"}, "software": {"torch": "2"}, **kwargs}
    return build_scorecard(cast, takes, **parts).report


def test_record_of_a_clip(cast):
    record = score_clip(clip(), [0, 1, 2, 3], cast)
    # Scores are against the mean of the subject's photos, of cosine 1 and 0.8 to who it is.
    expected = embedding(0, 0.9) @ (embedding(0) + embedding(0, 0.8)) / np.linalg.norm(embedding(0) + embedding(0, 0.8))
    assert record["subjects"]["Ada"]["similarity"] == pytest.approx(float(expected), abs=1e-5)
    assert record["similarity_min"] < record["similarity_mean"] and record["note"] is None
    assert record["subjects"]["Bo"]["coverage"] == 1.0 and record["subjects"]["Bo"]["face_px"] == 16.0
    assert (record["missing"], record["extra"], record["swapped"]) == (0, 0, 0)
    assert record["frames"][2]["frame"] == 2 and record["frames"][2]["subjects"]["Ada"]["box"] == [10, 12, 26, 28]


def test_only_the_chosen_frames_are_looked_at(cast):
    frames = clip(6)
    frames[3] = blank()
    analyzer = cast.faces.analyzer
    analyzer.calls = 0
    told = []
    record = score_clip(frames, [0, 2, 5], cast, on_frame=lambda: told.append(1))
    assert analyzer.calls == 3 and len(told) == 3
    assert [frame["frame"] for frame in record["frames"]] == [0, 2, 5] and record["missing"] == 0


def test_missing_extra_and_swapped_are_dated(cast):
    frames = clip(6)
    frames[1] = paint(blank(count=2)[1], 0, LEFT)
    paint(frames[2], 7, 36, size=14)
    for frame in frames[4:]:
        frame[12:28] = blank()[12:28]
        paint(paint(frame, 1, LEFT), 0, RIGHT)
    record = score_clip(frames, range(6), cast)
    assert (record["missing"], record["extra"], record["swapped"]) == (1, 1, 1)
    assert record["frames"][1]["subjects"]["Bo"] is None
    assert record["frames"][2]["extra"] == 1
    assert [frame["swapped"] for frame in record["frames"]] == [[], [], [], [], ["Ada", "Bo"], []]
    assert record["subjects"]["Bo"]["missing_frames"] == 1


def test_a_frozen_reference_scores_nothing(cast):
    still = clip(1, 1.0, 1.0).repeat(8, 1, 1, 1)
    still += 0.004 * torch.rand(still.shape, generator=torch.Generator().manual_seed(0))  # what a decoder adds
    still[..., 2] = still[..., 2].round()
    record = score_clip(_requantise(still), range(8), cast)
    assert record["score"] == 0.0 and "nothing moves" in record["note"]
    assert record["similarity_min"] > 0.9  # perfect likeness is not what is missing
    assert score_clip(clip(8, 0.5, 0.5), range(8), cast)["score"] > 0.3


def _requantise(frames):
    """Undo the noise inside faces, which the painted analyzer reads exactly."""
    face = frames[..., 2] < 0.5
    frames[face] = (frames[face] * 16).round() / 16
    return frames


def test_one_frame_is_not_still(cast):
    record = score_clip(clip(1), [0], cast)
    assert record["note"] is None and record["score"] > 0.5


def test_change_is_that_of_blocks_not_of_noise(cast):
    def change(frames):
        return gather_evidence(TensorFrames(frames), range(len(frames)), cast).change

    frames = torch.ones(40, 32, 32, 3)  # more than one chunk
    assert change(frames) == 0.0 and change(frames[:1]) == 0.0
    frames[38, 8:16, 8:16, 1] = 0.5
    assert change(frames) == pytest.approx(0.5)
    noise = 1.0 - torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    assert change(noise) < 0.004
    assert change(torch.ones(2, 1, 1, 3)) == 0.0


def test_nan_pixels_are_noted_not_raised(cast):
    frames = clip()
    frames[1, 0, 0, 0] = float("nan")
    record = score_clip(frames, [0, 1], cast)
    assert record["score"] == 0.0 and "NaN" in record["note"] and record["frames"] == []
    assert score_clip(frames, [0, 2], cast)["note"] is None


def test_best_is_the_first_of_the_highest(cast):
    good, bad = score_clip(clip(), range(4), cast), failed_record(cast, "broken")
    assert build(cast, bad, good, good)["best"] == 1
    assert build(cast, bad, bad)["best"] == 0


def test_report_is_json_with_everything_in_it(cast):
    report = build(cast, score_clip(clip(), range(4), cast), failed_record(cast, "broken"))
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    assert (report["schema"], report["version"]) == ("idcrafter.report", 2)
    takes = [(take["index"], take["seed"], take["resumed"]) for take in report["takes"]]
    assert takes == [(0, 100, False), (1, 101, True)]
    assert report["analyzer"] == {"name": "painted", "licence": "none needed"}
    assert report["model"] == {"family": "wan"} and report["sampling"] == {"base_seed": 100}
    assert report["subjects"][0] == {
        "name": "Ada", "kind": "person", "scored": True, "photos": 2, "photos_used": 2, "photos_agree": 0.8,
    }  # fmt: skip


def test_subjects_without_faces_are_listed_but_not_scored():
    cast = make_faces_cast("Ada", "lamp", kinds=["person", "object"])
    report = build(cast, score_clip(clip(), range(4), cast))
    assert [subject["scored"] for subject in report["subjects"]] == [True, False]
    assert list(report["takes"][0]["subjects"]) == ["Ada"]


def test_absent_subject_has_null_not_nan(cast):
    frames = blank(count=3)
    record = score_clip(frames, range(3), cast)
    assert record["subjects"]["Ada"]["similarity_seen"] is None and record["subjects"]["Ada"]["face_px"] is None
    assert record["score"] == 0.0 and build(cast, record)["takes"][0]["missing"] == 6


def test_casts_that_cannot_be_scored():
    plain = make_cast([make_subject("Ada", "person", "", blank()[None])])
    with pytest.raises(ValueError, match="wire IDCrafterExtractFaces before"):
        score_clip(clip(), [0], plain)
    faceless = plain.with_faces(extract_faces(plain, PaintedFaceAnalyzer(), "skip", "error"))
    with pytest.raises(ValueError, match="No subject of the cast has a usable face"):
        score_clip(clip(), [0], faceless)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "not an idcrafter.report"),
        ({"version": 1}, "version 1"),
        ({"takes": []}, "has no takes"),
        ({"best": 3}, "best take is 3, but there are 1"),
        ({"model": {"size": float("nan")}}, "JSON cannot"),
        ({"model": {"size": np.float32(1)}}, "JSON cannot"),
    ],
)
def test_reports_that_are_refused(cast, change, message):
    report = build(cast, score_clip(clip(), range(4), cast))
    with pytest.raises(ValueError, match=message):
        validate_report({**report, **change})


def test_inconsistent_takes_are_refused(cast):
    record = score_clip(clip(), range(4), cast)
    for key, value in [("index", 1), ("score", 1.5), ("subjects", {})]:
        report = build(cast, record)
        report["takes"][0][key] = value
        with pytest.raises(ValueError, match="Take 0 of the report is inconsistent"):
            validate_report(report)


def test_write_is_utf8_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    first, second = make_report(["Zo\u00eb"], [[0.5]]), make_report(["Ada"], [[0.6]])
    write_report(first, path)
    assert json.loads(path.read_text(encoding="utf-8")) == first
    assert "Zo\u00eb" in path.with_suffix(".csv").read_text(encoding="utf-8-sig")
    write_report(second, path)
    assert json.loads(path.read_text(encoding="utf-8")) == second
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.csv", "report.json"]


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    old = make_report(["Ada"], [[0.5]])
    write_report(old, path)

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(make_report(["Ada"], [[0.6]]), path)
    assert json.loads(path.read_text()) == old and len(list(tmp_path.iterdir())) == 2


def test_digest_tells_latents_apart():
    a = torch.arange(12.0).reshape(1, 3, 4)
    assert latent_digest(a) == latent_digest(a.clone()) != latent_digest(a.reshape(1, 4, 3))
    assert latent_digest(a) != latent_digest(a + 1e-6)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 500))
def test_spread_frames(total, wanted):
    indices = spread_frames(total, wanted)
    assert len(indices) == (total if wanted == 0 else min(total, wanted))
    assert indices == sorted(set(indices)) and indices[0] == 0 and indices[-1] < total
    if len(indices) > 1:
        assert indices[-1] == total - 1
        steps = np.diff(indices)
        assert steps.max() - steps.min() <= 1
