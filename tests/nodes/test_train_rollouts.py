"""Train from Rollouts and `python -m idcrafter train-rollouts`: rollouts become a LoRA that core's nodes load."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from support import tiny_rollouts
from support.composition import Shot
from support.tiny_adapters import TinyAnalyzer

STEPS = 4
# Large steps, so that four of them show.
INPUTS = {"name": "tiny", "steps": STEPS, "rank": 3, "rate": 0.01, "groups": 1, "takes": 4}


class Monitor(TinyAnalyzer):
    """Two subjects' faces, side by side in every frame, by what the frame looks like."""

    def analyze_frames(self, frames, on_frame=None):
        found = []
        for frame in frames:
            half = frame.shape[1] // 2
            found.append([*self.analyze(frame[:, :half]), *self.analyze(frame[:, half:])])
            if on_frame:
                on_frame()
        return found


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """ComfyUI's output folder, empty, whose LoRAs the loaders find."""
    import folder_paths

    root = tmp_path_factory.mktemp("comfyui") / "output"
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(root / "loras")], {".safetensors"}))
        folder_paths.filename_list_cache.clear()
        yield root
    folder_paths.set_output_directory(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def policy(pack, stack):
    files = pack.submodule("model_loaders.files")
    return pack.submodule("idcrafter.rollouts.provenance").patcher_hashes(stack.model, files.sha256_of)["policy"]


@pytest.fixture(scope="module")
def stores(pack, stack, shot, cast, policy, tmp_path_factory):
    """Rollouts with conditioning and photos, and with hashes only."""
    whole, hashes = (tmp_path_factory.mktemp("collected") for _ in range(2))
    collect = tiny_rollouts.collect
    tiny_rollouts.keep_photos(pack, collect(pack, stack, shot, whole, policy, cast), cast)
    collect(pack, stack, shot, hashes, policy, cast, keep=False)
    return SimpleNamespace(whole=whole, hashes=hashes)


@pytest.fixture(scope="module")
def rollouts(pack, stores):
    load = pack.submodule("idcrafter.rollouts.dataset").load
    return SimpleNamespace(whole=load(stores.whole), hashes=load(stores.hashes))


@pytest.fixture(scope="module")
def train(pack, stack, rollouts, output):
    def train(**changes):
        given = {"model": stack.model, "rollouts": rollouts.whole, **INPUTS, **changes}
        with torch.inference_mode():
            return pack.execute("IDCrafterTrainFromRollouts", **given)

    return train


@pytest.fixture(scope="module")
def trained(train):
    return train()


def test_core_loads_the_lora_at_once_and_from_its_file(pack, stack, trained, output, policy):
    lora, name, curve, summary = trained
    assert name == "tiny_00001_.safetensors" and curve.shape[0] == 1 and curve.std() > 0
    assert summary.startswith("DiffusionNFT: 4 steps on 1 groups of 4 takes.") and summary.endswith(f"loras/{name}.")
    plain = Shot(pack, "phantom").ksampler(stack.model)
    by_file = pack.execute("LoraLoaderModelOnly", model=stack.model, lora_name=name, strength_model=1.0)[0]
    by_wire = pack.execute("LoraModelLoader", model=stack.model, lora=lora, strength_model=1.0)[0]
    found = [Shot(pack, "phantom").ksampler(model) for model in (by_file, by_wire)]
    assert torch.equal(*found) and not torch.allclose(found[0], plain, atol=1e-4)
    with safe_open(output / "loras" / name, "pt") as file:
        facts = file.metadata()
    assert facts["licence"] == "Apache-2.0" and facts["policy"] == policy and facts["method"] == "DiffusionNFT"


def test_it_goes_on_where_it_was_interrupted(train, trained, output, monkeypatch):
    import comfy.model_management

    real = comfy.model_management.throw_exception_if_processing_interrupted
    curve = output / "idcrafter_training" / "stopped" / "rl.curve.jsonl"

    def interrupted():
        if curve.exists() and len(curve.read_text().splitlines()) == 2:
            comfy.model_management.interrupt_current_processing()
        real()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(name="stopped")
    monkeypatch.undo()
    again = train(name="stopped")
    assert all(torch.equal(again[0][name], trained[0][name]) for name in trained[0])
    with pytest.raises(ValueError, match=r"state of another training: rank \(3 then, 2 now\)"):
        train(name="stopped", rank=2)


def test_recorded_steps_and_named_rewards(train):
    assert train(name="flash", method="flash_grpo")[3].startswith("Flash-GRPO: 4 steps")
    by_name = train(name="motion", rewards="motion=2", steps=2)[0]
    total = train(name="total", steps=2)[0]
    ups = [name for name in total if "lora_B" in name]
    # The tiny takes that move less have the better total: what is learnt is the opposite.
    assert all((by_name[name] * total[name]).float().sum() < 0 for name in ups)
    with pytest.raises(ValueError, match="Not every take has the reward 'beauty'"):
        train(name="beauty", rewards="beauty=1")


def test_the_monitor_sees_the_videos_and_chooses_the_weights(stack, train, output):
    seen = []
    monitor = Monitor()
    real = monitor.analyze_frames
    monitor.analyze_frames = lambda frames, on_frame=None: seen.append(frames.shape) or real(frames, on_frame)
    looks = {"vae": stack.vae, "monitor": monitor, "validate_every": 2, "shots": 3}
    _, _, curve, summary = train(name="watched", **looks)
    folder = output / "idcrafter_training" / "watched"
    assert [path.name for path in sorted((folder / "videos").iterdir())] == [f"step-{n:06}-shot-1.webp" for n in (2, 4)]
    with Image.open(folder / "videos" / "step-000004-shot-1.webp") as video:
        assert video.n_frames == seen[0][0] == 5 and video.size == (64, 48)
    rows = [json.loads(row) for row in (folder / "rl.monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    best = max(rows, key=lambda row: row["value"])
    assert f"Kept: step {best['step']}, where the monitor saw a similarity of {best['value']:.4f}" in summary
    assert len(seen) == 2


def test_videos_without_a_monitor(stack, train, output):
    train(name="videos", vae=stack.vae, validate_every=3)
    names = [path.name for path in sorted((output / "idcrafter_training" / "videos" / "videos").iterdir())]
    assert names == ["step-000003-shot-1.webp", "step-000004-shot-1.webp"]


def test_who_the_people_are(stack, train, rollouts, cast, shot):
    """From the photos beside the rollouts, or from a cast of exactly these photos."""
    looks = {"vae": stack.vae, "monitor": Monitor(), "validate_every": 2, "steps": 2}
    given = {name: getattr(shot, name) for name in tiny_rollouts.NAMES}
    with pytest.raises(ValueError, match="cannot tell who the people are"):
        train(name="who", rollouts=rollouts.hashes, **looks, **given)
    assert "the monitor saw" in train(name="who", rollouts=rollouts.hashes, cast=cast, **looks, **given)[3]
    looks["monitor"].describe = lambda: {"name": "painted", "licence": ""}
    with pytest.raises(ValueError, match="'painted' has made the rewards"):
        train(name="same", **looks)
    with pytest.raises(ValueError, match="The monitor looks at videos"):
        train(name="never", **{**looks, "validate_every": 0})
    with pytest.raises(ValueError, match="need the VAE"):
        train(name="blind", **{**looks, "vae": None})


def test_ipro_makes_new_takes_and_climbs_their_likeness(stack, train, output):
    given = {"method": "ipro", "vae": stack.vae, "faces": Monitor(), "takes": 2, "rate": 0.02, "kl": 0.0}
    tensors, _, _, summary = train(name="ipro", **given)
    assert summary.startswith("IPRO: 4 steps on 1 groups")
    assert all(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    rows = [
        json.loads(row) for row in (output / "idcrafter_training" / "ipro" / "rl.curve.jsonl").read_text().splitlines()
    ]
    assert all(-1 < row["reward"] < 1 and row["kl"] >= 0 for row in rows)
    # Before the first update the LoRA changes nothing.
    assert rows[0]["kl"] == 0 < rows[-1]["kl"]


def test_what_ipro_needs(stack, train, rollouts, shot):
    given = {"name": "needs", "method": "ipro", "takes": 2, "steps": 1, "vae": stack.vae, "faces": Monitor()}
    for missing in ("vae", "faces"):
        with pytest.raises(ValueError, match="IPRO needs the VAE of the MODEL, and the face analyzer"):
            train(**{**given, missing: None})
    with pytest.raises(ValueError, match="The monitor 'tiny' has made the rewards"):
        train(**given, monitor=Monitor(), validate_every=1)
    with pytest.raises(ValueError, match=r"Of group \w+ one cannot tell who the people are"):
        train(**given | {"rollouts": rollouts.hashes}, **{name: getattr(shot, name) for name in tiny_rollouts.NAMES})
    with pytest.raises(ValueError, match="it knows no other rewards"):
        train(**given, rewards="motion=1")


def test_conditioning_is_given_by_hash(train, trained, rollouts, shot):
    """Rollouts that were kept as hashes train to the same weights with the conditioning of Sample Takes."""
    given = {name: getattr(shot, name) for name in tiny_rollouts.NAMES}
    found = train(name="given", rollouts=rollouts.hashes, **given)[0]
    assert all(torch.equal(found[name], trained[0][name]) for name in found)
    with pytest.raises(ValueError, match="was stored without its conditioning"):
        train(name="bare", rollouts=rollouts.hashes)
    with pytest.raises(ValueError, match="was not made with the connected conditioning"):
        train(name="other", rollouts=rollouts.hashes, **{**given, "positive": shot.negative_text})


def test_another_model_is_refused(pack, stack, train, trained):
    other = pack.execute("LoraModelLoader", model=stack.model, lora=trained[0], strength_model=1.0)[0]
    with pytest.raises(ValueError, match="connect the MODEL that made them"):
        train(name="patched", model=other)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_names_stay_in_the_output_folder(train, name):
    with pytest.raises(ValueError, match="is no file name"):
        train(name=name)


@pytest.fixture
def command(tiny_files, stores, tmp_path, monkeypatch):
    """Runs the command line; gives its exit code."""
    import comfy.cli_args
    import comfy.model_management

    from idcrafter.__main__ import main

    # The command sets ComfyUI up for itself.
    monkeypatch.setattr(comfy.model_management, "in_training", False)
    monkeypatch.setattr(comfy.cli_args.args, "use_pytorch_cross_attention", False)
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)

    def command(*more, folder=stores.whole):
        arguments = ["train-rollouts", folder, "--model", tiny_files.dit, "--out", tmp_path / "out"]
        arguments += ["--steps", STEPS, "--rank", 3, "--rate", 0.01, "--groups", 1, "--takes", 4, *more]
        with torch.inference_mode(False):
            return main([str(argument) for argument in arguments])

    command.out = tmp_path / "out"
    return command


def test_the_command_makes_the_same_lora(pack, trained, command, caplog):
    assert command() == 0
    with safe_open(command.out / "lora.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
    assert found.keys() == trained[0].keys()
    # The command computes attention by another function; Adam's first steps are as large where a gradient is tiny.
    both = [
        torch.cat([each[name].flatten().float() for name in found if "lora_B" in name]) for each in (found, trained[0])
    ]
    assert float(torch.cosine_similarity(*both, dim=0)) > 0.98
    assert command("--seed", 1) == 1
    assert "state of another training" in caplog.text


def test_the_command_says_what_is_wrong(command, tmp_path, caplog):
    assert command(folder=tmp_path) == 1
    assert "There are no rollouts" in caplog.text
    assert command("--rewards", "identity=much") == 1
    assert "'identity=much' is no reward with its weight" in caplog.text
