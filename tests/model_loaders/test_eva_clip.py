"""EVA02-CLIP's file as released -> the image encoder of faces."""

import numpy as np
import pytest
import torch

from idcrafter.modules.eva02 import EvaConfig, EvaTower
from idcrafter.subjects.face_features import clip_pixels
from support import tiny_adapters


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.eva_clip")


def crops(count=3):
    return list(np.random.default_rng(0).integers(0, 256, (count, 512, 512, 3), np.uint8))


@pytest.mark.parametrize("name", ["EVA02_CLIP_L_336_psz14_s6B.pt", "eva.safetensors"])
def test_the_released_file_gives_the_tower(loader, tmp_path, name):
    """The text tower and the rotary tables of the file are not needed."""
    path = tiny_adapters.write_eva(tmp_path / name)
    embedding, maps = loader.load_eva(path)(crops())
    tower = EvaTower(EvaConfig(**tiny_adapters.EVA), torch.nn).eval()
    if path.suffix == ".pt":
        saved = torch.load(path, weights_only=True)
    else:
        import safetensors.torch

        saved = safetensors.torch.load_file(path)
    own = {name.removeprefix("visual."): tensor for name, tensor in saved.items() if name.startswith("visual.")}
    tower.load_state_dict({name: tensor for name, tensor in own.items() if "rope" not in name})
    with torch.inference_mode():
        expected, hidden = tower(clip_pixels(crops(), 28))
    torch.testing.assert_close(embedding, expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    assert len(maps) == 5
    for found, each in zip(maps, hidden, strict=True):
        torch.testing.assert_close(found, each, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def drop(end):
    return lambda found: [found.pop(name) for name in list(found) if name.endswith(end)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("blocks.3.mlp.w2.bias"), "1 of its 449 tensors are missing"),
        (drop("pos_embed"), "the tensor 'pos_embed' of an EVA02-CLIP image tower is missing"),
        (lambda found: found["visual.norm.weight"].fill_(float("inf")), "NaN or infinite"),
        (lambda found: found.update({"visual.gate": torch.zeros(1)}), "1 tensors that such a model does not have"),
        (
            lambda found: [found.pop(n) for n in list(found) if n.startswith("visual.blocks.20.")],
            "has 20 blocks, too few",
        ),
    ],
)
def test_other_files_are_refused(loader, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        loader.load_eva(tiny_adapters.write_eva(tmp_path / "eva.safetensors", edit))
