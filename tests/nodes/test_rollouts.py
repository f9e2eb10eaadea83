"""Save Rollouts and Load Rollouts as ComfyUI runs them."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import ExecutionBlocker

from idcrafter.rollouts import record
from idcrafter.sampling.run import model_facts
from idcrafter.sampling.sde.record import SdeRecord
from idcrafter.sampling.takes import Take, Takes
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint

LEFT, RIGHT = 10, 60


@pytest.fixture(autouse=True)
def output(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def painted():
    """A cast with faces."""
    cast = make_cast([make_subject(n, "person", "", paint(blank(), i, 20)[None]) for i, n in enumerate(("Ada", "Bo"))])
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))


def clip(a, b):
    video = blank(count=4)
    for frame in video:
        paint(paint(frame, 0, LEFT, a), 1, RIGHT, b)
    return video


class Vae:
    """Decodes the latent of seed s to a clip whose faces are the better the higher s is."""

    def decode(self, samples):
        return clip(float(samples[0, 0, 0, 0, 0]) / 10, 0.4)[None]


def make_takes(stack, seeds=(5, 8, 9), **changes):
    takes = tuple(Take(seed, torch.full((1, 4, 2, 3, 3), float(seed)), 0.5, False) for seed in seeds)
    facts = {"base_seed": seeds[0], "sampler": "euler", "sigmas": torch.tensor([1.0, 0.3, 0.0])}
    return Takes(takes, model=model_facts(stack.model), **{**facts, **changes})


@pytest.fixture
def score(pack, painted):
    return lambda takes, **more: pack.execute(
        "IDCrafterScoreTakes", takes=takes, vae=Vae(), cast=painted, frames=0, **more
    )[0]


@pytest.fixture
def save(pack, stack, shot, painted, score):
    def save(takes=None, hidden=None, **changes):
        takes = takes or make_takes(stack)
        inputs = {
            "takes": takes, "cast": painted, "model": stack.model, "prompt": "Ada and Bo wave.",
            "positive": shot.positive, "negative_text": shot.negative_text,
            "negative_images": shot.negative_images, **changes,
        }  # fmt: skip
        inputs.setdefault("scorecard", score(takes))
        return pack.execute("IDCrafterSaveRollouts", hidden, **inputs)

    return save


@pytest.fixture
def load(pack):
    return lambda **inputs: pack.execute("IDCrafterLoadRollouts", **inputs)


def group_files(output):
    return sorted(output.glob("idcrafter/rollouts/groups/*.safetensors"))


def facts_of(output):
    (path,) = group_files(output)
    return record.read_facts(path)


def test_a_group_is_stored_with_all_that_made_it(save, stack, output):
    folder, text = save(clip=stack.clip, label="row 3")
    facts = facts_of(output)
    assert folder == "idcrafter/rollouts" and text.startswith("Stored: group") and "3 takes" in text
    assert [take["seed"] for take in facts["takes"]] == [5, 8, 9]
    totals = [take["total"] for take in facts["takes"]]
    assert totals == sorted(totals) and totals[0] < totals[2]
    assert {"score", "similarity_mean", "similarity_min", "change"} <= set(facts["takes"][0]["rewards"])
    hashes = {name for name, value in facts["hashes"].items() if value is not None}
    assert hashes == {*record.HASHES, "shot"} - {"graph"}  # there is no graph here
    assert facts["shot"]["prompt"] == "Ada and Bo wave." and facts["label"] == "row 3"
    assert [subject["name"] for subject in facts["shot"]["subjects"]] == ["Ada", "Bo"]
    assert facts["licences"][0]["what"] == "video model" and facts["licences"][0]["made_pixels"]
    assert facts["licences"][0]["licence"] == stack.model.get_attachment("idcrafter")["licence"]
    assert facts["licences"][1] == {
        "what": "face analyzer", "name": "painted", "licence": facts["licences"][1]["licence"], "made_pixels": False,
    }  # fmt: skip
    assert facts["software"]["comfyui"] and facts["software"]["torch"] == torch.__version__


def test_raw_terms_of_a_reward_are_stored(pack, save, score, stack, output):
    reward = pack.execute("IDCrafterReward", term={"term": "identity"}, weight=2.0, floor=0.0, combine="sum")[0]
    reward = pack.execute(
        "IDCrafterReward", term={"term": "motion"}, weight=0.0, floor=0.0, combine="sum", reward=reward
    )[0]
    takes = make_takes(stack)
    save(takes, scorecard=score(takes, reward=reward, monitor=PaintedFaceAnalyzer()))
    facts = facts_of(output)
    for take in facts["takes"]:
        assert take["total"] == pytest.approx(2 * take["rewards"]["identity"], abs=1e-5)
        assert {"identity", "motion", "monitor", "score"} <= set(take["rewards"])
    assert facts["reward"]["terms"]["identity"]["weight"] == 2.0


def test_saving_again_stores_nothing_twice_and_more_takes_join(save, stack, output, load):
    save()
    assert save()[1].startswith("Already there")
    save(make_takes(stack, (5, 6, 7)))
    assert len(group_files(output)) == 2
    rollouts = load()[0]
    assert [[take.seed for take in group.takes] for group in rollouts.groups] == [[5, 6, 7, 8, 9]]


def test_conditioning_comes_back_as_it_was(save, shot, load):
    save()
    rollouts = load()[0]
    back = rollouts.conditioning(rollouts.groups[0])
    for name in ("positive", "negative_text", "negative_images"):
        (text, options), (given, wanted) = back[name][0], getattr(shot, name)[0]
        assert torch.equal(text, given)
        assert set(options) == set(wanted)
        stacked = [v for v in wanted.values() if isinstance(v, torch.Tensor)]
        assert all(torch.equal(a, b) for a, b in zip(filter(torch.is_tensor, options.values()), stacked, strict=True))


def test_hashes_only(save, load, output):
    save(keep="hashes")
    assert not (output / "idcrafter/rollouts/objects").exists()
    rollouts = load()[0]
    with pytest.raises(ValueError, match="stored without its conditioning"):
        rollouts.conditioning(rollouts.groups[0])


def test_photos_are_kept_where_asked(save, output):
    save()
    assert not (output / "idcrafter/rollouts/photos").exists()
    save(keep="conditioning and photos", prompt="another")
    names = {p for subject in record.read_facts(group_files(output)[0])["shot"]["subjects"] for p in subject["photos"]}
    assert {path.stem for path in (output / "idcrafter/rollouts/photos").iterdir()} == names


def test_random_steps_are_stored(save, stack, output):
    takes = make_takes(stack)
    latent = torch.randn(2, 4, 2, 3, 3)
    sde = SdeRecord(
        "CPS", 0.8, (0, 1), torch.tensor([[1.0, 0.3], [0.3, 0.0]]), latent.bfloat16(), (latent * 2).bfloat16(), latent,
        torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64),
    )  # fmt: skip
    takes = dataclasses.replace(takes, takes=tuple(dataclasses.replace(take, sde=sde) for take in takes.takes))
    save(takes)
    (path,) = group_files(output)
    facts = record.read_facts(path)
    assert facts["takes"][1]["sde"] == sde.settings() and facts["shot"]["sde"] == {"kind": "CPS", "eta": 0.8}
    names = {name for name in facts["tensors"] if name.startswith("1.")}
    assert names == {"1.x0", "1.x_t", "1.x_next", "1.sigmas", "1.std", "1.log_prob"}  # the mean follows from them
    assert torch.equal(record.read_tensors(path, ["1.x_next"], facts)["1.x_next"], sde.x_next)


def test_takes_that_cannot_be_learnt_from_are_left_out(save, stack, output, score):
    takes = make_takes(stack)
    takes.takes[1].samples[0, 0, 1, 0, 0] = float("nan")
    takes = dataclasses.replace(takes, search={"pruned": [{"seed": 77}]})
    text = save(takes, scorecard=score(dataclasses.replace(takes, search=None)))[1]
    facts = facts_of(output)
    assert [take["seed"] for take in facts["takes"]] == [5, 9]
    assert [each["seed"] for each in facts["left_out"]] == [8, 77]
    assert "seed 8, the latent holds NaN" in text and "seed 77, the search gave it up" in text


def test_groups_with_too_little_spread_are_not_stored(save, stack, output):
    same = make_takes(stack, (5, 6))
    same.takes[1].samples[0, 0, 0, 0, 0] = 5.0
    assert save(same)[1].startswith("Not stored: group")
    assert save(min_spread=0.9)[1].startswith("Not stored: group")
    assert not group_files(output)


def test_scorecard_of_other_takes(save, score, stack):
    with pytest.raises(ValueError, match="The take of seed 5 is not in the scorecard"):
        save(scorecard=score(make_takes(stack, (1, 2))))


def test_another_model_than_the_takes_(save, stack):
    takes = make_takes(stack)
    takes = dataclasses.replace(takes, model={**takes.model, "file": "other.safetensors"})
    with pytest.raises(ValueError, match=r"sampled by other.safetensors, the connected MODEL is tiny_dit.safetensors"):
        save(takes)


def test_a_model_needs_its_conditioning_and_a_guider_brings_it(pack, save, stack, shot, output):
    with pytest.raises(ValueError, match="connect 'positive' as in Sample Takes"):
        save(positive=None)
    guider = pack.execute(
        "DualCFGGuider", model=stack.model, cond1=shot.positive, cond2=shot.negative_text,
        negative=shot.negative_images, cfg_conds=4.0, cfg_cond2_negative=2.0, style="regular",
    )[0]  # fmt: skip
    assert isinstance(guider, comfy.samplers.CFGGuider)
    with pytest.raises(ValueError, match="disconnect positive, negative_text, negative_images"):
        save(model=guider)
    save(model=guider, positive=None, negative_text=None, negative_images=None)
    shot_facts = facts_of(output)["shot"]
    assert set(shot_facts["conditioning"]) == {"positive", "negative_text", "negative_images"}
    assert (shot_facts["guidance"]["cfg1"], shot_facts["guidance"]["cfg2"]) == (4.0, 2.0)


def graph(seed=3, cfg=4.0, **widgets):
    nodes = {
        "1": {"class_type": "Loader", "inputs": {"file": "x.safetensors"}},
        "2": {
            "class_type": "IDCrafterSampleTakes",
            "inputs": {"model": ["1", 0], "seed": seed, "takes": 3, "cfg_text": cfg, "cfg_images": ["1", 1]},
        },
        "3": {"class_type": "IDCrafterSaveRollouts", "inputs": {"takes": ["2", 0], **widgets}},
    }
    return {"unique_id": "3", "dynprompt": DynamicPrompt(nodes)}


def test_the_graph_is_hashed_without_its_seeds(save, output):
    def hashes(**changes):
        for path in group_files(output):
            path.unlink()
        save(hidden=graph(**changes))
        return facts_of(output)

    first = hashes()
    assert first["hashes"]["graph"] == hashes(seed=9)["hashes"]["graph"] == hashes(label="x")["hashes"]["graph"]
    other = hashes(cfg=5.0)
    assert other["hashes"]["graph"] != first["hashes"]["graph"] and other["group"] != first["group"]
    assert first["shot"]["guidance"] == {"cfg_text": 4.0}


def test_a_full_disk_says_what_to_do(save, monkeypatch, output):
    save()
    before = [path.read_bytes() for path in group_files(output)]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        RuntimeError, match="Nothing that was there before is lost; make room, then run the graph again"
    ):
        save(prompt="another")
    monkeypatch.undo()
    folder_paths.output_directory = str(output)
    assert [path.read_bytes() for path in group_files(output)] == before


@pytest.mark.parametrize("folder", ["../elsewhere", "a/../../b", "/tmp/x", "", ".", "C:\\x"])
def test_nothing_is_written_outside_the_output_folder(save, load, folder):
    for run in (lambda: save(folder=folder), lambda: load(folder=folder)):
        with pytest.raises(ValueError, match="is not inside ComfyUI's output folder"):
            run()


def test_a_link_that_leaves_the_output_folder(save, output, tmp_path_factory):
    (output / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match="is not inside ComfyUI's output folder"):
        save(folder="link/x")


def test_a_disk_budget_deletes_the_least_telling_group(save, stack, output):
    save(make_takes(stack, (8, 9)), prompt="little")
    save(prompt="much")
    size = sum(path.stat().st_size for path in (output / "idcrafter/rollouts").rglob("*.safetensors"))
    text = save(make_takes(stack, (1, 9)), prompt="new", disk_budget=(size + 2000) / 2**30)[1]
    assert "Deleted for room: 1 groups" in text
    assert {record.read_facts(path)["shot"]["prompt"] for path in group_files(output)} == {"much", "new"}


def test_page_and_best_and_worst(save, load, stack):
    save()
    save(make_takes(stack, (8, 9)), prompt="hardly any difference")
    rollouts, page, frames, report = load(vae=Vae())
    assert len(rollouts.groups) == 2 and "2 groups, 5 takes" in report
    assert frames.shape[0] == 4 and torch.equal(frames[:, :, : clip(0, 0).shape[2]], clip(0.9, 0.4))
    assert torch.equal(frames[:, :, -clip(0, 0).shape[2] :], clip(0.5, 0.4))  # of the group with the larger spread
    assert page.shape[0] == 1 and page.shape[3] == 3
    worst = load(vae=Vae(), show=next(i for i, g in enumerate(rollouts.groups) if len(g.takes) == 2))[2]
    assert torch.equal(worst[:, :, -clip(0, 0).shape[2] :], clip(0.8, 0.4))
    with pytest.raises(ValueError, match="Group 7 does not exist; choose 0 to 1"):
        load(show=7)
    without = load()
    assert isinstance(without[2], ExecutionBlocker) and without[1].shape[1] < page.shape[1]


def test_filters(save, load, stack):
    save(clip=stack.clip)
    assert len(load(clip=stack.clip, model=stack.model, licence="", since="2020-01-01")[0].groups) == 1
    for inputs, reason in (
        ({"min_spread": 0.9}, "differ by"),
        ({"policy": "ffff"}, "it is of the policy"),
        ({"licence": "gpl"}, "its licence is"),
        ({"until": "2020-01-01"}, "it was collected on"),
        ({"label": "x"}, "its label is ''"),
    ):
        rollouts, _, _, report = load(vae=Vae(), **inputs)
        assert not rollouts.groups and reason in report
    with pytest.raises(ValueError, match="policy is 'ffff', but the connected MODEL is"):
        load(policy="ffff", model=stack.model)
    with pytest.raises(FileNotFoundError, match="collect some with Save Rollouts"):
        load(folder="nothing/here")


def patched(model, value, strength):
    model = model.clone()
    name = "diffusion_model.blocks.0.self_attn.q.weight"
    shape = model.model.state_dict()[name].shape
    assert model.add_patches({name: ("diff", (torch.full(shape, value),))}, strength) == [name]
    return model


def test_a_lora_makes_another_policy(save, load, stack):
    save()
    for model in (patched(stack.model, 0.1, 1.0), patched(stack.model, 0.1, 0.5), patched(stack.model, 0.2, 1.0)):
        rollouts, _, _, report = load(model=model)
        assert not rollouts.groups and "it is of the policy" in report
        save(model=model)
    assert len(load()[0].policies) == 4
    assert len(load(model=patched(stack.model, 0.1, 0.5))[0].groups) == 1  # the same weights from another object


def test_another_text_encoder_is_refused(save, load, stack):
    save(clip=stack.clip)
    other = stack.clip.clone()
    name = next(iter(other.patcher.model.state_dict()))
    other.patcher.add_patches({name: ("diff", (torch.ones_like(other.patcher.model.state_dict()[name]),))})
    rollouts, _, _, report = load(clip=other)
    assert not rollouts.groups and "its prompts would mean something else" in report


def test_exports(save, load, output):
    pytest.importorskip("av")
    save(keep="conditioning and photos")
    root = output / "idcrafter/rollouts/exports"
    assert "Exported: 1 records" in load(export_as="preference pairs")[3]
    pair = json.loads((root / "preference_pairs/pairs.jsonl").read_text("utf-8"))
    assert (pair["chosen"]["seed"], pair["rejected"]["seed"]) == (9, 5)
    with pytest.raises(ValueError, match="connect the VAE"):
        load(export_as="flow-factory preference")
    load(export_as="flow-factory preference", vae=Vae(), fps=8.0)
    folder = root / "flow-factory_preference"
    entry = json.loads((folder / "train.jsonl").read_text("utf-8"))
    assert (folder / entry["supervision"]["chosen"]["media"][0]["path"]).stat().st_size > 500
    assert [Path(media["path"]).suffix for media in entry["input"]["media"]] == [".png", ".png"]
    pytest.importorskip("pyarrow")
    assert "Exported: 1 records" in load(export_as="fastvideo")[3]
    assert (root / "fastvideo/rollouts_00000.parquet").is_file()


def test_loading_runs_again_when_there_is_more(pack, save, output):
    node = pack.nodes["IDCrafterLoadRollouts"]
    stamps = [node.fingerprint_inputs()]
    for prompt in ("a", "b"):
        save(prompt=prompt)
        stamps.append(node.fingerprint_inputs(folder="idcrafter/rollouts", show=3))
    assert stamps[0] == [] and stamps[1] != stamps[2] and node.fingerprint_inputs(folder=None) == ""


def test_interrupt_takes_effect_between_files(save, load, monkeypatch):
    import comfy.model_management

    save()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load()
    assert len(load()[0].groups) == 1


def test_both_show_their_text(save, load):
    shown = SimpleNamespace(save=save().ui["text"][0], load=load().ui["text"][0])
    assert shown.save.startswith("Stored") and shown.load.startswith("1 groups")
