"""The video model: recognised by its header, refused with a name, loaded by core."""

import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from support import tiny_families, tiny_models


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
        "layout": "native",
        "file": "tiny_dit.safetensors",
        "licence": "Apache-2.0 (as Wan text-to-video was published; the file does not say)",
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
    """Phantom-Wan-1.3B.pth: bare WanModel keys, one head a 128 columns, no metadata, and its rotation table."""
    path = tmp_path / "renamed.pth"
    weights = tiny_models.random_weights(tiny_models.dit_shapes(dim=128, num_heads=1, text_dim=4096, freq_dim=256))
    torch.save({**weights, "freqs": torch.zeros(1024, 64, dtype=torch.complex64)}, path)
    model = video_dit.load_video_dit(path)
    facts = model.get_attachment("idcrafter")
    assert facts["family"] == "phantom" and facts["size"] == sum(t.numel() for t in weights.values())
    assert model.model.diffusion_model.text_dim == 4096
    torch.save(weights, path)
    assert video_dit.load_video_dit(path).get_attachment("idcrafter")["family"] == "wan-t2v"


def test_the_full_size_layout_is_that_of_the_release(identify, tmp_path):
    """Phantom-Wan 1.3B: 825 tensors, 1 418 996 800 parameters."""
    shapes = tiny_models.dit_shapes(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, text_dim=4096, freq_dim=256)
    assert len(shapes) == 825
    facts = identify(tiny_models.write_header(tmp_path / "Phantom-Wan-1_3B_fp16.safetensors", shapes))
    assert facts == {
        "family": "phantom",
        "size": 1418996800,
        "dtype": "bfloat16",
        "layers": 30,
        "width": 1536,
        "layout": "native",
        "release": "Wan2.1-T2V-1.3B",
    }


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_every_family_is_recognised(video_dit, tmp_path, family):
    model = video_dit.load_video_dit(tiny_families.write(tmp_path / family / f"{family}.safetensors", family))
    facts = model.get_attachment("idcrafter")
    assert facts["family"] == family and facts["dtype"] == ("bfloat16" if family == "humo" else "float32")
    expected = {"refalign": "MIT", "skyreels-v3": "Skywork Community", "cogvideox": "CogVideoX License"}
    assert facts["licence"].startswith(expected.get(family.removesuffix("-i2v"), "Apache-2.0"))
    assert facts["family"].split("-")[0] in video_dit.describe(facts).lower()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Phantom_Wan_14B-x.safetensors", "phantom"),
        ("SkyReels-V3-R2V_fp8.safetensors", "skyreels-v3"),
        ("SkyReelsV3/model.safetensors", "skyreels-v3"),
        ("RefAlign-1.3B/model.safetensors", "refalign"),
        ("wan2.2_bernini_r_high.safetensors", "bernini"),
        ("SkyReels-V2-T2V.safetensors", "wan-t2v"),
        ("wan2.1_t2v_14B.safetensors", "wan-t2v"),
    ],
)
def test_the_name_tells_models_of_the_same_layout_apart(identify, tmp_path, name, family):
    assert identify(tiny_models.write_dit(tmp_path / name))["family"] == family


def test_the_choice_tells_them_apart_too(video_dit, tmp_path):
    path = tiny_models.write_dit(tmp_path / "phantom.safetensors")
    for choice in ("wan-t2v", "skyreels-v3", "refalign", "bernini", "phantom"):
        assert video_dit.load_video_dit(path, family=choice).get_attachment("idcrafter")["family"] == choice
    with pytest.raises(ValueError, match="family 'kling' is unknown; choose one of auto, wan-t2v, phantom"):
        video_dit.load_video_dit(path, family="kling")
    vace = tiny_families.write(tmp_path / "vace.safetensors", "vace")
    with pytest.raises(ValueError, match="holds a Wan VACE model, so it cannot be Phantom-Wan; set family to 'auto'"):
        video_dit.load_video_dit(vace, family="phantom")


def pack_weights(model):
    """Weights as GGUF loaders keep them: bytes in memory, with their kind in `tensor_type`."""
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.detach().to(torch.uint8), requires_grad=False)
            module.weight.tensor_type = SimpleNamespace(name="Q4_K")


# Core's loader cannot build the tiny image-to-video CogVideoX, whose width its sinusoids do not divide.
@pytest.mark.parametrize("family", [family for family in tiny_families.FAMILIES if family != "cogvideox-i2v"])
def test_a_model_of_another_loader_gets_the_same_facts(video_dit, tmp_path, family):
    import comfy.sd

    path = tiny_families.write(tmp_path / family / f"{family}.safetensors", family)
    theirs = comfy.sd.load_diffusion_model(str(path))
    adopted = video_dit.adopt_model(theirs, family if family in video_dit.families.SAME_LAYOUT else "auto")
    assert theirs.get_attachment("idcrafter") is None and adopted.model is theirs.model
    expected = {**video_dit.load_video_dit(path).get_attachment("idcrafter"), "file": "a connected MODEL"}
    expected["dtype"] = "float32"  # core widens HuMo's bf16 on a CPU
    assert adopted.get_attachment("idcrafter") == expected


def test_packed_weights_are_named(video_dit, tiny_files):
    import comfy.sd

    theirs = comfy.sd.load_diffusion_model(str(tiny_files.dit))
    size = video_dit.adopt_model(theirs).get_attachment("idcrafter")["size"]
    pack_weights(theirs)
    facts = video_dit.adopt_model(theirs).get_attachment("idcrafter")
    assert (facts["dtype"], facts["size"]) == ("GGUF Q4_K", size)


def test_adopting_one_of_ours_keeps_its_facts(video_dit, tmp_path):
    ours = video_dit.load_video_dit(tiny_families.write(tmp_path / "phantom.safetensors", "wan-t2v"))
    assert video_dit.adopt_model(ours).get_attachment("idcrafter") == ours.get_attachment("idcrafter")
    facts = video_dit.adopt_model(ours, "skyreels-v3").get_attachment("idcrafter")
    assert (facts["family"], facts["file"]) == ("skyreels-v3", "phantom.safetensors")
    assert facts["licence"].startswith("Skywork")
    assert ours.get_attachment("idcrafter")["family"] == "phantom"


def test_a_model_of_another_kind_is_not_adopted(video_dit, tmp_path):
    import comfy.sd

    vace = comfy.sd.load_diffusion_model(str(tiny_families.write(tmp_path / "m.safetensors", "vace")))
    with pytest.raises(ValueError, match="'the connected MODEL' holds a Wan VACE model, so it cannot be Phantom"):
        video_dit.adopt_model(vace, "phantom")
    vace.model.model_config.unet_config["model_type"] = "s2v"
    with pytest.raises(ValueError, match="The connected MODEL is a Wan sound-to-video model"):
        video_dit.adopt_model(vace)
    vace.model.model_config.unet_config["image_model"] = "flux"
    with pytest.raises(ValueError, match="The connected MODEL is a WAN21_Vace; connect a Wan or CogVideoX model"):
        video_dit.adopt_model(vace)


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
    weights["patch_embedding.weight"] = torch.zeros(32, 48, 1, 2, 2)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (add("casual_audio_encoder.encoder.final_linear.weight"), "a Wan sound-to-video model"),
        (add("face_adapter.fuser_blocks.0.k_norm.weight"), "a Wan Animate model"),
        (add("control_adapter.conv.weight"), "a Wan 2.2 Fun camera model"),
        (add("patch_embedding_mask.weight"), "a SCAIL-2 model"),
        (add("ref_conv.weight"), "a Wan Fun reference model"),
        (widen, "a Wan Fun model \\(48 input channels\\)"),
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
        (["vace_blocks.0.after_proj.weight"], "VACE blocks without their video model"),
        (["local_facial_extractor.latents"], "ConsisID's or Ingredients' face modules"),
        (["model.diffusion_model.mixins.adaln_layer.adaLN_modulations.0.1.weight"], "CogVideoX in the names of SAT"),
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
    """LTX video, as core's own detection reads it."""
    path = tmp_path / "ltx.safetensors"
    safetensors.torch.save_file({"adaln_single.emb.timestep_embedder.linear_1.bias": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match="'ltx.safetensors' holds a model of the ltxv family|an unknown model"):
        identify(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 48}, r"holds a CogVideoX-Fun model \(48 channels\)"),
        ({"num_attention_heads": 30}, "holds CogVideoX-2B"),
    ],
)
def test_other_cogvideox_models_are_named(identify, tmp_path, changes, message):
    path = tmp_path / "cog.safetensors"
    safetensors.torch.save_file(tiny_models.random_weights(tiny_families.shapes("cogvideox", **changes)), path)
    with pytest.raises(ValueError, match=message):
        identify(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AllegroTransformer3DModel"}, "holds a AllegroTransformer3DModel"),
        ({"use_rotary_positional_embeddings": False}, "it is CogVideoX-2B"),
        ({"attention_head_dim": 32}, "heads of width 32; ComfyUI's CogVideoX has 64"),
    ],
)
def test_a_config_json_that_does_not_fit_cogvideox(video_dit, tmp_path, config, message):
    folder = tiny_families.write(tmp_path / "transformer", "cogvideox", "diffusers")
    (folder / "config.json").write_text(json.dumps(tiny_families.diffusers_config("cogvideox", **config)))
    with pytest.raises(ValueError, match=message):
        video_dit.load_video_dit(folder)


def test_a_config_json_that_does_not_fit_vace(video_dit, tmp_path):
    folder = tiny_families.write(tmp_path / "transformer", "vace", "diffusers")
    (folder / "config.json").write_text(json.dumps(tiny_families.diffusers_config("vace", vace_layers=[0, 1])))
    with pytest.raises(ValueError, match=r"spreads the VACE blocks over \[0, 1\]"):
        video_dit.load_video_dit(folder)


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


def lose(weights):
    del weights[sorted(weights)[3]]


def reshape(weights):
    weights[sorted(weights)[3]] = torch.zeros(5)


def extra(weights):
    weights["blocks.0.identity_gate.weight"] = torch.zeros(4, 4)


def nan(weights):
    name = next(name for name in sorted(weights) if weights[name].ndim == 2)
    weights[name].view(-1)[3] = float("nan")


def infinite(weights):
    weights[sorted(weights)[0]].view(-1)[0] = float("inf")


@pytest.mark.parametrize("layout", ["native", "diffusers", "shards"])
@pytest.mark.parametrize("family", ["wan-t2v", "vace", "cogvideox", "cogvideox-i2v"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose, "tensors are missing"),
        (reshape, "has the shape"),
        (extra, "1 tensors that such a model does not have .first: .*identity_gate"),
        (nan, "holds NaN or infinite weights .first: "),
        (infinite, "holds NaN or infinite weights .first: "),
    ],
)
def test_bad_files_are_refused_before_a_model_is_built(video_dit, monkeypatch, tmp_path, family, layout, edit, message):
    """The error names the tensor, and core is never asked to build anything."""
    name = "model.safetensors" if layout == "native" else "transformer"
    path = tiny_families.write(tmp_path / name, family, layout, edit=edit)
    monkeypatch.setattr(video_dit.comfy.sd, "load_diffusion_model_state_dict", never)
    with pytest.raises(ValueError, match=message):
        video_dit.load_video_dit(path)


def never(*_, **__):
    raise AssertionError("a model was built")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("family", ["wan-t2v", "cogvideox"])
@pytest.mark.parametrize("layout", ["native", "pth", "diffusers", "shards"])
def test_every_precision_in_every_layout(video_dit, tmp_path, family, layout, dtype):
    """The network has the values of the file, whatever it computes in."""
    path = tmp_path / {"native": "model.safetensors", "pth": "model.pth"}.get(layout, "transformer")
    if layout == "pth" and family == "wan-t2v":
        # Without metadata core assumes the release's heads of 128 columns, and its text encoder.
        changes = {"dim": 128, "num_heads": 1, "text_dim": 4096, "freq_dim": 256}
    else:
        changes = {}
    layout = "native" if layout == "pth" else layout
    model = video_dit.load_video_dit(tiny_families.write(path, family, layout, dtype=dtype, **changes))
    assert model.get_attachment("idcrafter")["dtype"] == str(dtype).removeprefix("torch.")
    network = model.model.diffusion_model.state_dict()
    for name, weight in tiny_families.weights(family, **changes).items():
        assert torch.equal(network[name].float(), weight.to(dtype).float()), name


def test_a_damaged_fp8_file(video_dit, tmp_path):
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        path = tiny_families.write(tmp_path / "model.safetensors", "wan-t2v", dtype=dtype)
        model = video_dit.load_video_dit(path)
        assert model.get_attachment("idcrafter")["dtype"] == str(dtype).removeprefix("torch.")
        weights = safetensors.torch.load_file(path)
        weights["blocks.1.ffn.0.weight"].view(torch.uint8)[2, 3] = 0xFF if dtype == torch.float8_e4m3fn else 0x7C
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        safetensors.torch.save_file(weights, path, metadata=metadata)
        with pytest.raises(ValueError, match="NaN or infinite weights .first: blocks.1.ffn.0.weight"):
            video_dit.load_video_dit(path)


def test_scaled_fp8_files_keep_their_scales(video_dit, tmp_path):
    """ComfyUI's fp8_scaled repackages: a marker and a scale a matrix; the weight is their product."""
    path = tiny_families.write(tmp_path / "m.safetensors", "wan-t2v")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    plain = safetensors.torch.load_file(path)
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in plain.items():
        if tensor.ndim == 2 and name.startswith("blocks."):
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ".scale_weight")] = scale
        else:
            scaled[name] = tensor
    safetensors.torch.save_file(scaled, path, metadata=metadata)
    network = video_dit.load_video_dit(path).model.diffusion_model
    x, context = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 7, 32)
    out = network(x, torch.tensor([500.0]), context, transformer_options={})
    tiny_families.write(tmp_path / "m.safetensors", "wan-t2v")
    exact = video_dit.load_video_dit(path).model.diffusion_model(
        x, torch.tensor([500.0]), context, transformer_options={}
    )
    assert out.isfinite().all() and 0 < (out - exact).abs().max() < 0.1 * exact.abs().max()
