"""The timeline picture, read back from its pixels."""

import numpy as np
import pytest
import torch

from idcrafter import drawing
from idcrafter.rewards.timeline import CHART_LEFT, CHART_RIGHT, MARGIN, TALL, WIDTH, draw_timeline
from support.reports import as_pixels, make_report

LEGEND = 112  # the first take's strip begins below


def mask(picture, colour):
    return np.abs(picture - np.array(colour)).max(-1) <= 2


def chart(picture):
    return picture[LEGEND:, CHART_LEFT : CHART_RIGHT + 1]


def test_shape_and_range():
    picture = draw_timeline(make_report(["Ada", "Bo"], [[0.5, 0.4]] * 3))
    assert picture.shape[0] == 1 and picture.shape[2:] == (WIDTH, 3) and picture.dtype == torch.float32
    assert 0.0 <= picture.min() and picture.max() <= 1.0


@pytest.mark.parametrize("similarity", [0.3, 0.6, 1.0])
def test_bars_are_as_high_as_the_similarity(similarity):
    picture = chart(as_pixels(draw_timeline(make_report(["Ada"], [[similarity]]))))
    columns = mask(picture, drawing.subject_colour(0)).sum(0)
    # Without the dotted line, and away from the numbers inside tall bars: the left edge of a bar.
    assert columns[5] == pytest.approx(similarity * TALL, abs=2)


def test_the_best_take_is_outlined():
    picture = as_pixels(draw_timeline(make_report(["Ada"], [[0.3], [0.9], [0.5]])))
    rows = np.flatnonzero(mask(picture[:, MARGIN + 40 : WIDTH - MARGIN - 40], drawing.GOOD).mean(1) > 0.9)
    strip = (len(picture) - 122 - 10) / 3
    assert len(rows) >= 2 and (rows >= 122 + strip - 2).all() and (rows <= 122 + 2 * strip).all()


def test_missing_frames_are_marked():
    seen, gone = (make_report(["Ada", "Bo"], [[0.5, b]]) for b in (0.5, None))
    assert mask(chart(as_pixels(draw_timeline(seen))), drawing.BAD).sum() == 0
    assert mask(chart(as_pixels(draw_timeline(gone))), drawing.BAD).sum() > 4 * 2 * TALL


def test_extra_people_and_swaps_are_marked_over_their_frames():
    def where(colour, **kwargs):
        picture = chart(as_pixels(draw_timeline(make_report(["Ada", "Bo"], [[0.5, 0.5]], frames=8, **kwargs))))
        return np.flatnonzero(mask(picture, colour).any(0))

    width = (CHART_RIGHT - CHART_LEFT) / 8
    extra = where(drawing.WARNING, extra_in=(5,))
    assert 5 * width <= extra.mean() <= 6 * width and len(where(drawing.WARNING)) == 0
    swap = where(drawing.BAD, swap_at=3)
    assert 3 * width <= swap.mean() <= 4 * width


def test_a_take_that_failed_is_a_line_with_its_note():
    report = make_report(["Ada"], [[0.5], [0.6]])
    report["takes"][0].update(frames=[], note="the latent holds NaN or infinite values", score=0.0)
    short, full = draw_timeline(report), draw_timeline(make_report(["Ada"], [[0.5], [0.6]]))
    assert short.shape[1] < full.shape[1]
    assert mask(as_pixels(short)[LEGEND:], drawing.WARNING).sum() > 50


@pytest.mark.parametrize("frames", [1, 30, 300, 1200])
def test_any_number_of_frames_fits(frames):
    report = make_report(["Ada"], [[0.5]], frames=1)
    report["takes"][0]["frames"] = [
        {**report["takes"][0]["frames"][0], "frame": t, "extra": t % 2, "swapped": ["Ada"] if t % 3 == 0 else []}
        for t in range(frames)
    ]
    picture = as_pixels(draw_timeline(report))
    bars = mask(chart(picture), drawing.subject_colour(0)).any(0)
    assert bars[: CHART_RIGHT - CHART_LEFT - 4].mean() > 0.9
    # Nothing but the panel right of the chart's figures.
    assert mask(picture[LEGEND + 60 : -40, WIDTH - MARGIN - 12 : WIDTH - MARGIN - 4], drawing.PANEL).all()


def test_many_takes_are_drawn_short():
    few, many = make_report(["Ada", "Bo"], [[0.5, 0.5]] * 2), make_report(["Ada", "Bo"], [[0.5, 0.5]] * 20)
    height = [draw_timeline(report).shape[1] / len(report["takes"]) for report in (few, many)]
    assert height[1] < height[0]


def test_long_and_foreign_names_stay_in_their_column():
    picture = as_pixels(draw_timeline(make_report(["x" * 64, "\u674e\u96f7 Zo\u00eb"], [[0.5, 0.5]])))
    names = picture[LEGEND + 70 :, MARGIN + 4 : CHART_LEFT - 4]
    assert mask(names, drawing.subject_colour(0)).sum() > 20
    assert mask(picture[LEGEND + 70 :, CHART_LEFT - 6 : CHART_LEFT - 1], drawing.subject_colour(0)).sum() == 0
