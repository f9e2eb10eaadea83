"""Load Adapter, Inject Identity and Router Maps as a user wires them."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from support import tiny_adapters, tiny_families
from support.composition import Shot
from support.tiny_adapters import TinyAnalyzer


@pytest.fixture(scope="module")
def folders(pack, tmp_path_factory):
    """Model folders with an adapter of this pack and a download of Ingredients."""
    import folder_paths

    root = tmp_path_factory.mktemp("adapters")
    config = tiny_adapters.config("wan", 32, 2, **tiny_adapters.OWN, reference_heads=2)
    tiny_adapters.write_own(root / "own" / "tiny.safetensors", config, licence="MIT")
    second = tiny_adapters.config("wan", 32, 2, **{**tiny_adapters.OWN, "router": False, "null": False})
    tiny_adapters.write_own(root / "own" / "plain.safetensors", second, seed=9)
    release = root / "dit" / "Ingredients"
    tiny_adapters.write_ingredients(release / "transformer")
    tiny_adapters.write_eva(release / "face_encoder" / "EVA02_CLIP_L_336_psz14_s6B.pt")
    with pytest.MonkeyPatch.context() as patch:
        for name, path in (("idcrafter_adapters", "own"), ("diffusion_models", "dit")):
            patch.setitem(folder_paths.folder_names_and_paths, name, ([str(root / path)], {".safetensors"}))
        folder_paths.filename_list_cache.clear()
        yield SimpleNamespace(root=root, release=release)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def people(pack):
    """Three with faces, one of whom has two photos, and a cup without."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    generator = torch.Generator().manual_seed(8)
    made = []
    for name, kind, count in (("Ada", "person", 2), ("Bo", "person", 1), ("cup", "object", 1), ("Cy", "person", 1)):
        coarse = torch.rand((count, 3, 4, 4), generator=generator)
        photos = torch.nn.functional.interpolate(coarse, (48, 40), mode="bilinear").movedim(1, -1)
        made.append(subjects.make_subject(name, kind, "", photos))
    cast = subjects.make_cast(made)
    extract = pack.submodule("idcrafter.subjects.faces").extract_faces
    return cast.with_faces(extract(cast, TinyAnalyzer(), "error", "error"))


@pytest.fixture
def adapter(pack, folders):
    return pack.execute("IDCrafterLoadAdapter", adapter_name="tiny.safetensors")[0]


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    path = tiny_families.write(tmp_path_factory.mktemp("dit") / "phantom.safetensors", "phantom")
    with torch.inference_mode():
        return pack.submodule("model_loaders.video_dit").load_video_dit(path)


@pytest.fixture
def injected(pack, model, adapter, people, stack):
    """Run Inject Identity; gives its Result and a Shot with the conditionings that came out."""

    def injected(**inputs):
        shot = Shot(pack, "phantom")
        for conditioning in (shot.positive, shot.negative):
            conditioning[0][1]["idcrafter_reference_names"] = ["Ada", "Bo"]
        given = {
            "model": model, "adapter": adapter, "cast": people, "vae": stack.vae, "positive": shot.positive,
            "negative_text": shot.negative, "negative_images": shot.negative, **inputs,
        }  # fmt: skip
        out = pack.execute("IDCrafterInjectIdentity", **given)
        shot.positive, shot.negative = out[1], out[2]
        return out, shot

    return injected


def test_loading_says_what_it_is(pack, folders):
    out = pack.execute("IDCrafterLoadAdapter", adapter_name="tiny.safetensors")
    assert out[0].config.visual == "vae" and "for wan of width 32" in out[1] and out[1].endswith("licence: MIT.")
    assert out.ui["text"] == (out[1],)
    with pytest.raises(FileNotFoundError, match="'none.safetensors' is missing from the model folder"):
        pack.execute("IDCrafterLoadAdapter", adapter_name="none.safetensors")


def test_the_release_is_offered_where_it_lies(pack, folders):
    inputs = pack.nodes["IDCrafterLoadAdapter"].GET_SCHEMA().inputs
    names = next(each for each in inputs if each.id == "adapter_name").options
    assert names == ["plain.safetensors", "tiny.safetensors", "diffusion_models/Ingredients/transformer"]
    out = pack.execute("IDCrafterLoadAdapter", adapter_name=names[-1])
    assert out[0].eyes.name.startswith("EVA02") and "Apache-2.0" in out[1]


def test_people_reach_the_video(pack, injected, model):
    out, shot = injected()
    assert out[4] == "Without a face, so not injected: cup.\nInjected, with so many photos: Ada (2), Bo (1), Cy (1)."
    plain = Shot(pack, "phantom").ksampler(model)
    with_people = shot.ksampler(out[0])
    assert with_people.isfinite().all() and not torch.allclose(with_people, plain, atol=1e-4)
    (key,) = out[1][0][1]["model_conds"]
    tokens, photos = out[1][0][1]["model_conds"][key].cond
    assert photos[0].sum(dim=1).tolist() == [2, 1, 0, 1] and tokens.shape == (1, 4, 2, 4, 24)
    assert torch.equal(out[2][0][1]["model_conds"][key].cond[1], photos)
    assert not out[3][0][1]["model_conds"][key].cond[1].any()


def test_more_people_than_the_adapter_counts_are_refused(injected, adapter, monkeypatch):
    monkeypatch.setattr(adapter.patcher.model, "config", replace(adapter.config, order=3))
    with pytest.raises(ValueError, match="has 4 subjects, and the adapter 'tiny.safetensors' was trained to count 3"):
        injected()


def test_strength_0_is_the_model_itself(injected, model):
    out, shot = injected(strength=0.0)
    assert out[0] is model and "model_conds" not in out[1][0][1] and "nobody" in out[4]


def test_what_is_not_connected_is_blocked(injected):
    from comfy_execution.graph_utils import ExecutionBlocker

    out, _ = injected(negative_text=None, negative_images=None)
    assert isinstance(out[2], ExecutionBlocker) and isinstance(out[3], ExecutionBlocker)


@pytest.mark.parametrize(
    "inputs", [
        {"strength": 0.5}, {"intra": 0.0}, {"inter": 0.0}, {"cross_modal": 0.0}, {"temperature": 0.2},
        {"start_percent": 0.5}, {"end_percent": 0.5}, {"first_block": 1}, {"last_block": 0},
        {"unconditional_residual": "on"},
    ], ids=lambda inputs: next(iter(inputs)),
)  # fmt: skip
def test_every_widget_says_something(injected, inputs):
    usual, shot = injected()
    changed, other = injected(**inputs)
    assert not torch.equal(other.ksampler(changed[0]), shot.ksampler(usual[0]))


def test_auto_residual_is_the_releases(pack, injected, folders, people, monkeypatch):
    lib = pack.submodule("nodes.identity")
    made = []
    monkeypatch.setattr(lib, "inject", lambda model, key, patcher, injection, names: made.append(injection) or model)
    injected()
    release = pack.execute("IDCrafterLoadAdapter", adapter_name="diffusion_models/Ingredients/transformer")[0]
    for choice in ("auto", "on", "off"):
        injected(adapter=release, unconditional_residual=choice)
    assert [each.unconditional_residual for each in made] == [False, True, True, False]


def test_ingredients_from_folder_to_video(pack, folders, people):
    """The released layout as a whole: both loaders, the injection, and a sampled video."""
    adapter = pack.execute("IDCrafterLoadAdapter", adapter_name="diffusion_models/Ingredients/transformer")[0]
    model = pack.execute("IDCrafterLoadVideoDiT", model_name="Ingredients/transformer")[0]
    shot = Shot(pack, "cogvideox-i2v")
    plain = shot.ksampler(model)
    out = pack.execute(
        "IDCrafterInjectIdentity", model=model, adapter=adapter, cast=people, positive=shot.positive,
        negative_text=shot.negative,
    )  # fmt: skip
    shot.positive, shot.negative = out[1], out[2]
    result = shot.ksampler(out[0])
    assert result.isfinite().all() and not torch.allclose(result, plain, atol=1e-4)


def test_several_adapters(pack, injected, folders):
    out, shot = injected()
    once = shot.ksampler(out[0])
    second = pack.execute("IDCrafterLoadAdapter", adapter_name="plain.safetensors")[0]
    both, twice = injected(model=out[0], adapter=second, positive=out[1], negative_text=out[2], negative_images=out[3])
    assert len(both[1][0][1]["model_conds"]) == 2
    assert not torch.allclose(twice.ksampler(both[0]), once, atol=1e-4)


def test_another_recogniser_is_warned_of(pack, adapter, people, caplog):
    facts = SimpleNamespace(name="AuraFace", files={"a.onnx": "11"})
    analyzer = TinyAnalyzer(facts)
    faces = pack.submodule("idcrafter.subjects.faces").CastFaces(analyzer, people.faces.subjects, ())
    patched = type(adapter)(adapter.patcher.clone(), None)
    patched.patcher.set_attachments("idcrafter_adapter", {**adapter.facts, "recogniser": "22"})
    notes = patched.warnings(people.with_faces(faces))
    assert "recognised by AuraFace" in notes[0] and "the one of its training" in notes[0]
    facts.files["b.onnx"] = "22"
    assert len(patched.warnings(people.with_faces(faces))) == 1  # the cup


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"vae": None}, "'tiny.safetensors' looks at faces through the VAE; connect"),
        ({"start_percent": 0.5, "end_percent": 0.5}, r"start_percent \(0.5\) must be less"),
        ({"first_block": 2, "last_block": 1}, r"first_block \(2\) lies behind last_block \(1\)"),
    ],
)
def test_refusals(injected, inputs, message):
    with pytest.raises(ValueError, match=message):
        injected(**inputs)


def test_refusals_of_casts(pack, injected, people, cast):
    with pytest.raises(ValueError, match="no faces yet"):
        injected(cast=cast)
    analyzer = TinyAnalyzer()
    faces = pack.submodule("idcrafter.subjects.faces").CastFaces(analyzer, people.faces.subjects, ())
    analyzer.recogniser = None
    with pytest.raises(ValueError, match="embeds no other crops"):
        injected(cast=people.with_faces(faces))
    analyzer.recogniser = SimpleNamespace(crop_size=16, embed=lambda crops: torch.zeros(len(crops), 7).numpy())
    with pytest.raises(ValueError, match="for face embeddings of 12 numbers and 1 hidden maps of width 16.* 7 numbers"):
        injected(cast=people.with_faces(faces))


def maps_of(pack, out, shot, **inputs):
    latent = {"samples": torch.randn((1, 16, 3, 6, 8), generator=torch.Generator().manual_seed(3))}
    given = {"model": out[0], "positive": out[1], "latent": latent, "noise_level": 0.6, "seed": 4, **inputs}
    return pack.execute("IDCrafterRouterMaps", **given)


def test_router_maps_show_who_is_where(pack, injected):
    out, shot = injected()
    result = maps_of(pack, out, shot)
    pictures, masks = result
    assert len(masks) == 4 and all(mask.shape == (9, 48, 64) for mask in masks)
    assert pictures.shape[0] == 9 and pictures.shape[2] >= 480 and 0 <= pictures.min() and pictures.max() <= 1
    total = torch.stack(masks).sum(dim=0)
    assert (total <= 1 + 1e-5).all() and (total < 1 - 1e-4).any()  # the rest is the null identity's
    assert not masks[2].any() and all(masks[i].std() > 1e-4 for i in (0, 1, 3))  # nobody is the cup
    # A latent frame stands for four, the first one for itself; a token is 16 px wide.
    assert torch.equal(masks[0][1], masks[0][4]) and not torch.equal(masks[0][0], masks[0][1])
    assert (masks[0][:, :16, :16] == masks[0][:, :1, :1]).all()
    again = maps_of(pack, out, shot)
    assert torch.equal(again[0], pictures)
    assert not torch.equal(maps_of(pack, out, shot, seed=5)[0], pictures)
    assert not torch.equal(maps_of(pack, out, shot, noise_level=0.2)[0], pictures)


def test_maps_are_the_routers_of_that_call(pack, injected):
    """The mean of what the router records when the same noisy video goes through the network by hand."""
    out, shot = injected()
    lib = pack.submodule("idcrafter.backbones.router_maps")
    samples = torch.randn((1, 16, 3, 6, 8), generator=torch.Generator().manual_seed(3))
    found = lib.router_maps(out[0], out[1], samples, 0.6, 4)
    assert found.names == ("Ada", "Bo", "cup", "Cy") and found.weights.shape == (4, 3, 3, 4)
    import comfy.sample

    model = out[0].clone()
    from collections import deque

    record = model.model_options["transformer_options"][lib.RECORD] = deque()
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.4)
    guider = pack.execute("BasicGuider", model=model, conditioning=out[1])[0]
    sampler = pack.execute("KSamplerSelect", sampler_name="euler")[0]
    noise = comfy.sample.prepare_noise(samples, 4)
    guider.sample(noise, samples, sampler, torch.tensor([sigma, 0.0]), seed=4)
    expected = torch.stack([routing.weights[0] for routing in record]).mean(dim=0)
    torch.testing.assert_close(found.weights.flatten(1).T, expected)


def test_maps_over_the_video_and_without_references_in_front(pack, injected):
    out, shot = injected()
    video = torch.rand((9, 48, 64, 3), generator=torch.Generator().manual_seed(1))
    over, masks = maps_of(pack, out, shot, video=video)
    assert over.shape == maps_of(pack, out, shot)[0].shape and not torch.equal(over, maps_of(pack, out, shot)[0])
    trimmed = maps_of(pack, out, shot, trim_latent=1)[1]
    assert trimmed[0].shape[0] == 5 and torch.equal(trimmed[0][0], masks[0][1])
    with pytest.raises(ValueError, match="All 3 latent frames are cut off"):
        maps_of(pack, out, shot, trim_latent=3)
    with pytest.raises(ValueError, match="The video has 5 frames, but its latent stands for 9"):
        maps_of(pack, out, shot, video=video[:5])


def test_maps_need_a_router(pack, injected, model, folders):
    out, shot = injected()
    with pytest.raises(ValueError, match="No router has seen anybody"):
        maps_of(pack, (model, out[1]), shot)
    outside, _ = injected(end_percent=0.2)
    with pytest.raises(ValueError, match="noise level inside"):
        maps_of(pack, outside, shot)
    plain = pack.execute("IDCrafterLoadAdapter", adapter_name="plain.safetensors")[0]
    without, _ = injected(adapter=plain)
    with pytest.raises(ValueError, match="an adapter that has a router"):
        maps_of(pack, without, shot)


def test_a_cast_without_faces_is_not_warned_twice(injected, caplog):
    caplog.set_level(logging.WARNING)
    injected()
    assert caplog.text.count("Without a face") == 1
