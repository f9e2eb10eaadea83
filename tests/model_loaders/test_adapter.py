"""Identity adapters from disk: this pack's files, the released layout of Ingredients, and what is refused."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from support import released, tiny_adapters, tiny_families


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.adapter")


@pytest.fixture(scope="module")
def modules(pack):
    return pack.submodule("idcrafter.modules.identity_adapter")


@pytest.fixture(scope="module")
def own_config(modules):
    return modules.AdapterConfig("wan", 32, 2, **tiny_adapters.OWN)


def outputs(patcher):
    """What an adapter makes of one face and a few video tokens."""
    net = patcher.model
    c = net.config
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    with torch.inference_mode():
        face = net.local_facial_extractor(noise(1, c.id_width), [noise(1, 5, c.visual_width) for _ in range(c.scales)])
        identities = net.identities(face[:, None, None], torch.ones(1, 1, 1), noise(1, 3, c.context_width))
        router = net.router[0](noise(1, 6, c.width), identities[0].router)
    return face, identities[-1].keys, router


def test_a_file_of_our_own_comes_back_as_it_was(pack, loader, modules, own_config, tmp_path):
    import comfy.ops

    adapter = modules.IdentityAdapter(own_config, comfy.ops.disable_weight_init)
    modules.initialise(adapter, 7)
    path = loader.save_adapter(adapter, tmp_path / "mine.safetensors", "MIT", recogniser="ab12")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]
    loaded = loader.load_adapter(path)
    assert loaded.model.config == own_config
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    facts = loaded.get_attachment(loader.ATTACHMENT)
    assert facts["size"] == sum(tensor.numel() for tensor in adapter.parameters())
    assert {k: facts[k] for k in ("file", "licence", "layout", "recogniser")} == {
        "file": "mine.safetensors", "licence": "MIT", "layout": "idcrafter", "recogniser": "ab12",
    }  # fmt: skip
    assert facts["sha256"] == pack.submodule("model_loaders.files").sha256_of(path)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float8_e4m3fn, 0.4)], ids=str
)
def test_smaller_types_compute_the_same(loader, own_config, tmp_path, dtype, bound):
    """The weights stay in the file's type; the difference is their rounding."""
    plain = outputs(loader.load_adapter(tiny_adapters.write_own(tmp_path / "a.safetensors", own_config)))
    small = loader.load_adapter(tiny_adapters.write_own(tmp_path / "b.safetensors", own_config, dtype=dtype))
    assert {tensor.dtype for tensor in small.model.state_dict().values()} == {dtype}
    for first, second in zip(plain, outputs(small), strict=True):
        difference = (first - second).abs().max() / first.abs().max()
        assert 0 < difference < bound


def test_the_released_folder_gives_the_adapter_and_the_video_model(pack, loader, modules, tmp_path):
    folder = tiny_adapters.write_ingredients(tmp_path / "ingredients" / "transformer")
    patcher = loader.load_adapter(folder)
    assert patcher.model.config == modules.AdapterConfig("cogvideox", 128, 2, **tiny_adapters.INGREDIENTS)
    facts = patcher.get_attachment(loader.ATTACHMENT)
    assert facts["layout"] == "ingredients" and facts["licence"].startswith("Apache-2.0") and "sha256" not in facts
    expected = tiny_adapters.weights(tiny_adapters.config("cogvideox", 128, 2, **tiny_adapters.INGREDIENTS), 1)
    assert patcher.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(patcher.model.state_dict()[name], tensor) for name, tensor in expected.items())
    # The pipeline's folder works as well as the transformer's, and the DiT beside the adapter is CogVideoX-I2V.
    assert loader.load_adapter(folder.parent).model.config == patcher.model.config
    load = pack.submodule("model_loaders.video_dit").load_video_dit
    beside = load(folder)
    plain = load(tiny_families.write(tmp_path / "plain", "cogvideox-i2v", "diffusers"))
    facts = beside.get_attachment("idcrafter")
    assert facts["family"] == "cogvideox-i2v" and facts["size"] == plain.get_attachment("idcrafter")["size"]
    ours, theirs = (m.model.diffusion_model.state_dict() for m in (beside, plain))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_cut_out_of_the_release(loader, tmp_path):
    """Without the DiT beside it, and without config.json, an insertion serves two blocks."""
    config = tiny_adapters.config("cogvideox", 128, 2, **tiny_adapters.INGREDIENTS)
    safetensors.torch.save_file(tiny_adapters.weights(config), tmp_path / "cut.safetensors")
    found = loader.load_adapter(tmp_path / "cut.safetensors").model.config
    assert (found.blocks, found.every) == (2, 2)


def full_release(modules):
    """The names and shapes of the whole released checkpoint."""
    data = released.read("cogvideox-5b-i2v")
    table = {name: tuple(shape) for name, shape in data["table"].items()}
    beside = {name: tuple(shape) for name, shape in modules.layout(modules.INGREDIENTS).items()}
    assert (len(table), len(beside)) == (1025, 466) and not table.keys() & beside.keys()
    config = {**data["config"], "_class_name": "ConsisIDTransformer3DModel", "cross_attn_interval": 2}
    return {**data, "table": table | beside, "config": config}


def test_the_full_table_of_the_release(pack, loader, modules):
    """feizhengcong/Ingredients: 1,491 tensors, of which 1,025 are CogVideoX's and 466 the adapter's; 6.4 B numbers."""
    data = full_release(modules)
    assert len(data["table"]) == 1491
    header = released.header(data, pack.submodule("model_loaders.files"))
    assert loader.read_config(header) == modules.INGREDIENTS
    size = sum(torch.Size(shape).numel() for name, shape in data["table"].items() if name.startswith(modules.PARTS))
    assert size == 151_398_400 + 21 * (20_981_760 + 10_496_032)
    facts = pack.submodule("model_loaders.video_dit").identify(header)
    assert facts["family"] == "cogvideox-i2v"
    assert facts["size"] + size == sum(torch.Size(shape).numel() for shape in data["table"].values())


def test_another_model_of_that_class_name_needs_no_adapter(pack, modules):
    data = full_release(modules)
    data["table"] = {name: shape for name, shape in data["table"].items() if not name.startswith(modules.PARTS)}
    facts = pack.submodule("model_loaders.video_dit").identify(
        released.header(data, pack.submodule("model_loaders.files"))
    )
    assert facts["family"] == "cogvideox-i2v"


def drop(start):
    return lambda found: [found.pop(name) for name in list(found) if name.startswith(start)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("router."), "no tensors of the ID router.*ConsisID checkpoint"),
        (drop("router.0.to_q"), "1 of its 186 tensors are missing .first: router.0.to_q.weight"),
        (drop("local_facial_extractor.latents"), "the tensor 'local_facial_extractor.latents' is missing"),
        (drop("perceiver_cross_attention"), "the tensor 'perceiver_cross_attention.0.to_q.weight' is missing"),
        (lambda found: found.update({"router.0.new": torch.zeros(2)}), r"1 tensors that .* \(first: router.0.new\)"),
        (lambda found: found["router.0.to_q.weight"].fill_(float("nan")), "NaN or infinite weights"),
        (
            lambda found: found.update({"router.0.id_merge.weight": torch.zeros(1, 5)}),
            r"router.0.id_merge.weight has the shape \[1, 5\] instead of \[1, 4\]",
        ),
        (
            lambda found: found.update({"local_facial_extractor.latents": torch.zeros(4)}),
            "another number of axes",
        ),
    ],
)  # fmt: skip
def test_damaged_releases_are_refused(loader, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        loader.load_adapter(tiny_adapters.write_ingredients(tmp_path / "transformer", edit))


def test_insertions_must_go_with_the_blocks(loader, tmp_path):
    folder = tiny_adapters.write_ingredients(tmp_path / "transformer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cross_attn_interval": 1}))
    with pytest.raises(ValueError, match="1 insertions, but one after every 1 of 2 blocks are 2"):
        loader.load_adapter(folder)


def test_files_that_are_no_adapter(loader, own_config, tmp_path):
    with pytest.raises(ValueError, match="holds no identity adapter"):
        loader.load_adapter(tiny_families.write(tmp_path / "wan.safetensors", "wan-t2v"))
    path = tiny_adapters.write_own(tmp_path / "a.safetensors", own_config, edit=drop("hierarchy.layers.1"))
    with pytest.raises(ValueError, match="looks like an identity adapter, but .* are missing"):
        loader.load_adapter(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        loader.load_adapter(path)
    for name, says in (("colour", "unknown entries colour"), ("visual", "looks at faces through 'x'")):
        text = json.dumps({**json.loads(own_config.dumps()), name: "x"})
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(tiny_adapters.weights(own_config), path, {"idcrafter_adapter": text})
        with pytest.raises(ValueError, match=f"'{name}.safetensors'.*{says}"):
            loader.load_adapter(path)


def test_a_missing_shard_is_named(loader, tmp_path):
    folder = tiny_adapters.write_ingredients(tmp_path / "transformer")
    next(Path(folder).glob("*00002-of-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 2 parts"):
        loader.load_adapter(folder)


def test_the_encoder_of_the_download_is_found(loader, tmp_path, monkeypatch):
    """Ingredients' folder has its image tower in face_encoder; without one the command to get it is said."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(tmp_path / "clip_vision")], {".pt"}))
    folder = tiny_adapters.write_ingredients(tmp_path / "ingredients" / "transformer")
    with pytest.raises(FileNotFoundError, match="hf download QuanSun/EVA-CLIP EVA02_CLIP_L_336_psz14_s6B.pt"):
        loader.load_whole(folder)
    tiny_adapters.write_eva(tmp_path / "ingredients" / "face_encoder" / "EVA02_CLIP_L_336_psz14_s6B.pt")
    assert loader.load_whole(folder).eyes.name == "EVA02_CLIP_L_336_psz14_s6B.pt"
    elsewhere = tiny_adapters.write_eva(tmp_path / "other.safetensors")
    assert loader.load_whole(folder, elsewhere).eyes.name == "other.safetensors"


def test_an_adapter_with_a_vae_needs_no_encoder(loader, own_config, tmp_path):
    adapter = loader.load_whole(tiny_adapters.write_own(tmp_path / "a.safetensors", own_config, licence="MIT"))
    assert adapter.eyes is None and adapter.config == own_config
    text = loader.describe(adapter.config, adapter.facts)
    assert "for wan of width 32 with 2 blocks, 2 insertions, router with a null identity, hierarchy of 2" in text
    assert text.endswith("licence: MIT.")
