"""The picture of a curve."""

import json

import numpy as np

from idcrafter.drawing import BACKGROUND, SUBJECT_COLOURS
from idcrafter.training.curves import PANEL, draw_curves, read_curve


def coloured(picture, i):
    """[H, W] where this curve's colour is."""
    return (np.asarray(picture) == SUBJECT_COLOURS[i]).all(-1)


def test_a_panel_for_each_loss():
    rows = [{"step": n, "flow": 1 / n, "router": 2.0 if n % 2 else None, "seconds": n} for n in range(1, 11)]
    picture = draw_curves(rows, 20)
    first, second = (coloured(picture, i).nonzero() for i in range(2))
    assert first[0].max() < second[0].min() and not coloured(picture, 2).any()
    # Half of the steps are half of the width, and what falls falls.
    assert 0.45 < first[1].max() / picture.width < 0.6
    left, right = (first[0][first[1] < 150].min(), first[0][first[1] > first[1].max() - 30].min())
    assert right - left > PANEL / 2
    # An even curve is drawn as well.
    assert len(second[0])


def test_nothing_yet(tmp_path):
    picture = draw_curves(read_curve(tmp_path / "none.jsonl"), 5)
    assert picture.getpixel((0, 0)) == BACKGROUND
    path = tmp_path / "curve.jsonl"
    path.write_text(json.dumps({"step": 1, "flow": 0.5}) + "\n")
    assert read_curve(path) == [{"step": 1, "flow": 0.5}]
