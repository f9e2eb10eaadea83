"""Sample Takes as a node; our MODEL and conditioning in core's samplers."""

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_execution.graph import DynamicPrompt


@pytest.fixture(autouse=True)
def output(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def sample(pack, stack, shot):
    def sample(hidden=None, **changes):
        inputs = {
            "model": stack.model, "sampler": shot.sampler, "sigmas": shot.sigmas, "latent_image": shot.latent,
            "seed": 3, "takes": 2, "positive": shot.positive, "negative_text": shot.negative_text,
            "negative_images": shot.negative_images, "cfg_text": 4.0, "cfg_images": 2.0, **changes,
        }  # fmt: skip
        return pack.execute("IDCrafterSampleTakes", hidden, **inputs)[0]

    return sample


def graph(**changes):
    inputs = {"model": ["1", 0], "positive": ["1", 1], "seed": 3, "takes": 2, "cfg_text": 4.0, **changes}
    prompt = {
        "1": {"class_type": "Loader", "inputs": {"file": "lora.safetensors", "photo": "ada.png"}},
        "2": {"class_type": "IDCrafterSampleTakes", "inputs": inputs},
    }
    return {"unique_id": "2", "dynprompt": DynamicPrompt(prompt)}


def resumed(takes):
    return [take.resumed for take in takes.takes]


@pytest.mark.parametrize("with_images", [True, False])
def test_a_model_equals_cores_guider_and_sampler(pack, sample, stack, shot, with_images):
    if with_images:
        takes = sample()
        guider = pack.execute(
            "DualCFGGuider", model=stack.model, cond1=shot.positive, cond2=shot.negative_text,
            negative=shot.negative_images, cfg_conds=4.0, cfg_cond2_negative=2.0, style="regular",
        )[0]  # fmt: skip
    else:
        takes = sample(negative_images=None)
        guider = pack.execute(
            "CFGGuider", model=stack.model, positive=shot.positive, negative=shot.negative_text, cfg=4.0
        )[0]
    for take in takes.takes:
        noise = pack.execute("RandomNoise", noise_seed=take.seed)[0]
        core = pack.execute(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=shot.sampler, sigmas=shot.sigmas,
            latent_image=shot.latent,
        )[0]  # fmt: skip
        assert torch.equal(take.samples, core["samples"])


def test_a_guider_is_used_as_it_is(pack, sample, stack, shot):
    guider = pack.execute("BasicGuider", model=stack.model, conditioning=shot.positive)[0]
    nothing = {"positive": None, "negative_text": None, "negative_images": None}
    ours = sample(model=guider, **nothing)
    assert torch.equal(ours.takes[0].samples, sample(negative_text=None, negative_images=None).takes[0].samples)
    with pytest.raises(ValueError, match="disconnect positive, negative_images"):
        sample(model=guider, negative_text=None)


def test_a_model_needs_conditioning(sample):
    with pytest.raises(ValueError, match="With a MODEL, connect 'positive'"):
        sample(positive=None)


def test_our_model_and_conditioning_run_in_ksampler(pack, stack, shot):
    def run(seed):
        return pack.execute(
            "KSampler", model=stack.model, seed=seed, steps=3, cfg=3.0, sampler_name="euler", scheduler="simple",
            positive=shot.positive, negative=shot.negative_text, latent_image=shot.latent, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    first = run(1)
    assert first.shape == shot.latent["samples"].shape and torch.isfinite(first).all()
    assert torch.equal(first, run(1)) and (first - run(2)).abs().max() > 1e-2


def test_outside_a_graph_nothing_is_stored(sample, output):
    sample()
    assert list(output.iterdir()) == []


def test_takes_are_stored_and_found_again_by_the_same_graph(sample, output):
    first = sample(graph())
    stored = sorted(output.glob("idcrafter/takes/*/*.safetensors"))
    assert [path.name for path in stored] == ["3.safetensors", "4.safetensors"]
    again = sample(graph())
    assert resumed(first) == [False, False] and resumed(again) == [True, True]
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(first.takes, again.takes, strict=True))
    # More takes, or a seed that overlaps: only what is new is sampled.
    assert resumed(sample(graph(takes=3), takes=3)) == [True, True, False]
    assert resumed(sample(graph(seed=4, takes=3), seed=4, takes=3)) == [True, True, False]


def test_another_graph_or_other_values_start_anew(sample, shot):
    sample(graph())
    assert resumed(sample(graph(cfg_text=5.0), cfg_text=5.0)) == [False, False]
    assert resumed(sample(graph(extra=1))) == [False, False]
    assert resumed(sample(graph(), sigmas=shot.sigmas[1:])) == [False, False]
    assert resumed(sample(graph(), sampler=comfy.samplers.sampler_object("heun"))) == [False, False]


@pytest.mark.parametrize("kind", ["loras", "input"])
def test_a_file_that_was_replaced_under_its_name_starts_anew(sample, tmp_path_factory, monkeypatch, kind):
    folder = tmp_path_factory.mktemp(kind)
    if kind == "loras":
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
        path = folder / "lora.safetensors"
    else:
        monkeypatch.setattr(folder_paths, "input_directory", str(folder))
        path = folder / "ada.png"
    path.write_bytes(b"old")
    sample(graph())
    assert resumed(sample(graph())) == [True, True]
    path.write_bytes(b"trained further")
    assert resumed(sample(graph())) == [False, False]


def test_a_damaged_take_is_made_again(sample, output, caplog):
    first = sample(graph())
    path = next(output.glob("idcrafter/takes/*/4.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    again = sample(graph())
    assert resumed(again) == [True, False] and "sampled again" in caplog.text
    assert torch.equal(again.takes[1].samples, first.takes[1].samples)
    assert resumed(sample(graph())) == [True, True]


def test_the_schema(pack):
    schema = pack.nodes["IDCrafterSampleTakes"].GET_SCHEMA()
    kinds = {entry.id: entry.get_io_type() for entry in schema.inputs}
    assert kinds["model"] == "MODEL,GUIDER" and schema.inputs[0].id == "model"
    optional = {entry.id for entry in schema.inputs if entry.optional}
    assert optional == {"positive", "negative_text", "negative_images", "cfg_text", "cfg_images"}
