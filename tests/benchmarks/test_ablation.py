"""The ablation benchmark: who is where in planted clips, a batch equals single clips, rows that compare, sums."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from idcrafter.nano.world import crowd
from support import tiny_adapters
from support.crowd_faces import GALLERY, faces_of, rendered
from support.inprocess import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import _crowd_scores as scores  # noqa: E402
import ablation  # noqa: E402

CASES = [(count, move, seed) for count in (2, 3, 4) for move in crowd.MOVES for seed in (0, 1)]
META = {"steps": "100", "data": "abc", "seed": "7"}


def measure(clip, found, frames=None):
    frames = clip.frames / np.float32(255) if frames is None else frames
    people = range(len(clip.spec.identities))
    return scores.measure_clip(scores.ends_of(clip), frames, found, people, GALLERY, 8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_truth_has_everybody_in_place(case):
    clip = rendered(*case)
    got = measure(clip, faces_of(clip))
    assert not got["swapped"] and not got["misplaced"] and got["judged"]
    assert got["top1"] == got["subjects"] == case[0] and got["in_place"] == pytest.approx(1)
    assert got["crossed"] is (True if case[1] == "swap" else None)
    assert got["similarity"] > 0.7


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_people_exchanged(case):
    """From the beginning, and from the middle on, where those who cross may have become each other."""
    count, move, _ = case
    clip = rendered(*case)
    a, b = (clip.spec.a, clip.spec.b) if move != "stay" else (0, count - 1)
    other = list(range(count))
    other[a], other[b] = b, a
    for first in (0, 4):
        got = measure(clip, faces_of(clip, lambda f, first=first: other if f >= first else range(count)))
        assert got["swapped"] and got["places"] and got["misplaced"]
        assert got["top1"] == count - 2 or first  # a face that was two people half the time is like either
        assert got["midway"] or first == 0 or move != "stay"
        assert got["similarity"] == pytest.approx(measure(clip, faces_of(clip))["similarity"], abs=0.15)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_who_does_not_walk_is_not_exchanged(count):
    clip = rendered(count, "swap", 1)
    truth = [clip.faces[0]] * len(clip.faces)
    got = measure(clip, faces_of(clip, truth=truth))
    assert not got["swapped"] and not got["misplaced"] and got["crossed"] is False and got["top1"] == count
    looks = list(range(count))
    looks[clip.spec.a], looks[clip.spec.b] = clip.spec.b, clip.spec.a
    assert measure(clip, faces_of(clip, lambda f: looks, truth))["swapped"]
    # Faces that are not found for a moment have not left.
    lost = measure(clip, faces_of(clip, lambda f: [None if f in (3, 4) else i for i in range(count)], truth))
    assert not lost["swapped"] and lost["crossed"] is False


@pytest.mark.parametrize("case", CASES, ids=str)
def test_clone_is_no_exchange_and_costs_the_one_who_is_not_there(case):
    clip = rendered(*case)
    looks = [0, 0, *range(2, case[0])]
    got = measure(clip, faces_of(clip, lambda f: looks))
    assert not got["swapped"] and got["top1"] == case[0] - 1 and got["worst_subject"] == 0


def test_nobody_and_strangers_are_like_nobody():
    clip = rendered(3, "stay", 0)
    nobody = measure(clip, [[]] * len(clip.frames))
    assert not nobody["judged"] and not nobody["swapped"] and nobody["similarity"] == nobody["top1"] == 0
    strangers = measure(clip, faces_of(clip, lambda f: (5, 6, 7)))
    assert strangers["judged"] and not strangers["swapped"]
    assert strangers["similarity"] == strangers["top1"] == 0
    guest = measure(clip, faces_of(clip, lambda f: (5, 0, 2)))  # the second is where nobody else of the cast is
    assert guest["swapped"]


def test_picture_has_no_likeness():
    clip = rendered(2, "stay", 0)
    frozen = np.repeat(clip.frames[:1], len(clip.frames), 0) / np.float32(255)
    got = measure(clip, faces_of(clip, truth=[clip.faces[0]] * len(clip.faces)), frozen)
    assert got["similarity"] == got["worst_subject"] == 0 and not got["swapped"] and scores.is_still(frozen)


# Sums -----------------------------------------------------------------------------------------------------------------


def clip_line(similarity, swapped=False, judged=True, subjects=3, **more):
    line = {"similarity": similarity, "worst_subject": similarity, "in_place": similarity, "top1": 2}
    line |= {"subjects": subjects, "judged": judged, "swapped": swapped, "places": swapped, "midway": False}
    return line | {"misplaced": swapped, "crossed": None, "sampling_seconds": 1.0, "scoring_seconds": 0.5} | more


def test_result_of_rows():
    references = [clip_line(0.4 + 0.01 * (i % 5), swapped=i < 20) for i in range(64)]
    full = [clip_line(1.25 * each["similarity"], swapped=i < 5) for i, each in enumerate(references)]
    full += [clip_line(0.9, subjects=2)] * 4
    facts = {"references": {"steps": 5}, "full": {"steps": 5, "parameters": 7}}
    result = scores.result_of(facts, {"references": references, "full": full})
    json.dumps(result, allow_nan=False)
    assert result["gain_full_over_references"] == 0.25
    # In pairs every draw has the same gain.
    assert result["gain_full_over_references_ci95"] == [0.25, 0.25]
    assert result["swap_ratio_full_over_references"] == 0.25
    low, high = result["swap_ratio_full_over_references_ci95"]
    assert 0 < low < 0.25 < high < 0.6
    assert result["gain_router_loss"] is None and result["met"]["gain_router_loss"] is None
    assert result["met"]["gain_full_over_references"] and result["met"]["swap_ratio_full_over_references"]
    assert result["clips"] == {"2": 4, "3": 64}
    row = result["rows"]["full"]
    assert row["parameters"] == 7 and row["2"]["similarity"] == 0.9 and row["all"]["clips"] == 68
    assert row["3"]["swap_rate"] == round(5 / 64, 4) and row["3"]["swap_rate_ci95"][0] < 5 / 64
    assert result["rows"]["references"]["2"] == {}


def test_only_judged_clips_count_for_swaps():
    clips = [clip_line(0.5, True), clip_line(0.5), clip_line(0, judged=False), clip_line(0, judged=False)]
    sums = scores.summarise(clips)
    assert (sums["swap_rate"], sums["judged"], sums["similarity"], sums["crossed"]) == (0.5, 2, 0.25, None)
    assert scores.ratio(clips, [clip_line(1.0)] * 4) == (None, None)  # nothing happens in the other row
    assert scores.summarise(clips[2:])["swap_rate"] is None


def test_work_goes_on_where_it_was(tmp_path):
    clip = SimpleNamespace(name="2-000", key="c", index=0, count=2, prompt="A waits.", truth=rendered(2, "stay", 0))
    row, other = (SimpleNamespace(name="full", key=key) for key in "rs")
    work = scores.Work(tmp_path / "work")
    work.add(row, clip, {"similarity": 0.5})
    work.keep_strip("full", clip, torch.rand(9, 64, 96, 3))
    file = tmp_path / "work" / "clips.jsonl"
    file.write_text(file.read_text() + '{"row": "full", "cl', "utf-8")
    again = scores.Work(tmp_path / "work")
    assert again.find(row, clip)["similarity"] == 0.5 and again.find(other, clip) is None
    again.add(other, clip, {"similarity": 0.7})
    assert scores.Work(tmp_path / "work").find(other, clip)["similarity"] == 0.7
    again.draw_sheet(["full", "truth"], [clip])
    assert (tmp_path / "work" / "clips-2.png").is_file()


# The stack ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    """Of a small gallery, for it takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "GALLERY", 12)
        with torch.inference_mode():
            made = ablation.Bench({2: 2}, steps=2)
        yield made


@pytest.fixture(scope="module")
def rows(bench, tmp_path_factory):
    """A folder with adapters of random weights, all gates open, and a LoRA."""
    folder = tmp_path_factory.mktemp("rows")
    sizes = {**tiny_adapters.OWN, "every": 3, "id_width": 512, "context_width": 128}
    own = tiny_adapters.config("wan", 256, 6, **sizes)
    plain = replace(own, router=False, null=False)
    for name, config in (("full", own), ("router", replace(own, hierarchy=0)), ("hierarchy", plain)):
        metadata = {"idcrafter_adapter": config.dumps(), **META}
        safetensors.torch.save_file(tiny_adapters.weights(config), folder / f"{name}.adapter.safetensors", metadata)
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": 0.1 * torch.randn(shape, generator=generator)
        for side, shape in (("A", (2, 256)), ("B", (256, 2)))
    }
    for name in ("full", "references"):
        safetensors.torch.save_file(weights, folder / f"{name}.lora.safetensors", META)
    return folder


@pytest.mark.parametrize("name", ["references", "full"])
def test_clip_of_a_batch_is_the_clip_that_the_nodes_give(bench, rows, name):
    with torch.inference_mode():
        row = bench.row_of(name, rows)
        alike = [replace(clip, prompt=bench.clips[0].prompt) for clip in bench.clips]  # prompts of one length
        together = bench.make(row, alike, {})
        for clip, frames in zip(alike, together, strict=True):
            cast, shot = bench._shot(clip, clip.people)
            model, given = bench.conditionings(row, cast, shot)
            shot = {key: value for key, value in shot.items() if key not in ("negative_images", "positive")}
            shot |= {**given, "model": model, "sigmas": bench.sigmas}
            takes = bench.stack.pack.execute("IDCrafterSampleTakes", seed=clip.seed, takes=1, **shot)[0]
            alone = bench.stack.decode(takes.takes[0].samples)
            assert (frames - alone).abs().max() < 1e-3
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_rows_differ_and_controls_get_other_photos(bench, rows):
    clip = bench.clips[0]
    with torch.inference_mode():
        made = {name: bench.make(bench.row_of(name, rows), [clip], {})[0] for name in ("none", "references", "full")}
    assert (made["references"] - made["none"]).abs().mean() > 1e-3
    assert (made["full"] - made["references"]).abs().mean() > 1e-3
    assert bench.references_of("rotated", clip) == clip.people[::-1]
    assert not set(bench.references_of("strangers", clip)) & set(clip.people)
    keys = [bench.row_of(name, rows).key for name in ("none", "references", "full", "strangers", "truth")]
    assert len(set(keys)) == 5


def test_rendered_truth_and_an_exchange_by_the_shipped_face_pack(bench):
    for clip in bench.clips:
        frames = torch.from_numpy(clip.truth.frames).float() / 255
        got = bench.measure(clip, frames)
        assert got["similarity"] > 0.6 and not got["swapped"] and got["top1"] == 2
        exchanged = replace(clip.truth.spec, identities=clip.truth.spec.identities[::-1])
        frames = torch.from_numpy(crowd.render_crowd(exchanged).frames).float() / 255
        got = bench.measure(clip, frames)
        assert got["swapped"] and got["top1"] == 0 and got["similarity"] > 0.6


def test_row_is_refused(bench, rows, tmp_path):
    def row(name, source, **metadata):
        weights = safetensors.torch.load_file(rows / source)
        with safetensors.safe_open(rows / source, "pt") as file:
            meta = {**file.metadata(), **metadata}
        meta = {key: value for key, value in meta.items() if value}
        kind = source.split(".")[1]
        safetensors.torch.save_file(weights, tmp_path / f"{name}.{kind}.safetensors", meta)
        return bench.row_of(name, tmp_path)

    facts = row("router", "router.adapter.safetensors").facts
    assert facts["steps"] == 100 and facts["seed"] == 7 and facts["parameters"] > 1000
    with pytest.raises(ValueError, match="'full.adapter.safetensors' has no router and a hierarchy"):
        row("full", "hierarchy.adapter.safetensors")
    with pytest.raises(ValueError, match="does not say its steps"):
        row("hierarchy", "hierarchy.adapter.safetensors", steps="")
    row("references", "references.lora.safetensors")
    with pytest.raises(ValueError, match="'references' has no adapter, remove"):
        row("references", "full.adapter.safetensors")
    with pytest.raises(ValueError, match="'full_without_router_loss' needs an adapter"):
        bench.row_of("full_without_router_loss", tmp_path)


def test_rows_of_other_training_do_not_compare(bench):
    def rows(**trained):
        return [
            ablation.Row(name, None, None, {"steps": s, "data": d} if s else {}, "") for name, (s, d) in trained.items()
        ]

    ablation.check_rows(rows(none=(0, ""), references=(5, "a"), full=(5, "a"), truth=(0, "")))
    for other in ((6, "a"), (5, "b"), (0, "")):
        with pytest.raises(ValueError, match="same training only"):
            ablation.check_rows(rows(none=(0, ""), references=other, full=(5, "a")))
