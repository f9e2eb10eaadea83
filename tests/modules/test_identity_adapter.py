"""The adapter as a whole: the released layout, its description, and a start that changes nothing."""

import json
from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from idcrafter.modules.hierarchy import Levels
from idcrafter.modules.identity_adapter import INGREDIENTS, AdapterConfig, IdentityAdapter, initialise, layout
from idcrafter.modules.insertion import insert

TINY = AdapterConfig(
    "wan",
    width=16,
    blocks=5,
    id_width=8,
    visual_width=6,
    scales=1,
    extractor_width=8,
    extractor_depth=1,
    extractor_heads=2,
    extractor_head_width=4,
    tokens=4,
    id_tokens=2,
    token_width=12,
    heads=2,
    head_width=4,
    null=True,
    hierarchy=2,
    hierarchy_heads=3,
    context_width=10,
    reference_heads=2,
)


def test_released_ingredients_layout():
    shapes = layout(INGREDIENTS)
    parts = Counter(name.split(".")[0] for name in shapes)
    assert parts == {"local_facial_extractor": 172, "perceiver_cross_attention": 147, "router": 147}
    size = {part: sum(prod(s) for name, s in shapes.items() if name.split(".")[0] == part) for part in parts}
    assert size == {
        "local_facial_extractor": 151_398_400,
        "perceiver_cross_attention": 21 * 20_981_760,
        "router": 21 * 10_496_032,
    }
    assert shapes["local_facial_extractor.id_embedding_mapping.6.weight"] == (5120, 1024)
    assert shapes["local_facial_extractor.layers.9.0.to_kv.weight"] == (2048, 1024)
    assert shapes["perceiver_cross_attention.20.to_kv.weight"] == (4096, 2048)
    assert shapes["router.20.id_merge.weight"] == (1, 32)


def test_insertions_come_after_every_second_block():
    assert INGREDIENTS.after == tuple(range(0, 41, 2)) and TINY.after == (0, 2, 4)


def test_description_survives_the_file():
    assert AdapterConfig.loads(TINY.dumps()) == TINY


@pytest.mark.parametrize(
    "text, says",
    [
        ("no json", "not the description"),
        ("[1]", "not the description"),
        ("{}", "not the description"),
        (json.dumps({"backbone": "wan", "width": 8, "blocks": 2, "colour": 1}), "unknown entries colour"),
        (json.dumps({"backbone": "wan", "width": "8", "blocks": 2}), "whole numbers"),
        (json.dumps({"backbone": "unet", "width": 8, "blocks": 2}), "backbone is 'unet'"),
    ],
)
def test_bad_descriptions_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        AdapterConfig.loads(text)


def test_a_new_adapter_is_reproducible_and_changes_nothing():
    first, second = IdentityAdapter(TINY, nn), IdentityAdapter(TINY, nn)
    initialise(first, 5)
    initialise(second, 5)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]) and tensor.isfinite().all(), name
    faces = first.local_facial_extractor(torch.randn(6, 8), [torch.randn(6, 3, 6)]).unflatten(0, (1, 3, 2))
    identities = first.identities(faces, torch.ones(1, 3, 2), torch.randn(1, 7, 10))
    assert len(identities) == 3
    hidden = torch.randn(1, 9, 16)
    for attention, router, identity in zip(first.perceiver_cross_attention, first.router, identities, strict=True):
        residual, weights, _ = insert(attention, router, hidden, identity)
        assert not residual.any() and weights.std() > 0
    assert not first.reference_gates.any()


def test_stages_of_the_hierarchy_serve_the_blocks_in_order():
    adapter = IdentityAdapter(TINY, nn)
    initialise(adapter, 1)
    for name, parameter in adapter.named_parameters():
        if name.endswith("gate"):
            nn.init.ones_(parameter)
    tokens, context = torch.randn(1, 2, 1, 4, 12), torch.randn(1, 7, 10)
    stages = adapter.hierarchy(tokens, torch.ones(1, 2, 1), context)
    identities = adapter.identities(tokens, torch.ones(1, 2, 1), context)
    for identity, attention, stage in zip(identities, adapter.perceiver_cross_attention, (0, 0, 1), strict=True):
        torch.testing.assert_close(identity.keys, attention.keys_values(stages[stage])[0])
    plain = adapter.identities(tokens, torch.ones(1, 2, 1), context, levels=Levels(0, 0, 0))
    assert not torch.allclose(plain[2].keys, identities[2].keys)


@pytest.mark.parametrize("order", [0, 3])
def test_only_an_adapter_that_counts_knows_who_is_first(order):
    adapter = IdentityAdapter(replace(TINY, order=order), nn)
    initialise(adapter, 3)
    for each in adapter.router:
        nn.init.normal_(each.to_kv.weight)
    tokens, context = torch.randn(1, 2, 1, 4, 12), torch.randn(1, 7, 10)
    photos = torch.ones(1, 2, 1)
    for here, there in zip(
        adapter.identities(tokens, photos, context), adapter.identities(tokens.flip(1), photos, context), strict=True
    ):
        for kind in ("keys", "values"):
            same = torch.allclose(getattr(here, kind), getattr(there, kind).flip(1), atol=1e-5)
            assert same == (order == 0), kind
        assert torch.allclose(here.router[:, :2], there.router[:, :2].flip(1), atol=1e-5) == (order == 0)
    twins = adapter.identities(tokens[:, :1].expand(-1, 2, -1, -1, -1), photos, context)[0]
    assert torch.allclose(twins.keys[:, 0], twins.keys[:, 1], atol=1e-5) == (order == 0)


def test_every_parameter_learns():
    """After one step away from the zeros, a gradient reaches each tensor."""
    adapter = IdentityAdapter(replace(TINY, order=2), nn)
    initialise(adapter, 2)
    for name, parameter in adapter.named_parameters():
        if not parameter.any() and not name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    faces = adapter.local_facial_extractor(torch.randn(4, 8), [torch.randn(4, 3, 6)]).unflatten(0, (1, 2, 2))
    identities = adapter.identities(faces, torch.ones(1, 2, 2), torch.randn(1, 7, 10))
    loss = adapter.reference_gates.sum()
    for attention, router, identity in zip(adapter.perceiver_cross_attention, adapter.router, identities, strict=True):
        loss = loss + insert(attention, router, torch.randn(1, 9, 16), identity)[0].square().sum()
    loss.backward()
    missing = [
        name for name, parameter in adapter.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert missing == []
