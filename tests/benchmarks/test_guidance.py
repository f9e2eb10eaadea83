"""The guidance benchmark: relations that planted tracks show or do not show, sums, and clips that say no name."""

import json
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from idcrafter.nano import world
from idcrafter.nano.world import crowd, stories
from idcrafter.subjects.faces import DetectedFace
from support import tiny_aligners, tiny_vision
from support.inprocess import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import _crowd_scores as scores  # noqa: E402
import _relation_scores as relation_scores  # noqa: E402
import guidance  # noqa: E402

IDENTITIES = tuple(world.sample_identity(number) for number in islice(world.numbers_of_split("val"), 4))
LOOKS = np.linalg.qr(np.random.default_rng(1).standard_normal((512, 8)))[0].T
CASES = [(count, move, seed) for count in (2, 3, 4) for move in crowd.MOVES for seed in (0, 1)]


def rendered(count, move, seed):
    """The first clip from this seed on whose places are known."""
    for s in range(10 * seed, 1000):
        clip = crowd.render_crowd(crowd.sample_crowd_spec(IDENTITIES[:count], s, move))
        if all(face is not None for face in clip.faces[0]):
            return clip


def found_in(clip, who=lambda f, i: i, where=None):
    """Faces at the true places of each frame, or of `where[f]`, with the looks of who(f, i); None is nobody."""
    found = []
    for f, faces in enumerate(where or clip.faces):
        shown = [(face, who(f, i)) for i, face in enumerate(faces)]
        found.append([DetectedFace(face.box, 1.0, face.landmarks, LOOKS[i])
                      for face, i in shown if face is not None and i is not None])  # fmt: skip
    return found


def relations(clip, found):
    subjects = LOOKS[: len(clip.spec.identities)]
    return relation_scores.relations(clip, scores.ends_of(clip), found, subjects)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_truth_shows_every_relation(case):
    clip = rendered(*case)
    got = relations(clip, found_in(clip))
    assert got == {"place": [True] * case[0], "move": None if case[1] == "stay" else True}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_people_exchanged_are_seen(case):
    """Everybody is somebody else."""
    clip = rendered(*case)
    count = case[0]
    got = relations(clip, found_in(clip, lambda f, i: (i + 1) % count))
    assert got == {"place": [False] * count, "move": None if case[1] == "stay" else False}


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "stay"], ids=str)
def test_who_stands_still_has_not_moved(case):
    clip = rendered(*case)
    still = found_in(clip, where=[clip.faces[0]] * len(clip.faces))
    assert relations(clip, still) == {"place": [True] * case[0], "move": False}


def test_another_who_hides_is_not_the_right_one():
    clip = rendered(3, "hide", 0)
    a, b = clip.spec.a, clip.spec.b
    turned = {a: b, b: a}
    assert not relations(clip, found_in(clip, lambda f, i: turned.get(i, i)))["move"]
    # Who hides must be back in the end.
    last = len(clip.faces) - 2
    assert not relations(clip, found_in(clip, lambda f, i: None if f >= last and i == a else i))["move"]


def test_without_faces_nothing_is_right():
    clip = rendered(2, "swap", 0)
    assert relations(clip, [[] for _ in clip.faces]) == {"place": [False, False], "move": False}


def test_sums():
    clips = [{"place": [True, True], "move": True}, {"place": [True, False], "move": False},
             {"place": [False, False], "move": None}]  # fmt: skip
    got = relation_scores.summarise(clips)
    assert got["relations"] == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-4)
    assert (got["places"], got["moves"], got["clips_right"]) == (0.5, 0.5, 0.3333)
    assert got["relations_ci95"][0] < got["relations"] < got["relations_ci95"][1]
    assert relation_scores.summarise(clips[2:])["moves"] is None
    better, interval = relation_scores.points(clips[:1] * 3, clips, relation_scores.right)
    assert better == pytest.approx(100 * (1 - got["relations"]), abs=0.01) and interval[0] <= better <= interval[1]


def clip_of(**changes):
    measures = {"place": [True, True], "move": None, "similarity": 0.5, "worst_subject": 0.4, "in_place": 0.5,
                "top1": 2, "subjects": 2, "judged": True, "swapped": False, "places": False, "midway": False,
                "misplaced": False, "crossed": None}  # fmt: skip
    return {**measures, **changes}


def test_the_result_compares_rows_that_were_tuned_alike():
    right, wrong = clip_of(similarity=0.52), clip_of(place=[False, False])
    measured = {"text": [wrong] * 4, "text_tuned": [wrong, right] * 2, "vlm": [right] * 4, "vlm_tuned": [right] * 4}
    result = guidance.result_of({name: {} for name in measured}, measured)
    assert (result["guidance_points"], result["guidance_points_untuned"]) == (50.0, 100.0)
    assert (result["identity_points"], result["met"]) == (1.0, {"guidance_points": True, "identity_points": True})
    assert result["rows"]["text"]["subjects"]["2"]["relations"] == 0.0
    del measured["text_tuned"]
    alone = guidance.result_of({name: {} for name in measured}, measured)
    assert alone["guidance_points"] is None and alone["met"]["guidance_points"] is None
    json.dumps(result)
    rows = [SimpleNamespace(name=name, facts={"steps": steps}) for name, steps in (("text_tuned", 9), ("vlm_tuned", 8))]
    with pytest.raises(ValueError, match="after the same tuning only"):
        guidance.check_rows(rows)


def test_clips_are_of_sealed_people_without_names():
    """Drawn without the models."""
    import importlib

    people = [world.sample_identity(n) for n in islice(world.numbers_of_split("sealed"), guidance.ablation.GALLERY)]
    pack = SimpleNamespace(submodule=importlib.import_module)
    bench = SimpleNamespace(stack=SimpleNamespace(pack=pack), people=people, crowd=crowd)
    for count in (2, 4):
        for clip in islice(guidance.Bench._draw(bench, count), 3):
            spec = clip.truth.spec
            assert [who.number for who in spec.identities] == [people[i].number for i in clip.people]
            assert clip.prompt == stories.tell(spec, 0, unseen=True).text != stories.tell(spec, 0).text
            assert not any(name in clip.prompt for name in stories.NAMES) and "The first" not in clip.prompt
            assert clip.counted.startswith("The first is a puppet. The second is a puppet.")


# The stack ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder with an aligner of random weights for the tiny VLM, a LoRA, and that VLM."""
    from idcrafter.nano.recipes.guidance_data import READING

    folder = tmp_path_factory.mktemp("rows")
    tiny_vision.write_vlm(folder / "vlm")
    reading = {"pictures": "relate", "answer": 3, "span": 3, "names": list(READING.names)}
    config = tiny_aligners.config(96, 128, tokens=128, reading=reading)
    for name in ("aligner_pretrained.safetensors", "idcrafter_nano_aligner.safetensors"):
        tiny_aligners.write_own(folder / name, config, seed=len(name), steps="9")
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": 0.1 * torch.randn(shape, generator=generator)
        for side, shape in (("A", (2, 256)), ("B", (256, 2)))
    }
    for name in ("text_tuned.lora.safetensors", "idcrafter_nano_guidance.safetensors"):
        safetensors.torch.save_file(weights, folder / name, {"steps": "9", "seed": "1"})
    return folder


@pytest.fixture(scope="module")
def bench(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance.ablation, "GALLERY", 12)
        with torch.inference_mode():
            made = guidance.Bench({2: 2}, rows / "vlm", steps=2)
        yield made


def test_rows_get_what_they_are_about(bench, rows):
    clip = bench.clips[0]
    with torch.inference_mode():
        made = {name: bench.row_of(name, rows) for name in guidance.ROWS}
        shots: dict = {}
        frames = {name: bench.make(row, [clip], shots)[0] for name, row in made.items()}
    assert len({row.key for row in made.values()}) == len(made)
    names = list(frames)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            assert (frames[name] - frames[other]).abs().mean() > 1e-4, (name, other)
    assert made["vlm_tuned"].facts["steps"] == 9 and made["text"].facts["files"] == {}
    guidance.check_rows(list(made.values()))
    with pytest.raises(FileNotFoundError, match="text_tuned.lora.safetensors"):
        bench.row_of("text_tuned", rows / "vlm")


def test_guidance_is_what_the_node_gives(bench, rows):
    clip = bench.clips[1]
    with torch.inference_mode():
        row = bench.row_of("vlm", rows)
        cast, shot = bench._shot(clip, clip.people)
        _, given = bench.conditionings(row, cast, shot)
        node = bench.stack.pack.execute(
            "IDCrafterEncodeRelations", conditioning=bench.stack.text(clip.prompt), cast=cast, prompt=clip.prompt,
            vlm=bench.vlm, aligner=row.adapter,
        )  # fmt: skip
    assert torch.equal(given["positive"][0][0], node[0][0][0]) and given["positive"][0][0].shape == (1, 128, 128)
    references = [values["time_dim_concat"] for values in (given["positive"][0][1], shot["positive"][0][1])]
    assert torch.equal(*references) and references[0].any()


def test_the_rendered_truth_shows_its_relations(bench):
    for clip in bench.clips:
        got = bench.measure(clip, torch.from_numpy(clip.truth.frames).float() / 255)
        assert got["place"] == [True, True] and got["similarity"] > 0.6
