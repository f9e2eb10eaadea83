"""A whole training on three clips: it learns, goes on where it stopped, and validates without being disturbed."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from support.tiny_adapters import TinyAnalyzer

STEPS = 6


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.training.adapter.train")


@pytest.fixture(scope="module")
def settings(pack):
    settings = pack.submodule("idcrafter.training.adapter.settings").Settings
    stages = pack.submodule("idcrafter.training.adapter.stages").Stages
    return settings(
        size="nano", width=48, height=32, frames=5, steps=STEPS, batch=2, rate=3e-3, stages=stages(1, 1, 1),
        lora_rank=2, checkpoint=0, seed=5, dtype="fp32", reference_attention=True,
    )  # fmt: skip


class PatientAnalyzer(TinyAnalyzer):
    """Also looks at frames, for scores."""

    def analyze_frames(self, frames, on_frame=None):
        found = []
        for frame in frames:
            found.append(self.analyze(frame))
            if on_frame:
                on_frame()
        return found


@pytest.fixture(scope="module")
def training(pack, lib, stack, clips, settings, tmp_path_factory):
    """Train with changed settings; clips are encoded once for all."""
    work = tmp_path_factory.mktemp("trainings")

    def training(name, tell=None, resume=True, **changes):
        folder = work / name
        folder.mkdir(exist_ok=True)
        (work / "encodings").mkdir(exist_ok=True)
        if not (folder / "encodings").exists():
            (folder / "encodings").symlink_to(work / "encodings")
        with torch.inference_mode():  # as nodes run
            trained = lib.train_adapter(
                stack.model, stack.vae, stack.clip, PatientAnalyzer(), clips, folder,
                dataclasses.replace(settings, **changes), resume=resume, on_progress=tell,
            )  # fmt: skip
        return SimpleNamespace(folder=folder, **vars(trained))

    return training


@pytest.fixture(scope="module")
def whole(training):
    told = []
    return training("whole", lambda *what: told.append(what)), told


def assert_equal(found, expected):
    first, second = found.adapter.state_dict(), expected.adapter.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(found.lora[name], expected.lora[name]) for name in expected.lora)


def losses(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows if "flow" in row]


def test_it_trains_and_says_so(whole, pack, lib, stack):
    import comfy.model_management

    trained, told = whole
    assert [row["step"] for row in trained.curve] == [1, 2, 3, 4, 5, 6]
    assert all(row["flow"] > 0 for row in trained.curve)
    assert told[-1] == (9, 9, "step 6 of 6 (joint)") and told[0] == (1, 9, "clip 1 of 3")
    assert [what.split("(")[1] for *_, what in told[3:]] == ["align)", "align)", "route)", "route)", "joint)", "joint)"]
    assert trained.licence == "licence 0; licence 1" and trained.facts["steps"] == "6"
    modules = pack.submodule("idcrafter.modules.identity_adapter")
    fresh = modules.IdentityAdapter(trained.adapter.config, torch.nn)
    modules.initialise(fresh, 5)
    moved = {n for n, p in fresh.named_parameters() if not torch.equal(p.half(), trained.adapter.get_parameter(n))}
    assert {"reference_gates", "perceiver_cross_attention.0.to_out.weight", "router.0.to_kv.weight"} <= moved
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in trained.lora.items())
    assert Image.open(trained.folder / "adapter.curve.png").size[0] == 960
    assert comfy.model_management.in_training is False
    assert not any(p.requires_grad for p in stack.model.model.parameters())


def test_a_stopped_training_ends_with_the_same_weights(training, whole):
    """Stopped in the middle of the route stage, and with validation in between, which draws nothing."""

    def stop(done, total, what):
        if what.startswith("step 4"):
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError):
        training("parts", stop, validate_every=3)
    state = next(iter((training("parts", None, validate_every=3),)))
    assert_equal(state, whole[0])
    assert losses(state.curve) == losses(whole[0].curve)
    validated = [row for row in state.curve if "similarity" in row]
    assert [row["step"] for row in validated] == [3, 6] and all(0 <= row["similarity"] <= 1 for row in validated)
    names = sorted(path.name for path in (state.folder / "validation").iterdir())
    assert names == [f"step-00000{n}-clip-{line}.webp" for n in (3, 6) for line in (1, 2)]
    with Image.open(state.folder / "validation" / names[0]) as video:
        assert video.n_frames == 5 and video.size == (48, 32)


def test_checkpointing_gives_the_same_training(training, whole):
    found = training("checkpointed", checkpoint=2)
    for row, expected in zip(losses(found.curve), losses(whole[0].curve), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_a_finished_training_is_not_trained_again(training, whole):
    told = []
    assert_equal(training("whole", lambda *what: told.append(what)), whole[0])
    assert len(told) == 3


def test_another_seed_is_another_training(training, whole):
    with pytest.raises(ValueError, match=r"state of another training: seed \(5 then, 6 now\)"):
        training("whole", seed=6)
    other = training("whole-other", seed=6, steps=1)
    assert not torch.equal(other.adapter.router[0].to_q.weight, whole[0].adapter.router[0].to_q.weight)


def test_beginning_anew(training, lib):
    first = training("anew", steps=1)
    second = training("anew", steps=2, resume=False)
    assert len(first.curve) == 1 and [row["step"] for row in second.curve] == [1, 2]


@pytest.mark.parametrize(("stage", "moves"), [((1, 0, 0), False), ((0, 1, 0), True)])
def test_stages_in_the_loop(training, pack, settings, stage, moves):
    stages = pack.submodule("idcrafter.training.adapter.stages").Stages(*stage)
    trained = training(f"stage-{moves}", steps=2, stages=stages, drop_text=0.0, drop_people=0.0, lora_rank=0)
    modules = pack.submodule("idcrafter.modules.identity_adapter")
    fresh = modules.IdentityAdapter(trained.adapter.config, torch.nn)
    modules.initialise(fresh, 5)
    for name, parameter in fresh.named_parameters():
        same = torch.equal(parameter.half(), trained.adapter.get_parameter(name))
        if name.startswith("router."):
            assert same or moves, name
        else:
            assert same or not moves, name
    assert torch.equal(trained.adapter.router[0].to_kv.weight, fresh.router[0].to_kv.weight.half()) is not moves


def test_it_learns(training):
    """One clip's noise is as good as another's: over the run the router finds out who is where."""
    stages = {"drop_text": 0.0, "drop_people": 0.0, "lora_rank": 0, "reference_attention": False}
    trained = training("learns", steps=30, rate=1e-2, **stages)
    router = [row["router"] for row in trained.curve if "router" in row]
    assert sum(router[-4:]) / 4 < 0.8 * sum(router[:4]) / 4


def test_settings_that_train_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="0 steps of 2 clips train nothing"):
        dataclasses.replace(settings, steps=0)
    with pytest.raises(ValueError, match="'fp8' is unknown; choose one of bf16, fp32"):
        dataclasses.replace(settings, dtype="fp8")


def test_sizes_fit_the_model(pack, stack, model_of):
    presets = pack.submodule("idcrafter.training.adapter.presets")
    modules = pack.submodule("idcrafter.modules.identity_adapter")
    counts = []
    for size in presets.PRESETS:
        config = presets.adapter_config(size, stack.model, 512, 16, 4096, gates=True)
        assert modules.AdapterConfig.loads(config.dumps()) == config and config.reference_heads == 2
        counts.append(sum(shape.numel() for shape in modules.layout(config).values()))
    assert counts == sorted(counts) and len(set(counts)) == 4
    assert presets.adapter_config("large", model_of("cogvideox"), 512, 16, 4096).backbone == "cogvideox"
    with pytest.raises(ValueError, match="no reference tokens"):
        presets.adapter_config("large", model_of("cogvideox"), 512, 16, 4096, gates=True)
    with pytest.raises(ValueError, match="'huge' is unknown"):
        presets.crop_of("huge")


def test_the_curve_file_is_lines_of_json(whole):
    lines = (whole[0].folder / "adapter.curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole[0].curve


def test_gradients_do_not_vanish_in_float16(lib, model_of, monkeypatch):
    model = model_of("phantom")
    assert lib.computing_safely(model) is model
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.float16)
    clone = lib.computing_safely(model)
    assert clone.object_patches["manual_cast_dtype"] is torch.bfloat16 and not model.object_patches
