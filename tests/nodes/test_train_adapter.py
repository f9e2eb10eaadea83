"""Train Adapter and `python -m idcrafter train-adapter`: a data set becomes an adapter that Inject Identity uses."""

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from support import tiny_dataset
from support.composition import Shot
from support.tiny_adapters import TinyAnalyzer

STEPS = 4
# Large steps, so that four of them show.
INPUTS = {
    "dataset": "people", "name": "tiny", "size": "nano", "width": 48, "height": 32, "length": 5, "steps": STEPS,
    "rate": 0.02, "lora_rank": 2, "checkpoint": "2", "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """ComfyUI's input folder with the data set, and an empty output folder that Load Adapter searches."""
    import folder_paths

    root = tmp_path_factory.mktemp("comfyui")
    tiny_dataset.write(root / "input" / "people")
    before = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    folder_paths.set_input_directory(str(root / "input"))
    folder_paths.set_output_directory(str(root / "output"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("idcrafter_adapters", "loras"):
            folder = [str(root / "output" / name)], {".safetensors"}
            patch.setitem(folder_paths.folder_names_and_paths, name, folder)
        folder_paths.filename_list_cache.clear()
        yield root / "output"
    folder_paths.set_input_directory(before[0])
    folder_paths.set_output_directory(before[1])
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def train(pack, stack, output):
    def train(**changes):
        given = {"model": stack.model, "vae": stack.vae, "clip": stack.clip, "analyzer": TinyAnalyzer()}
        with torch.inference_mode():
            return pack.execute("IDCrafterTrainAdapter", **{**given, **INPUTS, **changes})

    return train


@pytest.fixture(scope="module")
def trained(train):
    return train()


def test_the_adapter_is_usable_at_once_and_from_its_file(pack, stack, cast, trained, output):
    import comfy.model_management

    adapter, name, lora, curve = trained
    assert (name, lora) == ("tiny_00001_.safetensors", "tiny_00001_.safetensors")
    assert curve.shape[0] == 1 and curve.shape[3] == 3 and curve.std() > 0
    assert comfy.model_management.in_training is False
    loaded = pack.execute("IDCrafterLoadAdapter", adapter_name=name)
    assert "licence: licence 0; licence 1" in loaded[1] and "for wan of width 32 with 2 blocks" in loaded[1]
    extract = pack.submodule("idcrafter.subjects.faces").extract_faces
    people = cast.with_faces(extract(cast, TinyAnalyzer(), "error", "error"))
    results = []
    for each in (adapter, loaded[0]):
        shot = Shot(pack, "phantom")
        out = pack.execute(
            "IDCrafterInjectIdentity", model=stack.model, adapter=each, cast=people, vae=stack.vae,
            positive=shot.positive, negative_text=shot.negative,
        )  # fmt: skip
        shot.positive, shot.negative = out[1], out[2]
        results.append(shot.ksampler(out[0]))
    plain = Shot(pack, "phantom").ksampler(stack.model)
    assert torch.equal(results[0], results[1]) and results[0].isfinite().all()
    assert not torch.allclose(results[0], plain, atol=1e-4)


def test_the_lora_loads_in_core(pack, stack, trained, output):
    plain = Shot(pack, "phantom").ksampler(stack.model)
    model = pack.execute("LoraLoaderModelOnly", model=stack.model, lora_name=trained[2], strength_model=1.0)[0]
    assert not torch.equal(Shot(pack, "phantom").ksampler(model), plain)
    with safe_open(output / "loras" / trained[2], "pt") as file:
        assert file.metadata()["licence"] == "licence 0; licence 1"


def test_it_goes_on_where_it_was_interrupted(train, trained, output, monkeypatch):
    """The interrupt of ComfyUI's button; the same node then ends with the same weights."""
    import comfy.model_management

    real = comfy.model_management.throw_exception_if_processing_interrupted
    curve = output / "idcrafter_training" / "stopped" / "adapter.curve.jsonl"

    def interrupted():
        if curve.exists() and len(curve.read_text().splitlines()) == 2:
            comfy.model_management.interrupt_current_processing()
        real()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(name="stopped")
    monkeypatch.undo()
    with safe_open(output / "idcrafter_training" / "stopped" / "adapter.state.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"
    assert not (output / "idcrafter_adapters" / "stopped_00001_.safetensors").exists()
    # The trainings share the encoded clips: three, and the empty prompt.
    assert len(list((output / "idcrafter_training" / ".encodings").rglob("*.safetensors"))) == 4
    out = train(name="stopped")
    first, second = (each[0].patcher.model.state_dict() for each in (out, trained))
    assert all(torch.equal(first[name], second[name]) for name in second)
    rows = [json.loads(row) for row in curve.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("dataset", ["", "nowhere", "../..", "/", "people/0.mp4"])
def test_data_elsewhere_is_refused(train, dataset):
    with pytest.raises(ValueError, match="is no folder inside of ComfyUI's input folder"):
        train(dataset=dataset)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_names_stay_in_the_output_folder(train, name):
    with pytest.raises(ValueError, match="is no file name"):
        train(name=name)


def test_a_changed_data_set_runs_the_node_again(pack, output):
    node = pack.nodes["IDCrafterTrainAdapter"]
    before = node.fingerprint_inputs(dataset="people")
    path = Path(output).parent / "input" / "people" / "metadata.jsonl"
    path.touch()
    assert node.fingerprint_inputs(dataset="people") != before
    assert node.fingerprint_inputs(dataset="nowhere") == "nowhere"


@pytest.fixture
def command(tiny_files, output, tmp_path, monkeypatch):
    """Runs the command line on the tiny models with the nano faces; gives its exit code."""
    import comfy.cli_args
    import comfy.model_management

    from idcrafter.__main__ import main

    # The command sets ComfyUI up for itself.
    monkeypatch.setattr(comfy.model_management, "in_training", False)
    monkeypatch.setattr(comfy.cli_args.args, "use_pytorch_cross_attention", False)
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)

    def command(*more, dataset=Path(output).parent / "input" / "people"):
        arguments = ["train-adapter", dataset, "--model", tiny_files.dit, "--vae", tiny_files.vae]
        arguments += ["--clip", tiny_files.text_encoder, "--out", tmp_path / "out", "--faces", "idcrafter_nano"]
        arguments += ["--size", "nano", "--width", 48, "--height", 32, "--frames", 5, "--steps", STEPS]
        arguments += ["--rate", 0.02, "--lora-rank", 2, "--provider", "cpu", *more]
        with torch.inference_mode(False):
            return main([str(argument) for argument in arguments])

    command.out = tmp_path / "out"
    return command


def test_the_command_stops_goes_on_and_writes(pack, stack, command, monkeypatch, caplog):
    from idcrafter.training import host as lib

    real = lib.ProgressLog.tell

    def tell(self, done, total, what):
        real(self, done, total, what)
        if what.startswith("step 2"):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lib.ProgressLog, "tell", tell)
        assert command() == 130
    out = command.out
    with safe_open(out / "adapter.state.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"
    assert not (out / "adapter.safetensors").exists()
    assert command() == 0
    rows = [json.loads(row) for row in (out / "adapter.curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    adapter = pack.submodule("model_loaders.adapter").load_whole(out / "adapter.safetensors")
    # It knows which recogniser it was trained with.
    faces = pack.submodule("model_loaders.faces").load_named_analyzer("idcrafter_nano")
    assert adapter.facts["recogniser"] in faces.recogniser.facts.files.values()
    assert adapter.facts["licence"] == "licence 0; licence 1" and adapter.config.id_width == 512
    lora = pack.submodule("model_loaders.lora").load_lora(out / "lora.safetensors", stack.model)
    assert not lora.left_out
    assert command("--seed", 1) == 1
    assert "state of another training" in caplog.text


def test_the_command_says_what_is_wrong(command, tmp_path, caplog):
    assert command(dataset=tmp_path) == 1
    assert "is no data set" in caplog.text
