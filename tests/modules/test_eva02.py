"""EVA02-CLIP's image tower against the public code (numbers) and the released layout."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from idcrafter.modules.eva02 import EvaConfig, EvaTower, config_of, rotary, rotate
from support import ingredients_weights as reference

PUBLISHED = json.loads((Path(__file__).parent / "data" / "eva02_tower.json").read_text("utf-8"))
TINY = EvaConfig(image=56, width=128, depth=22, heads=2, inner=341, out_width=12)


def shapes(config):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in EvaTower(config, nn).state_dict().items()}


def test_equals_the_numbers_of_the_public_code():
    tower = EvaTower(TINY, nn)
    tower.load_state_dict(reference.seeded(shapes(TINY), 11))
    pictures = torch.randn((2, 3, 56, 56), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        embedding, maps = tower(pictures)
    torch.testing.assert_close(embedding, torch.tensor(PUBLISHED["embedding"]), atol=1e-4, rtol=0)
    assert len(maps) == 5 and all(each.shape == (2, 17, 128) for each in maps)
    found = torch.stack(maps)[:, 1][:, [0, 3, 16], :6]
    torch.testing.assert_close(found, torch.tensor(PUBLISHED["maps"]), atol=1e-4, rtol=0)


def test_released_layout():
    """feizc/Ingredients and QuanSun/EVA-CLIP: 304 M parameters, 24 blocks of 21 tensors."""
    table = shapes(EvaConfig())
    assert len(table) == 24 * 21 + 8
    assert sum(prod(shape) for shape in table.values()) == 304_432_832
    assert table["pos_embed"] == (1, 577, 1024) and table["patch_embed.proj.weight"] == (1024, 3, 14, 14)
    assert table["blocks.23.mlp.w3.weight"] == (1024, 2730) and table["head.weight"] == (768, 1024)
    assert table["blocks.0.attn.q_bias"] == (1024,) and "blocks.0.attn.k_bias" not in table


def test_sizes_are_read_from_the_tensors():
    assert config_of(shapes(EvaConfig())) == EvaConfig() and config_of(shapes(TINY)) == TINY
    with pytest.raises(ValueError, match="'head.weight'"):
        config_of({name: shape for name, shape in shapes(TINY).items() if name != "head.weight"})


def test_rotation_keeps_lengths_and_the_class_token():
    x = torch.randn(2, 10, 16)
    turned = rotate(x, 2, *rotary(3, 8))
    assert torch.equal(turned[:, 0], x[:, 0]) and torch.equal(turned[:, 1], x[:, 1])  # the first patch is at 0, 0
    assert not torch.allclose(turned[:, 2], x[:, 2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
