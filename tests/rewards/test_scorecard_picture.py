"""The scorecard for people: the crops, the verdicts in words, and the picture."""

import csv
import io

import numpy as np
import pytest
import torch

from idcrafter import drawing
from idcrafter.rewards.crops import SIDE, crop_face, cut_crops
from idcrafter.rewards.scorecard_picture import HEAD, ROW, WIDTH, draw_scorecard
from idcrafter.rewards.table import CSV_COLUMNS, report_csv, report_table
from idcrafter.rewards.verdict import BAD, DOUBTFUL, GOOD, clip_verdict, subject_verdict
from support.clips import evidence_of, painted_cast, painted_clip
from support.painted_faces import paint
from support.reports import as_pixels, make_report


def report_of(*args, fps=None, events=None, **kwargs):
    report = make_report(*args, **kwargs)
    take = report["takes"][0]
    take["fps"] = fps
    if events is not None:
        take["events"] = [dict(zip(("kind", "subjects", "first", "last"), event, strict=True)) for event in events]
    return report


# Crops ----------------------------------------------------------------------------------------------------------------


def test_best_and_worst_frame_of_each_subject():
    clip = painted_clip([[(0, 0.5, 0), (1, 0.9, 2)], [(0, 0.9, 0)], [(0, 0.7, 0), (1, 0.4, 2)]])
    crops = cut_crops(evidence_of(clip, painted_cast()))
    assert [(crops["S0"].best.frame, crops["S0"].worst.frame), (crops["S1"].best.frame, crops["S1"].worst.frame)] == [
        (1, 0), (0, 2),
    ]  # fmt: skip
    assert crops["S0"].best.similarity == pytest.approx(0.9, abs=1e-5)
    middle = crops["S0"].best.pixels[SIDE // 2, SIDE // 2] / 255
    np.testing.assert_allclose(middle, [0, 0.9, 0], atol=0.01)
    assert crops["S0"].photo.frame is None and crops["S0"].photo.pixels.shape == (SIDE, SIDE, 3)


def test_who_is_never_seen_has_a_photo_only():
    crops = cut_crops(evidence_of(painted_clip([[(0, 0.8, 0)]] * 3), painted_cast()))["S1"]
    assert crops.best is None and crops.worst is None and crops.photo.pixels.std() > 0


def test_the_photo_is_the_first_usable_one():
    cast = painted_cast(similarities=((0.9, 0.3), (1.0,)))
    photo = cut_crops(evidence_of(painted_clip([[(0, 0.8, 0)]]), cast))["S0"].photo
    np.testing.assert_allclose(photo.pixels[SIDE // 2, SIDE // 2] / 255, [0, 0.9, 0], atol=0.01)


@pytest.mark.parametrize("box", [(-10, -10, 6, 6), (90, 40, 120, 70), (300, 300, 310, 310), (10, 10, 10, 10)])
def test_crops_at_the_edge_are_black_outside(box):
    pixels = crop_face(paint(torch.ones(48, 96, 3), 3, 80), np.array(box))
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    if box[0] >= 96:
        assert pixels.max() == 0


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("similarity", "agree", "text", "level"),
    [
        (0.7, None, "Clearly recognisable.", GOOD),
        (0.7, 0.75, "Looks just like the photos.", GOOD),
        (0.5, 0.75, "Clearly recognisable.", GOOD),
        (0.3, 0.3, "Only a weak likeness.", DOUBTFUL),
    ],
)
def test_likeness_is_measured_by_the_own_photos(similarity, agree, text, level):
    take = make_report(["Ada", "Bo"], [[similarity, 0.9]])["takes"][0]
    assert subject_verdict(take, "Ada", agree) == (text, level)


@pytest.mark.parametrize(
    ("event", "fps", "text"),
    [
        (("missing", ["Ada"], 0, 3), None, "probably somebody else throughout"),
        (("missing", ["Ada"], 2, 3), 4.0, "probably somebody else from frame 2 (0.5 s) on"),
        (("cloned", ["Ada"], 0, 1), None, "there twice until frame 1"),
        (("cloned", ["Ada"], 1, 2), 2.0, "there twice from frame 1 (0.5 s) to frame 2 (1.0 s)"),
        (("swapped", ["Ada", "Bo"], 2, 2), None, "exchanged with Bo at frame 2"),
        (("blended", ["Ada", "Bo"], 0, 3), None, "mixed with Bo throughout"),
    ],
)
def test_events_are_told_with_their_time(event, fps, text):
    take = report_of(["Ada", "Bo"], [[0.7, 0.7]], fps=fps, events=[event])["takes"][0]
    assert subject_verdict(take, "Ada") == (f"Clearly recognisable, but {text}.", BAD)


def test_missing_is_told_from_somebody_else():
    take = report_of(["Ada", "Bo"], [[0.7, 0.7]], events=[("missing", ["Ada"], 1, 3)])["takes"][0]
    for frame in take["frames"][1:]:
        frame["subjects"]["Ada"] = None
    assert subject_verdict(take, "Ada") == ("Clearly recognisable, but missing from frame 1 on.", BAD)


def test_of_a_blend_only_the_one_whose_face_it_should_be_is_to_blame():
    take = report_of(["Ada", "Bo"], [[0.7, 0.7]], events=[("blended", ["Ada", "Bo"], 0, 3)])["takes"][0]
    assert subject_verdict(take, "Bo") == ("Clearly recognisable.", GOOD)


def test_who_is_not_seen():
    take = make_report(["Ada", "Bo"], [[0.7, None]])["takes"][0]
    assert subject_verdict(take, "Bo") == ("Never seen.", BAD)
    mixed = report_of(["Ada", "Bo"], [[0.7, None]], events=[("blended", ["Bo", "Ada"], 0, 3)])["takes"][0]
    assert subject_verdict(mixed, "Bo") == ("Never recognised, but mixed with Ada throughout.", BAD)
    turned = make_report(["Ada", "Bo"], [[0.7, 0.7]])["takes"][0]
    turned["subjects"]["Bo"].update(missing_frames=1, coverage=0.75)
    assert subject_verdict(turned, "Bo") == ("Clearly recognisable, but face not visible in 1 of 4 frames.", GOOD)
    failed = {**take, "frames": [], "note": "the latent holds NaN"}
    assert subject_verdict(failed, "Ada") == ("Not scored: the latent holds NaN.", BAD)


def test_what_concerns_everybody():
    take = make_report(["Ada"], [[0.7]], extra_in=(0, 1, 2))["takes"][0]
    assert clip_verdict(take) == [("One person or more too many until frame 2.", DOUBTFUL)]
    assert clip_verdict(make_report(["Ada"], [[0.7]])["takes"][0]) == []


# The picture ----------------------------------------------------------------------------------------------------------


def drawn(report, crops=None):
    return as_pixels(draw_scorecard(report, crops or {}))


def has(pixels, colour, rows=slice(None)):
    return bool((pixels[rows] == colour).all(-1).any())


def test_a_row_for_each_subject():
    one, three = (drawn(make_report(names, [[0.8] * len(names)])) for names in (["A"], ["A", "B", "C"]))
    assert one.shape[1] == three.shape[1] == WIDTH
    assert three.shape[0] - one.shape[0] == 2 * (ROW + 14)
    for i in range(3):
        top = HEAD + i * (ROW + 14)
        assert has(three, drawing.subject_colour(i), slice(top, top + ROW))


def test_missing_is_red_and_events_are_marked():
    whole = drawn(report_of(["A", "B"], [[0.8, 0.8]]))
    gone = drawn(make_report(["A", "B"], [[0.8, None]]))
    second = slice(HEAD + ROW + 14, None)
    assert has(gone, (92, 34, 38), second) and not has(whole, (92, 34, 38))
    swapped = drawn(report_of(["A", "B"], [[0.8, 0.8]], events=[("swapped", ["A", "B"], 2, 2)]))
    assert has(swapped, drawing.BAD, slice(HEAD, HEAD + ROW)) and not has(whole, drawing.BAD)


def test_crops_are_in_the_picture():
    evidence = evidence_of(painted_clip([[(0, 0.8, 0), (1, 0.6, 2)]] * 4), painted_cast())
    report = make_report(["S0", "S1"], [[0.8, 0.6]])
    assert has(drawn(report, cut_crops(evidence)), (0, 204, 0)) and not has(drawn(report), (0, 204, 0))


@pytest.mark.parametrize("frames", [1, 2, 300])
def test_any_length_and_any_name(frames):
    report = make_report(["\u674e\u96f7 " * 20, "Zo\u00eb"], [[0.5, None]], frames=frames)
    assert drawn(report).std() > 5


# Tables ---------------------------------------------------------------------------------------------------------------


def test_csv_has_a_line_for_every_frame_and_subject():
    report = report_of(["Ada", "Zo\u00eb"], [[0.5, None]], fps=8.0)
    rows = list(csv.reader(io.StringIO(report_csv(report))))
    assert tuple(rows[0]) == CSV_COLUMNS and len(rows) == 1 + 2 * 4
    ada, zoe = rows[3:5]
    assert ada[:6] == ["0", "100", "1", "0.125", "Ada", "1"] and float(ada[6]) == pytest.approx(0.5, abs=1e-5)
    assert [float(value) for value in ada[8:12]] == [4, 12, 20, 28]
    assert zoe == ["0", "100", "1", "0.125", "Zo\u00eb", "0", "", "", "", "", "", "", "missing"]


def test_table_says_what_numbers_are_to_be_measured_by():
    report = make_report(["Ada", "Bo"], [[0.5, None]])
    report["subjects"][0]["photos_agree"] = 0.81
    text = report_table(report)
    assert "Measured by: Ada: own photos 0.81, face 16 px; Bo: own photos: only one, face - px" in text


def test_the_monitor_has_its_say_in_words():
    report = make_report(["Ada"], [[0.5]])
    report["monitor"] = {"name": "other", "licence": "free"}
    report["takes"][0]["subjects"]["Ada"]["monitor_seen"] = 0.31
    assert "Second opinion (chooses nothing): Ada 0.31, by other (licence: free)" in report_table(report)
    assert (drawn(report) != drawn(make_report(["Ada"], [[0.5]]))).any()
