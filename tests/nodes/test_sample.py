"""Sample Takes as a node; our MODEL and conditioning in core's samplers."""

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_execution.graph import DynamicPrompt

from support.painted_faces import PaintedFaceAnalyzer, blank, paint


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


class PaintedVae:
    """Decodes latent frames as Wan's VAE does, to one and then four frames each, with a face of Ada whose likeness
    follows from the latent frame."""

    def __init__(self):
        self.decoded = []

    def decode(self, samples):
        self.decoded.append(tuple(samples.shape))
        clips = []
        for latent in samples:
            clip = blank(count=4 * latent.shape[1] - 3)
            for t, frame in enumerate(clip):
                paint(frame, 0, 20, float(torch.sigmoid(latent[:, (t + 3) // 4].mean() * 20)))
            clips.append(clip)
        return torch.stack(clips)


@pytest.fixture
def searched(pack):
    """vae and cast for a search."""
    subjects, faces = pack.submodule("idcrafter.subjects.subject"), pack.submodule("idcrafter.subjects.faces")
    cast = subjects.make_cast([subjects.make_subject("Ada", "person", "", paint(blank(), 0, 20)[None])])
    cast = cast.with_faces(faces.extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))
    return {"vae": PaintedVae(), "cast": cast}


def search_graph(**changes):
    prompt = graph(vae=["3", 0], cast=["4", 0], takes=4, budget=2.5, **changes)
    prompt["dynprompt"].original_prompt["3"] = {"class_type": "VAELoader", "inputs": {"vae_name": "a"}}
    prompt["dynprompt"].original_prompt["4"] = {"class_type": "IDCrafterExtractFaces", "inputs": {}}
    return prompt


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "res_multistep", "euler_ancestral", "dpmpp_sde"])
def test_a_budget_prunes_and_what_is_left_is_what_ksampler_gives(pack, stack, shot, sample, searched, sampler_name):
    sampler = pack.execute("KSamplerSelect", sampler_name=sampler_name)[0]
    sigmas = pack.execute("BasicScheduler", model=stack.model, scheduler="simple", steps=8, denoise=1.0)[0]
    found = sample(sampler=sampler, sigmas=sigmas, takes=4, budget=2.0, negative_images=None, cfg_text=3.0, **searched)
    assert 1 <= len(found.takes) < 4 and found.search["cost"] <= 2.0
    assert {take.seed for take in found.takes} | {gone["seed"] for gone in found.search["pruned"]} == {3, 4, 5, 6}
    for take in found.takes:
        core = pack.execute(
            "KSampler", model=stack.model, seed=take.seed, steps=8, cfg=3.0, sampler_name=sampler_name,
            scheduler="simple", positive=shot.positive, negative=shot.negative_text, latent_image=shot.latent,
            denoise=1.0,
        )[0]["samples"]  # fmt: skip
        assert torch.equal(take.samples, core)


def test_the_node_says_what_was_pruned(pack, stack, shot, searched):
    result = pack.execute(
        "IDCrafterSampleTakes", model=stack.model, sampler=shot.sampler, sigmas=shot.sigmas, latent_image=shot.latent,
        seed=3, takes=4, positive=shot.positive, budget=2.5, **searched,
    )  # fmt: skip
    (text,) = result.ui["text"]
    assert text == result[1] and text.startswith("Take search: ") and "budget 2.5" in text
    assert text.count("Pruned seed") == len(result[0].search["pruned"]) >= 1


def test_a_guider_is_searched_too(pack, sample, stack, shot, searched):
    guider = pack.execute("BasicGuider", model=stack.model, conditioning=shot.positive)[0]
    nothing = {"positive": None, "negative_text": None, "negative_images": None}
    found = sample(model=guider, takes=4, budget=2.5, **nothing, **searched)
    whole = {take.seed: take.samples for take in sample(model=guider, takes=4, **nothing).takes}
    assert found.search["pruned"] and all(torch.equal(take.samples, whole[take.seed]) for take in found.takes)


@pytest.mark.parametrize("budget", [0.0, 4.0, 9.5])
def test_without_a_budget_or_with_one_for_everybody_nothing_is_looked_at(sample, searched, budget):
    takes = sample(takes=4, budget=budget, **searched)
    assert takes.search is None and searched["vae"].decoded == []
    assert [take.seed for take in takes.takes] == [3, 4, 5, 6]
    plain = sample(takes=4)
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(takes.takes, plain.takes, strict=True))
    assert sample(takes=4, budget=4.0).search is None  # then neither VAE nor cast is needed


def test_budgets_that_cannot_be_kept_are_refused(sample, searched, shot):
    with pytest.raises(ValueError, match="needs vae and cast; connect them"):
        sample(takes=4, budget=2.5)
    with pytest.raises(ValueError, match="needs cast; connect it"):
        sample(takes=4, budget=2.5, vae=searched["vae"])
    with pytest.raises(ValueError, match="finishes no take"):
        sample(takes=4, budget=0.5, **searched)
    with pytest.raises(ValueError, match="4 takes of 4 steps.*at least 1.75"):
        sample(takes=4, budget=1.5, **searched)
    with pytest.raises(ValueError, match="use more steps"):
        sample(takes=4, budget=2.5, sigmas=shot.sigmas[-2:], **searched)
    faceless = searched["cast"].with_faces(None)
    with pytest.raises(ValueError, match="IDCrafterExtractFaces"):
        sample(takes=4, budget=2.5, vae=searched["vae"], cast=faceless)


def test_a_search_is_found_again_and_leaves_takes_for_others(sample, searched, output):
    hidden = search_graph()
    first = sample(hidden, takes=4, budget=2.5, **searched)
    looked = len(searched["vae"].decoded)
    again = sample(search_graph(), takes=4, budget=2.5, **searched)
    assert looked == len(searched["vae"].decoded) and all(resumed(again))
    assert [take.seed for take in again.takes] == [take.seed for take in first.takes]
    assert {k: v for k, v in again.search.items() if not k.endswith("seconds")} == {
        k: v for k, v in first.search.items() if not k.endswith("seconds")
    }
    assert not list(output.glob("idcrafter/takes/*/*.part"))
    # VAE, cast and budget do not shape a take: without a budget only the pruned ones are sampled.
    survivors = [take.seed for take in first.takes]
    everybody = sample(graph(takes=4), takes=4)
    assert [take.seed for take in everybody.takes if take.resumed] == survivors


def test_the_schema(pack):
    schema = pack.nodes["IDCrafterSampleTakes"].GET_SCHEMA()
    kinds = {entry.id: entry.get_io_type() for entry in schema.inputs}
    assert kinds["model"] == "MODEL,GUIDER" and schema.inputs[0].id == "model"
    optional = {entry.id for entry in schema.inputs if entry.optional}
    assert optional == {
        "positive", "negative_text", "negative_images", "cfg_text", "cfg_images", "vae", "cast", "budget",
    }  # fmt: skip


def test_the_takes_know_of_references_before_the_video(sample, shot):
    """VACE's rule says so in its LATENT; the samples are what the sampler gives, references included."""
    latent = {**shot.latent, "idcrafter_leading_references": 1}
    takes, plain = sample(latent_image=latent, takes=1), sample(takes=1)
    assert (takes.leading, plain.leading) == (1, 0)
    assert torch.equal(takes.takes[0].samples, plain.takes[0].samples)
    assert torch.equal(takes.video(takes.takes[0]), plain.takes[0].samples[:, :, 1:])
