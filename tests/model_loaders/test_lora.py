"""LoRAs in every naming become core's LORA_MODEL, with the scale of their training."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from support import tiny_families

RANK = 3


@pytest.fixture(scope="module")
def lora(pack):
    return pack.submodule("model_loaders.lora")


@pytest.fixture(scope="module")
def models(pack, tmp_path_factory):
    load = pack.submodule("model_loaders.video_dit").load_video_dit
    folder = tmp_path_factory.mktemp("models")
    with torch.inference_mode():
        return {
            name: load(tiny_families.write(folder / f"{name}.safetensors", name))
            for name in ("vace", "wan-t2v", "cogvideox")
        }


def pair(model, module, seed=0):
    shape = model.model.diffusion_model.state_dict()[f"{module}.weight"].shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((RANK, shape[1]), generator=generator), torch.randn((shape[0], RANK), generator=generator)


def adapter(model):
    """Identity-GRPO's names and modules on the tiny VACE: 8 modules a block and a VACE block."""
    native = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
    out, expected = {}, {}
    for stem, count in (("blocks", 4), ("vace_blocks", 2)):
        for i in range(count):
            for old, new in (("attn1", "self_attn"), ("attn2", "cross_attn")):
                for module, short in native.items():
                    target = f"{stem}.{i}.{new}.{short}"
                    down, up = pair(model, target, len(expected))
                    name = f"base_model.model.{stem}.{i}.{old}.{module}"
                    out |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
                    expected[target] = (down, up)
    return out, expected


def changed_weights(model):
    """{module: weight with patches - weight without} of everything that a MODEL patches."""
    import comfy.lora

    weights = model.model.state_dict()
    return {
        key.removeprefix("diffusion_model.").removesuffix(".weight"): comfy.lora.calculate_weight(
            patches, weights[key].float().clone(), key
        )
        - weights[key].float()
        for key, patches in model.patches.items()
    }


@pytest.mark.parametrize(("config", "scale"), [
    ({"lora_alpha": 3, "r": 3}, 1.0),
    ({"lora_alpha": 6, "r": 3}, 2.0),
    ({"lora_alpha": 6, "r": 3, "use_rslora": True}, 6 / math.sqrt(3)),
    ({"lora_alpha": 3, "r": 3, "alpha_pattern": {"to_q|to_k|to_v|to_out.0": 12}}, 4.0),
    (None, 1.0),
])  # fmt: skip
def test_a_peft_adapter_on_blocks_and_vace_blocks(lora, models, tmp_path, config, scale):
    weights, expected = adapter(models["vace"])
    path = tmp_path / "adapter_model.safetensors"
    safetensors.torch.save_file(weights, path)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    found = lora.load_lora(path, models["vace"]).weights
    patched = lora.apply_lora(models["vace"], found, 0.5)
    changes = changed_weights(patched)
    assert changes.keys() == expected.keys() and len(expected) == 48
    for module, (down, up) in expected.items():
        torch.testing.assert_close(changes[module], 0.5 * scale * up @ down, rtol=1e-4, atol=1e-5)


def names_of(kind, module, theirs):
    flat = theirs.replace(".", "_")
    return {
        "diffusers": (f"transformer.{theirs}.lora_A.weight", f"transformer.{theirs}.lora_B.weight"),
        "bare": (f"{theirs}.lora_A.weight", f"{theirs}.lora_B.weight"),
        "peft": (
            f"base_model.model.{theirs}.lora_A.default.weight",
            f"base_model.model.{theirs}.lora_B.default.weight",
        ),
        "old diffusers": (f"transformer.{theirs}.lora.down.weight", f"transformer.{theirs}.lora.up.weight"),
        "kohya": (f"lora_unet__{flat}.lora_down.weight", f"lora_unet__{flat}.lora_up.weight"),
        "native": (f"diffusion_model.{module}.lora_A.weight", f"diffusion_model.{module}.lora_B.weight"),
    }[kind]


@pytest.mark.parametrize("kind", ["diffusers", "bare", "peft", "old diffusers", "kohya", "native"])
@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("cogvideox", "blocks.1.q"), ("cogvideox", "blocks.0.attn_out"), ("cogvideox", "blocks.0.ff_proj"),
        ("cogvideox", "blocks.0.norm1.linear"), ("wan-t2v", "blocks.1.cross_attn.o"), ("wan-t2v", "blocks.0.ffn.2"),
    ],
)  # fmt: skip
def test_every_naming_lands_on_the_same_weight(lora, models, tmp_path, kind, family, module):
    model = models[family]
    down, up = pair(model, module)
    names = names_of(kind, module, tiny_families.names_of(family).to_diffusers(module))
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(dict(zip(names, (down, up), strict=True)), path)
    changes = changed_weights(lora.apply_lora(model, lora.load_lora(path, model).weights, 1.0))
    assert list(changes) == [module]
    torch.testing.assert_close(changes[module], up @ down, rtol=1e-4, atol=1e-5)


def test_core_cannot_map_these_names(models):
    """Why this loader is there; when core learns them, both still give the same."""
    import comfy.sd

    module = "blocks.1.q"
    down, up = pair(models["cogvideox"], module)
    names = names_of("diffusers", module, tiny_families.names_of("cogvideox").to_diffusers(module))
    patched = comfy.sd.load_lora_for_models(
        models["cogvideox"], None, dict(zip(names, (down, up), strict=True)), 1.0, 0.0
    )[0]
    changes = changed_weights(patched)
    assert changes == {} or torch.allclose(changes[module], up @ down, rtol=1e-4, atol=1e-5)


def test_the_alpha_of_the_file_and_of_diffusers_metadata(lora, models, tmp_path):
    model, module = models["cogvideox"], "blocks.0.v"
    down, up = pair(model, module)
    names = names_of("diffusers", module, "transformer_blocks.0.attn1.to_v")
    weights = dict(zip(names, (down, up), strict=True))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6, "transformer.r": 3})}
    safetensors.torch.save_file(weights, path, metadata=metadata)
    changes = changed_weights(lora.apply_lora(model, lora.load_lora(path, model).weights, 1.0))
    torch.testing.assert_close(changes[module], 2 * up @ down, rtol=1e-4, atol=1e-5)
    own = {**weights, "transformer.transformer_blocks.0.attn1.to_v.alpha": torch.tensor(1.5)}
    safetensors.torch.save_file(own, path, metadata=metadata)
    changes = changed_weights(lora.apply_lora(model, lora.load_lora(path, model).weights, 1.0))
    torch.testing.assert_close(changes[module], 0.5 * up @ down, rtol=1e-4, atol=1e-5)


def test_the_lora_model_goes_through_cores_nodes(pack, lora, models, tmp_path):
    weights, expected = adapter(models["vace"])
    safetensors.torch.save_file(weights, tmp_path / "adapter_model.safetensors")
    found = lora.load_lora(tmp_path / "adapter_model.safetensors", models["vace"]).weights
    patched = pack.execute("LoraModelLoader", model=models["vace"], lora=found, strength_model=1.0, bypass=False)[0]
    assert changed_weights(patched).keys() == expected.keys()
    assert all(name.startswith("diffusion_model.") for name in found)


def test_a_vace_adapter_on_plain_text_to_video_says_what_is_left_out(lora, models, tmp_path, caplog):
    weights, _ = adapter(models["vace"])
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    with caplog.at_level("WARNING"):
        found = lora.load_lora(tmp_path / "a.safetensors", models["wan-t2v"])
    # The tiny text-to-video model has 2 of the 4 blocks.
    assert len(found.weights) == 2 * 2 * 8 and len(found.left_out) == 32
    assert found.summary in caplog.text
    assert found.summary.startswith(
        "a.safetensors: 16 modules of rank 3; 32 modules are not in this WanModel and are left out (first: "
    )


def bad(weights, key, change):
    if change == "lose":
        del weights[key]
    elif change == "shape":
        weights[key] = weights[key][:, :-1].contiguous()
    elif change == "nan":
        weights[key][0, 0] = float("nan")
    else:
        weights[f"transformer.transformer_blocks.0.attn1.to_q.{change}"] = torch.ones(128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lose", r"lacks the up \(B\) factor of blocks.0.q"),
        ("shape", r"for blocks.0.q, whose weight is \[128, 128\]; it was trained on a model of another size"),
        ("nan", "holds NaN or infinite weights"),
        ("lora_magnitude_vector", "is DoRA: 1 of its tensors are not LoRA factors"),
        ("hada_w1_a", "is no plain LoRA: 1 of its tensors"),
    ],
)
def test_bad_files_are_named(lora, models, tmp_path, change, message):
    down, up = pair(models["cogvideox"], "blocks.0.q")
    names = names_of("diffusers", "", "transformer_blocks.0.attn1.to_q")
    weights = dict(zip(names, (down, up), strict=True))
    bad(weights, names[1], change)
    safetensors.torch.save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message):
        lora.load_lora(tmp_path / "bad.safetensors", models["cogvideox"])


def test_a_lora_of_another_model(lora, models, tmp_path):
    down, up = pair(models["cogvideox"], "blocks.0.q")
    names = names_of("diffusers", "", "transformer_blocks.0.attn1.to_q")
    safetensors.torch.save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "l.safetensors")
    with pytest.raises(ValueError, match="No module of the LoRA 'l.safetensors' is in this WanModel"):
        lora.load_lora(tmp_path / "l.safetensors", models["wan-t2v"])
    (tmp_path / "adapter_config.json").write_text("[")
    safetensors.torch.save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="The config of the LoRA 'adapter_model.safetensors' is not a JSON object"):
        lora.load_lora(tmp_path / "adapter_model.safetensors", models["cogvideox"])


def test_the_node(pack, lora, models, tmp_path, monkeypatch):
    import folder_paths

    weights, expected = adapter(models["vace"])
    (tmp_path / "identity").mkdir()
    safetensors.torch.save_file(weights, tmp_path / "identity" / "adapter_model.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    name = "identity/adapter_model.safetensors"
    result = pack.execute("IDCrafterLoadLoRA", model=models["vace"], lora_name=name, strength=1.0)
    model, found, summary = result
    assert changed_weights(model).keys() == expected.keys() and len(found) == 2 * len(expected)
    assert summary == "adapter_model.safetensors: 48 modules of rank 3" and result.ui == {"text": (summary,)}
    same, found, _ = pack.execute("IDCrafterLoadLoRA", model=models["vace"], lora_name=name, strength=0.0)
    assert same is models["vace"] and len(found) == 2 * len(expected)


def test_on_packed_weights(lora, models, tmp_path):
    """A GGUF model keeps bytes; the factors are compared with the shapes that its parameters tell."""
    model, module = models["wan-t2v"], "blocks.1.cross_attn.o"
    down, up = pair(model, module)

    class Packed(torch.nn.Parameter):
        shape = model.model.diffusion_model.get_submodule(module).weight.shape

    network = copy.deepcopy(model.model.diffusion_model)
    network.get_submodule(module).weight = Packed(torch.zeros(6, 7, dtype=torch.uint8), requires_grad=False)
    packed = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    names = names_of("native", module, "-")
    found = lora.convert(dict(zip(names, (down, up), strict=True)), packed, "l.safetensors")
    assert list(found.weights) == list(names)
