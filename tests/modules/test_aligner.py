"""The aligner and BindWeave's projector: published sizes, what padding must not change, a description that lasts."""

import json
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from idcrafter.modules.aligner import (
    BINDWEAVE,
    Aligner,
    AlignerConfig,
    Projector,
    Reading,
    aligner_layout,
    initialise,
    join,
    projector_layout,
)

TINY = AlignerConfig(10, 6, tokens=5, latent_width=12, width=8, heads=2, depth=2, reading=Reading(-2, side=64))


@pytest.fixture
def aligner():
    net = Aligner(TINY, nn).eval().requires_grad_(False)
    initialise(net, 4)
    return net


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_sizes_are_those_of_cinema():
    """For Qwen2-VL-7B (3584) and T5-XXL (4096): 226 latents of 2048, 6 layers of attention with 8 heads, 768 wide."""
    shapes = aligner_layout(AlignerConfig(3584, 4096))
    assert shapes["latents"] == (226, 2048)
    assert shapes["proj_in.weight"] == (2048, 3584) and shapes["proj_out.weight"] == (4096, 2048)
    assert {name.split(".")[1] for name in shapes if name.startswith("layers.")} == set("012345")
    layer = {name.removeprefix("layers.5."): tuple(shape) for name, shape in shapes.items() if "layers.5." in name}
    assert layer == {
        "attention.norm1.weight": (2048,),
        "attention.norm1.bias": (2048,),
        "attention.norm2.weight": (2048,),
        "attention.norm2.bias": (2048,),
        "attention.to_q.weight": (768, 2048),
        "attention.to_kv.weight": (1536, 2048),
        "attention.to_out.weight": (2048, 768),
        "feed_forward.0.weight": (2048,),
        "feed_forward.0.bias": (2048,),
        "feed_forward.1.weight": (3072, 2048),
        "feed_forward.1.bias": (3072,),
        "feed_forward.3.weight": (2048, 3072),
        "feed_forward.3.bias": (2048,),
    }
    assert sum(prod(shape) for shape in shapes.values()) == 129_559_552
    with torch.device("meta"):
        net = Aligner(AlignerConfig(3584, 4096), nn)
        assert net.layers[0]["attention"].heads == 8
        tokens, keys = net(torch.empty(2, 526, 3584), torch.ones(2, 526, dtype=torch.bool))
    assert tokens.shape == (2, 226, 4096) and keys.shape == (2, 226)


def test_the_sizes_of_bindweaves_projector():
    """Qwen2.5-VL-7B's 3584 to UMT5-XXL's 4096, with biases."""
    assert {name: tuple(shape) for name, shape in projector_layout().items()} == {
        "linear_1.weight": (4096, 3584),
        "linear_1.bias": (4096,),
        "linear_2.weight": (4096, 4096),
        "linear_2.bias": (4096,),
    }
    assert (BINDWEAVE.layer, BINDWEAVE.instruction, BINDWEAVE.pictures, BINDWEAVE.use) == (
        -1,
        "{prompt}",
        "after",
        "prepend",
    )


@pytest.mark.parametrize("kind", ["aligner", "projector"])
def test_padding_changes_nothing(aligner, kind):
    net = aligner if kind == "aligner" else Projector(10, 6, nn).requires_grad_(False)
    states = noise(1, 4, 10)
    tokens, kept = net(states, torch.ones(1, 4, dtype=torch.bool))
    without, _ = net(states)
    assert kept.all() and torch.equal(without, tokens)
    for seed in (1, 2):
        padded = torch.cat([1e4 * noise(1, 2, 10, seed=seed), states, 1e4 * noise(1, 3, 10, seed=seed + 5)], dim=1)
        keys = torch.tensor([[False] * 2 + [True] * 4 + [False] * 3])
        longer, kept = net(padded, keys)
        torch.testing.assert_close(longer[kept], tokens[0], rtol=1e-5, atol=1e-5)
        assert not longer[~kept].any()
        # In a batch beside a longer request each row is what it is alone.
        both, _ = net(torch.cat([padded, noise(1, 9, 10, seed=9)]), torch.cat([keys, torch.ones_like(keys)]))
        torch.testing.assert_close(both[:1], longer, rtol=1e-5, atol=1e-5)


def test_the_aligner_reads_every_state_and_each_latent_its_own_way(aligner):
    states = noise(1, 4, 10).requires_grad_()
    tokens, _ = aligner(states)
    tokens.square().sum().backward()
    assert (states.grad[0].abs().sum(dim=1) > 1e-3).all()
    assert torch.cdist(tokens.detach()[0], tokens.detach()[0]).fill_diagonal_(1).min() > 0.1
    shuffled, _ = aligner(states.detach()[:, [2, 0, 3, 1]])
    # Where a state comes from is in the state, not in its place.
    torch.testing.assert_close(shuffled, tokens.detach(), rtol=1e-4, atol=1e-4)


def test_no_states_at_all_are_no_error(aligner):
    nothing, _ = aligner(noise(1, 3, 10), torch.zeros(1, 3, dtype=torch.bool))
    also, _ = aligner(noise(1, 7, 10, seed=3), torch.zeros(1, 7, dtype=torch.bool))
    torch.testing.assert_close(nothing, also)
    assert nothing.isfinite().all()


def test_the_projector_is_two_layers_with_tanh_gelu():
    net = Projector(10, 6, nn)
    x = noise(1, 3, 10)
    hidden = x @ net.linear_1.weight.T + net.linear_1.bias
    bent = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(net(x)[0], bent @ net.linear_2.weight.T + net.linear_2.bias)


def test_a_start_is_the_same_everywhere_and_differs_by_seed(aligner):
    other, again = Aligner(TINY, nn), Aligner(TINY, nn)
    initialise(again, 4)
    initialise(other, 5)
    for name, tensor in aligner.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert tensor.ndim == 1 or not torch.equal(other.state_dict()[name], tensor)


def test_join():
    text, tokens = noise(1, 2, 3), noise(1, 4, 3, seed=1)
    assert torch.equal(join(text, tokens, "replace"), tokens)
    assert torch.equal(join(text, tokens, "append")[:, :2], text) and join(text, tokens, "append").shape[1] == 6
    assert torch.equal(join(text, tokens, "prepend")[:, 4:], text)


def test_description_survives_the_file():
    for config in (TINY, replace(TINY, reading=Reading(pictures="relate", answer=9, span=2, names=("Ada", "Bo")))):
        assert AlignerConfig.loads(config.dumps()) == config
    least = AlignerConfig.loads('{"in_width": 8, "out_width": 4}')
    assert least == AlignerConfig(8, 4) and least.reading == Reading()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": 3}, "unknown entries color"),
        ({"in_width": None}, "whole numbers"),
        ({"depth": 0}, "whole numbers of at least 1"),
        ({"tokens": True}, "whole numbers"),
        ({"heads": 3}, "8 can't be shared out to 3 heads"),
        ({"reading": {"size": 3}}, "unknown entries size"),
        ({"reading": {"layer": 0}}, "reads layer 0"),
        ({"reading": {"instruction": "Say no."}}, "with {prompt} in it"),
        ({"reading": {"pictures": "around"}}, "'around' the text"),
        ({"reading": {"use": "burn"}}, "used as 'burn'"),
        ({"reading": {"answer": -1}}, "an answer of -1 tokens"),
        ({"reading": {"answer": True}}, "an answer of True tokens"),
        ({"reading": {"span": 0}}, "whole numbers of at least 1"),
        ({"reading": {"names": ["A", "A"]}}, "must be different words"),
        ({"reading": {"names": ["A", 3]}}, "must be different words"),
        ({"reading": 7}, "not the description of an aligner"),
    ],
)
def test_descriptions_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        AlignerConfig.loads(json.dumps({**json.loads(TINY.dumps()), **changes}))


@pytest.mark.parametrize("text", ["", "7", "[]", '{"in_width": 4}'])
def test_texts_that_describe_nothing(text):
    with pytest.raises(ValueError, match="not the description of an aligner"):
        AlignerConfig.loads(text)
