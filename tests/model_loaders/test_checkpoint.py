"""Files and folders as one model: found, complete, and each damage named."""

import json

import pytest
import safetensors.torch
import torch

from support import tiny_families


@pytest.fixture(scope="module")
def checkpoint(pack):
    return pack.submodule("model_loaders.checkpoint")


@pytest.fixture
def folder(pack, tmp_path):
    return tiny_families.write(tmp_path / "SkyReels-V3" / "transformer", "wan-t2v", "shards")


def index_of(folder):
    return folder / "diffusion_pytorch_model.safetensors.index.json"


def test_a_pipeline_its_transformer_its_index_and_a_shard_are_one_model(pack, checkpoint, folder):
    whole = tiny_families.to_diffusers("wan-t2v", tiny_families.weights("wan-t2v"))
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    for path in (folder.parent, folder, index_of(folder), shard):
        header = checkpoint.open_checkpoint(path)
        assert len(header.parts) == 3 and header.config["num_layers"] == 2
        weights = checkpoint.read_weights(header)
        assert weights.keys() == whole.keys() and all(torch.equal(weights[name], whole[name]) for name in whole)
    facts = pack.submodule("model_loaders.video_dit").load_video_dit(folder.parent).get_attachment("idcrafter")
    assert facts["family"] == "skyreels-v3" and facts["file"] == "SkyReels-V3"


def test_the_list_shows_a_folder_for_its_shards(checkpoint):
    names = ["a.safetensors", "B/transformer/diffusion_pytorch_model-00001-of-00002.safetensors"]
    names += ["B\\transformer\\diffusion_pytorch_model-00002-of-00002.safetensors", "C/model.safetensors"]
    assert checkpoint.list_names(names) == ["a.safetensors", "B/transformer", "C/model.safetensors"]


def test_a_missing_shard(checkpoint, folder):
    shard = sorted(folder.glob("*-00003-of-*"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of the 3 parts .* are missing .first: {shard.name}"):
        checkpoint.open_checkpoint(folder)


def test_a_missing_index(checkpoint, folder):
    index_of(folder).unlink()
    with pytest.raises(FileNotFoundError, match="is one part of a model; its index .* is missing beside it"):
        checkpoint.open_checkpoint(folder)


def test_a_truncated_shard(checkpoint, folder):
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"'{shard.name}' is truncated: it has"):
        checkpoint.open_checkpoint(folder)


def test_shards_of_two_downloads(checkpoint, folder):
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    weights = safetensors.torch.load_file(shard)
    lost = sorted(weights)[0]
    safetensors.torch.save_file({name: weights[name] for name in weights if name != lost}, shard)
    with pytest.raises(ValueError, match=f"lacks 1 tensors that .* places there .first: {lost}"):
        checkpoint.open_checkpoint(folder)
    weights["scale_shift_table"] = torch.zeros(1)
    weights["proj_out.bias"] = torch.zeros(1)
    safetensors.torch.save_file(weights, shard)
    with pytest.raises(ValueError, match="is in two parts of"):
        checkpoint.open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no readable 'weight_map'"),
        ("[]", "no readable 'weight_map'"),
        ('{"weight_map": 3}', "no readable 'weight_map'"),
        (json.dumps({"weight_map": {"a": "../other.safetensors"}}), "leaves its model folder"),
        (json.dumps({"weight_map": {"a": "sub/other.safetensors"}}), "outside of its folder"),
    ],
)
def test_a_bad_index(checkpoint, folder, text, message):
    index_of(folder).write_text(text)
    with pytest.raises(ValueError, match=message):
        checkpoint.open_checkpoint(folder)


def test_a_pickle_as_a_shard_is_never_opened(checkpoint, folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    shard = sorted(folder.glob("*-00001-of-*"))[0]
    torch.save({"a": Payload()}, shard)
    with pytest.raises(ValueError, match="is a Python pickle"):
        checkpoint.open_checkpoint(folder)
    assert not (tmp_path / "was_run").exists()
    torch.save({"a": Payload()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="needs unpickling, which can run code"):
        checkpoint.open_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "was_run").exists()


def test_folders_without_one_model(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="should hold one model in safetensors files; found: none"):
        checkpoint.open_checkpoint(tmp_path / "empty")
    for name in ("a", "b"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "empty" / f"{name}.safetensors")
    with pytest.raises(ValueError, match="found: a.safetensors, b.safetensors. Choose the file itself"):
        checkpoint.open_checkpoint(tmp_path / "empty")
    with pytest.raises(ValueError, match="'empty/config.json' is not valid JSON"):
        (tmp_path / "empty" / "config.json").write_text("{")
        checkpoint.open_checkpoint(tmp_path / "empty" / "a.safetensors")


def test_the_half_precision_variant_beside_it_is_not_in_the_way(checkpoint, tmp_path):
    folder = tiny_families.write(tmp_path / "transformer", "wan-t2v", "diffusers")
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert checkpoint.open_checkpoint(folder).path.name == "diffusion_pytorch_model.safetensors"


def test_shards_of_two_precisions_in_one_folder(checkpoint, folder):
    """diffusers' save_pretrained(variant="fp16") beside the plain one: each part finds its own index."""
    stem = "diffusion_pytorch_model"
    data = json.loads(index_of(folder).read_text())
    data["weight_map"] = {k: name.replace(stem, f"{stem}.fp16") for k, name in data["weight_map"].items()}
    (folder / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(data))
    for shard in sorted(folder.glob("*.safetensors")):
        half = {name: tensor.half() for name, tensor in safetensors.torch.load_file(shard).items()}
        safetensors.torch.save_file(half, folder / shard.name.replace(stem, f"{stem}.fp16"))
    for path in (folder, next(folder.glob(f"{stem}-00002-of-*"))):
        assert checkpoint.open_checkpoint(path).dtype == torch.float32
    assert checkpoint.open_checkpoint(next(folder.glob(f"{stem}.fp16-00002-of-*"))).dtype == torch.float16


def test_nan_is_looked_for_in_three_places_of_a_large_tensor(checkpoint):
    size = 6 << 20
    for place in (0, size // 2 + 10, size - 1):
        tensor = torch.zeros(size, dtype=torch.float16)
        tensor[place] = float("nan")
        with pytest.raises(ValueError, match="first: big"):
            checkpoint.check_finite({"fine": torch.zeros(3), "big": tensor.reshape(2, -1)}, "m")
    checkpoint.check_finite({"big": torch.zeros(size, dtype=torch.bfloat16), "whole": torch.ones(2, dtype=int)}, "m")
