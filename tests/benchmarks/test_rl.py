"""The benchmark of reinforcement learning: what it sees in a clip, and the sums that it makes of clips."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.crowd_faces import GALLERY, faces_of, rendered
from support.inprocess import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import _crowd_scores as scores  # noqa: E402
import rl  # noqa: E402


def measured(clip, found, frames=None):
    """`RlBench.measure` for these faces; the monitor sees half as much likeness."""
    frames = torch.from_numpy(clip.frames / np.float32(255)) if frames is None else frames
    bench = SimpleNamespace(
        stack=SimpleNamespace(analyzer=SimpleNamespace(analyze_frames=lambda frames: found)),
        monitor=SimpleNamespace(embed=lambda frames, faces: faces),
        gallery=GALLERY,
        monitor_gallery=GALLERY / 2,
        fps=8,
    )
    people = tuple(range(len(clip.spec.identities)))
    own = SimpleNamespace(people=people, ends=scores.ends_of(clip), truth=clip)
    return rl.RlBench.measure(bench, own, frames)


def test_the_truth_of_a_clip():
    clip = rendered(2, "swap", 1)
    got = measured(clip, faces_of(clip))
    assert set(got) == set(rl.MEASURES)
    assert got["identity_mean"] > 0.7 and got["relation_accuracy"] == 1.0 and got["motion"] > 0.3
    assert got["reward"] > 0.5 and got["facesim"] > 0.5
    # Unit vectors and their halves: the monitor's numbers are its own.
    assert got["monitor"] == pytest.approx(got["identity_mean"] / 2, rel=0.05)


def test_what_lowers_which_measure():
    clip = rendered(2, "swap", 1)
    right = measured(clip, faces_of(clip))
    exchanged = measured(clip, faces_of(clip, lambda f: (1, 0)))
    assert exchanged["relation_accuracy"] == 0.0 and exchanged["identity_mean"] > 0.7
    twice = measured(clip, faces_of(clip, lambda f: (0, 0)))  # two of the first: what FaceSim does not see
    assert twice["facesim"] >= right["facesim"] and twice["identity_worst"] == 0.0 and twice["reward"] < right["reward"]
    still = torch.from_numpy(clip.frames[:1] / np.float32(255)).expand(len(clip.frames), -1, -1, -1)
    frozen = measured(clip, faces_of(clip), still)
    assert frozen["motion"] == frozen["reward"] == 0.0


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals of a few hundred draws are enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "DRAWS", 300)
        yield


def clips(generator, **shifts):
    """Clips whose measures are 0.5 and a shift, and noise that all calls with one seed share."""
    noise = np.random.default_rng(generator).normal(0, 0.05, (64, len(rl.MEASURES)))
    return [
        {name: 0.5 + shifts.get(name, 0.0) + float(noise[i, j]) for j, name in enumerate(rl.MEASURES)}
        for i in range(64)
    ]


@pytest.fixture(scope="module")
def result(few_draws):
    better = {"reward": 0.1, "identity_mean": 0.08, "monitor": 0.04, "facesim": 0.02}
    measured = {
        "before": clips(0),
        "nft-0": clips(1, **better),
        "nft-1": clips(2, **better),
        "dpo-0": clips(3, reward=0.02),
        "permuted-0": clips(4),
        "gamed-0": clips(5, facesim=0.3, identity_worst=-0.3, motion=-0.2, reward=0.2),
    }
    return rl.result_of({name: {"steps": "9"} for name in measured}, measured)


def test_rows_are_loras_and_the_two_that_are_worn_together(tmp_path):
    first, second = rl.STACKED
    for name in (f"{first}-0", f"{second}-0", f"{first}-1", "nft-0", "somebody's"):
        (tmp_path / f"{name}.safetensors").touch()
    loras = rl.loras_in(tmp_path)
    found = {name: [path.stem for path in files.values()] for name, files in rl.rows_of(loras).items()}
    alone = {name: [name] for name in (f"{first}-0", f"{second}-0", f"{first}-1", "nft-0")}
    assert found == {"before": [], **alone, f"{first}_{second}-0": [f"{first}-0", f"{second}-0"]}
    assert set(rl.rows_of(loras, ["nft-0", f"{first}_{second}-0"])) == {"before", "nft-0", f"{first}_{second}-0"}


def test_the_packs_own_loras_are_a_row_each_and_one_together():
    loras = rl.loras_in(None)
    assert all(path.is_file() for path in loras.values())
    assert set(rl.rows_of(loras)) == {"before", *loras, f"{rl.STACK}-0"} and len(loras) == 2


def test_the_best_method_and_its_seeds(result):
    assert result["best_method"] == "nft" and result["methods"]["nft"]["seeds"] == [0, 1]
    assert result["relative_gain"] == pytest.approx(0.2, abs=0.05) and result["monitor_gain_low"] > 0
    assert result["motion_ratio"] == pytest.approx(1, abs=0.05) and abs(result["permuted_gain_high"]) < 0.08
    assert result["methods"]["nft"]["after"]["reward"] == pytest.approx(0.6, abs=0.02)
    assert result["rows"]["nft-0"]["steps"] == "9" and result["rows"]["before"]["clips"] == 64
    assert result["met"]["relative_gain"] and result["met"]["monitor_gain_low"] and result["met"]["motion_ratio"]


def test_the_gamed_run_is_no_method_and_shows_in_the_worst(result):
    gamed, shipped = result["hacking"]["gamed"], result["hacking"]["shipped"]
    assert gamed["facesim"]["gain"] > 0.4 and gamed["identity_worst"]["ci95"][1] < 0 and gamed["motion"]["gain"] < 0
    assert shipped["identity_worst"]["gain"] > -0.05 and shipped["motion"]["gain"] > -0.05


def test_what_is_not_there_is_null():
    found = rl.result_of({"before": {}, "dpo-0": {}}, {"before": clips(0), "dpo-0": clips(1, reward=-0.2)})
    assert found["permuted_gain_high"] is None and found["met"]["permuted_gain_high"] is None
    assert found["best_method"] == "dpo" and found["met"]["relative_gain"] is False and "gamed" not in found["hacking"]
