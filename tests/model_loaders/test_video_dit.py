"""The video model: recognised by its header, refused with a name, loaded by core."""

import json

import pytest
import safetensors.torch
import torch

from support import tiny_models


@pytest.fixture(scope="module")
def video_dit(pack):
    return pack.submodule("model_loaders.video_dit")


@pytest.fixture(scope="module")
def identify(pack, video_dit):
    files = pack.submodule("model_loaders.files")
    return lambda path: video_dit.identify(files.read_header(path))


def test_a_tiny_wan_model_loads_with_its_facts(video_dit, tiny_files):
    import comfy.model_base

    model = video_dit.load_video_dit(tiny_files.dit)
    assert isinstance(model.model, comfy.model_base.WAN21)
    assert model.model.diffusion_model.num_heads == tiny_models.DIT_CONFIG["num_heads"]
    facts = model.get_attachment("idcrafter")
    assert facts == {
        "family": "wan-t2v",
        "size": sum(p.numel() for p in model.model.diffusion_model.parameters()),
        "dtype": "float32",
        "layers": tiny_models.DIT_LAYERS,
        "width": tiny_models.DIT_WIDTH,
        "file": "tiny_dit.safetensors",
    }
    clone = model.clone()
    clone.add_patches({"diffusion_model.head.head.weight": ("diff", (torch.zeros(64, 32),))}, 1.0)
    assert clone.get_attachment("idcrafter") == facts


def test_the_loaded_weights_are_those_of_the_file_and_of_cores_loader(video_dit, tiny_files):
    import comfy.sd

    weights = safetensors.torch.load_file(tiny_files.dit)
    ours = video_dit.load_video_dit(tiny_files.dit).model.diffusion_model.state_dict()
    core = comfy.sd.load_diffusion_model(str(tiny_files.dit)).model.diffusion_model.state_dict()
    assert ours.keys() == weights.keys() == core.keys()
    assert all(torch.equal(ours[name].float(), weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_files_with_the_checkpoint_prefix(video_dit, tmp_path, prefix):
    def rename(weights):
        for name in list(weights):
            weights[prefix + name] = weights.pop(name)

    path = tiny_models.write_dit(tmp_path / "m.safetensors", edit=rename)
    assert video_dit.load_video_dit(path).get_attachment("idcrafter")["layers"] == 2


def test_a_torch_file_of_the_released_phantom_layout(video_dit, tmp_path):
    """Phantom-Wan comes as a .pth of bare WanModel keys, one head a 128 columns, no metadata."""
    path = tmp_path / "phantom.pth"
    shapes = tiny_models.dit_shapes(dim=128, num_heads=1, text_dim=4096, freq_dim=256)
    torch.save(tiny_models.random_weights(shapes), path)
    model = video_dit.load_video_dit(path)
    assert model.get_attachment("idcrafter")["family"] == "wan-t2v"
    assert model.model.diffusion_model.text_dim == 4096


def test_the_full_size_layout_is_that_of_the_release(identify, tmp_path):
    """Phantom-Wan 1.3B: 825 tensors, 1 418 996 800 parameters."""
    shapes = tiny_models.dit_shapes(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, text_dim=4096, freq_dim=256)
    assert len(shapes) == 825
    facts = identify(tiny_models.write_header(tmp_path / "full.safetensors", shapes))
    assert facts == {"family": "wan-t2v", "size": 1418996800, "dtype": "bfloat16", "layers": 30, "width": 1536}


def test_licence_from_the_bundle_or_the_file(video_dit, tmp_path, caplog):
    metadata = {"config": json.dumps({"transformer": tiny_models.DIT_CONFIG}), "license": "MIT"}
    path = tiny_models.write_dit(tmp_path / "m.safetensors", metadata=metadata)
    with caplog.at_level("INFO"):
        assert video_dit.load_video_dit(path).get_attachment("idcrafter")["licence"] == "MIT"
    assert "licence: MIT" in caplog.text
    assert video_dit.load_video_dit(path, licence="Apache-2.0").get_attachment("idcrafter")["licence"] == "Apache-2.0"


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_weight_dtypes(video_dit, tiny_files, dtype):
    model = video_dit.load_video_dit(tiny_files.dit, dtype)
    assert str(model.model_dtype()).removeprefix("torch.") == dtype.replace("fp8", "float8")
    with pytest.raises(ValueError, match="weight type 'int3' is unknown"):
        video_dit.load_video_dit(tiny_files.dit, "int3")


def test_the_shift_is_set_on_a_clone(video_dit, tiny_files):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = video_dit.load_video_dit(tiny_files.dit)
    shifted = video_dit.set_shift(model, 3.0)
    assert model.get_model_object("model_sampling").shift == 8.0
    assert shifted.get_attachment("idcrafter") == model.get_attachment("idcrafter")
    core = ModelSamplingSD3().patch(model, 3.0)[0].get_model_object("model_sampling")
    assert torch.equal(shifted.get_model_object("model_sampling").sigmas, core.sigmas)


def add(*names, shape=(4, 4)):
    return lambda weights: weights.update({name: torch.zeros(shape) for name in names})


def widen(weights):
    weights["patch_embedding.weight"] = torch.zeros(32, 36, 1, 2, 2)


def channels48(weights):
    weights["head.head.weight"] = torch.zeros(4 * 48, 32)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (add("img_emb.proj.0.bias"), "a Wan image-to-video model"),
        (add("vace_patch_embedding.weight", "vace_blocks.0.x"), "a Wan VACE model"),
        (add("audio_proj.audio_proj_glob_1.layer.bias"), "a Wan HuMo model"),
        (add("face_adapter.fuser_blocks.0.k_norm.weight"), "a Wan Animate model"),
        (add("control_adapter.conv.weight"), "a Wan 2.2 Fun camera model"),
        (add("ref_conv.weight"), "a Wan Fun reference model"),
        (widen, "a Wan 2.2 image-to-video or Fun model"),
        (channels48, "a Wan 2.2 5B model"),
    ],
)
def test_other_wan_models_are_named(identify, tmp_path, edit, what):
    path = tiny_models.write_dit(tmp_path / "other.safetensors", edit=edit)
    with pytest.raises(ValueError, match=f"'other.safetensors' holds {what}"):
        identify(path)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["blocks.0.self_attn.q.lora_down.weight", "blocks.0.self_attn.q.lora_up.weight"], "a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "a LoRA"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion UNet"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
        (["vision_model.encoder.layers.0.mlp.fc1.weight"], "a CLIP vision model"),
        (["controlnet_blocks.0.weight"], "a ControlNet"),
        (["something.else"], "an unknown model (its first tensor is something.else)"),
    ],
)
def test_other_files_are_named(identify, tmp_path, keys, what):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({name: torch.zeros(4, 4) for name in keys}, path)
    with pytest.raises(ValueError) as error:
        identify(path)
    assert f"'other.safetensors' holds {what}" in str(error.value)


def test_other_video_models_are_named_by_core(identify, tmp_path):
    """CogVideoX, as core's own detection reads it."""
    path = tmp_path / "cog.safetensors"
    shapes = {"blocks.0.norm1.linear.weight": (384, 64), "patch_embed.proj.weight": (64, 16, 2, 2)}
    shapes |= {"patch_embed.text_proj.weight": (64, 64), "proj_out.weight": (64, 64)}
    safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(ValueError, match="'cog.safetensors' holds a model of the cogvideox family"):
        identify(path)


def test_damage_is_found_before_loading(identify, tmp_path):
    def lose(weights):
        del weights["blocks.1.ffn.2.bias"], weights["blocks.1.ffn.0.bias"]

    def reshape(weights):
        weights["blocks.0.cross_attn.k.weight"] = torch.zeros(32, 30)

    def behead(weights):
        del weights["head.head.weight"]

    with pytest.raises(ValueError, match=r"2 of its \d+ tensors are missing \(first: blocks.1.ffn.0.bias\)"):
        identify(tiny_models.write_dit(tmp_path / "a.safetensors", edit=lose))
    with pytest.raises(ValueError, match=r"cross_attn.k.weight has the shape \[32, 30\] instead of \[32, 32\]"):
        identify(tiny_models.write_dit(tmp_path / "b.safetensors", edit=reshape))
    with pytest.raises(ValueError, match="'head.head.weight' is missing"):
        identify(tiny_models.write_dit(tmp_path / "c.safetensors", edit=behead))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "'config' metadata .* is not a JSON object"),
        ("[]", "'config' metadata .* is not a JSON object"),
        ('{"transformer": "x"}', "'config' metadata .* is not a JSON object"),
        ('{"transformer": {"wings": 2}}', "does not fit a Wan model"),
        ('{"transformer": {"num_heads": 3}}', "does not fit a Wan model"),
        ('{"transformer": {"num_heads": 2, "text_dim": 64, "freq_dim": 32}}', r"text_embedding.0.weight has the shape"),
    ],
)
def test_a_config_that_does_not_fit(identify, tmp_path, config, message):
    path = tiny_models.write_dit(tmp_path / "m.safetensors", metadata={"config": config})
    with pytest.raises(ValueError, match=message):
        identify(path)
