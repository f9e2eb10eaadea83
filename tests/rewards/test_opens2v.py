"""OpenS2V's totals against both published leaderboards, and what its FaceSim does not see.

data/opens2v_leaderboard.csv holds every row, in percent, of leaderboard/file_v1.0 and file_v1.1,
results_{Open,Human,Single}-Domain.csv, of PKU-YuanGroup/OpenS2V-Nexus (open domain 1.1: commit 379b098; the others by
its copy franciszzj/OpenS2V-Nexus, commits 8cb7427 and 210eb08).
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from idcrafter.rewards.opens2v import WEIGHTS, face_sim, normalise, total
from support.clips import evidence_of, painted_cast, painted_clip
from support.painted_faces import embedding

with (Path(__file__).parent / "data" / "opens2v_leaderboard.csv").open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))
TOLERANCE = 0.02  # percent points; the metrics are printed with two digits

# The one published row whose total is not that of its own metrics. Its total is that of the motion and face score which
# the later table prints for the same videos.
STALE = ("1.0", "human", "EchoVideo")


def metrics_of(row):
    return {name: float(row[name]) for name in WEIGHTS[row["version"], row["domain"]]}


def key(row):
    return row["version"], row["domain"], row["model"]


def test_both_leaderboards_are_whole():
    counts = {pair: sum((row["version"], row["domain"]) == pair for row in ROWS) for pair in WEIGHTS}
    assert counts == {
        ("1.0", "open"): 10, ("1.0", "single"): 11, ("1.0", "human"): 19,
        ("1.1", "open"): 15, ("1.1", "single"): 11, ("1.1", "human"): 20,
    }  # fmt: skip
    assert len({key(row) for row in ROWS}) == len(ROWS) == 86


@pytest.mark.parametrize("row", [row for row in ROWS if key(row) != STALE], ids=lambda row: "-".join(key(row)))
def test_total_is_the_published_one(row):
    assert total(metrics_of(row), row["domain"], row["version"]) == pytest.approx(float(row["total"]), abs=TOLERANCE)


def test_the_row_that_contradicts_itself():
    old = next(row for row in ROWS if key(row) == STALE)
    new = next(row for row in ROWS if key(row) == ("1.1", *STALE[1:]))
    printed = metrics_of(old)
    assert abs(total(printed, "human", "1.0") - float(old["total"])) > TOLERANCE
    meant = {**printed, "motion": float(new["amplitude"]), "face": float(new["face"])}
    assert total(meant, "human", "1.0") == pytest.approx(float(old["total"]), abs=TOLERANCE)


@pytest.mark.parametrize("pair", WEIGHTS)
def test_weights_add_up_to_one(pair):
    assert sum(WEIGHTS[pair].values()) == pytest.approx(1.0)


def test_normalisation():
    assert normalise("aesthetics", [3.0, 5.5, 9.0]) == pytest.approx((0.0 + 0.5 + 1.0) / 3)
    assert normalise("natural", [1, 3, 5]) == pytest.approx(0.5)
    assert normalise("nexus", [0.0, 0.025, 0.2]) == pytest.approx(0.75)  # nothing found is left out
    assert normalise("amplitude", [-0.5, 2.0]) == pytest.approx(0.75)
    assert normalise("face", []) == 0.0
    with pytest.raises(ValueError, match="gme scores hold NaN"):
        normalise("gme", [float("nan")])
    with pytest.raises(ValueError, match="normalises aesthetics"):
        normalise("beauty", [1.0])


def test_a_total_needs_exactly_its_metrics():
    metrics = dict.fromkeys(WEIGHTS["1.1", "open"], 0.5)
    assert total(metrics) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="needs exactly"):
        total({**metrics, "motion": 0.5})
    with pytest.raises(ValueError, match="'gme' is nan"):
        total({**metrics, "gme": float("nan")})
    with pytest.raises(ValueError, match=r"versions 1\.0, 1\.1"):
        total(metrics, "open", "2.0")


def facesim(*frames):
    return face_sim(evidence_of(painted_clip(frames), painted_cast()).faces, embedding(0))


def test_facesim_takes_the_largest_face_and_drops_what_does_not_count():
    assert facesim([(0, 0.8, 0), (1, 0.9, 1)], [(0, 0.6, 0)]) == pytest.approx(0.7, abs=1e-2)
    assert facesim([(0, 0.8, 0), (1, 0.9, 1, 20)]) == 0.0  # the larger face is somebody else: cosine 0, dropped
    # Defects, as published: a frame without a face, and one with a stranger, cost nothing.
    assert facesim([(0, 0.8, 0)], [], [(5, 1.0, 0)]) == facesim([(0, 0.8, 0)])
    assert facesim([], []) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        face_sim([], np.full(512, np.nan))
