"""The router and the insertion against Ingredients' own code (numbers), diffusers' module, and the formulas."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idcrafter.modules.id_router import IDRouter, route
from idcrafter.modules.insertion import BlockIdentity, PerceiverCrossAttention, block_identity, insert
from support import ingredients_weights as reference

PUBLISHED = json.loads((Path(__file__).parent / "data" / "ingredients_insertion.json").read_text("utf-8"))


def seeded(module: nn.Module, seed: int) -> nn.Module:
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    module.load_state_dict(reference.seeded(shapes, seed))
    return module.eval().requires_grad_(False)


def parts(width, id_width, tokens, heads, head_width, null=False):
    attention = PerceiverCrossAttention(nn, width, id_width, heads, head_width)
    return seeded(attention, 1), seeded(IDRouter(nn, width, id_width, tokens, null), 2)


def small(null=False):
    return parts(16, 12, 3, 2, 4, null)


def test_equals_the_numbers_of_the_reference():
    attention, router = parts(
        reference.WIDTH, reference.ID_WIDTH, reference.TOKENS, reference.HEADS, reference.HEAD_WIDTH
    )
    tokens, hidden = reference.inputs()
    identity = block_identity(attention, router, tokens[None], torch.ones(1, reference.SUBJECTS))
    residual, weights, logits = insert(attention, router, hidden, identity)
    torch.testing.assert_close(logits[0], torch.tensor(PUBLISHED["logits"]), atol=2e-5, rtol=5e-6)
    torch.testing.assert_close(residual[0], torch.tensor(PUBLISHED["residual"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, reference.LENGTH))


@pytest.mark.parametrize("shape", [(16, 12, 2, 4, 3, 5), (48, 32, 4, 16, 1, 9), (24, 40, 3, 8, 7, 2)])
def test_cross_attention_equals_diffusers(shape):
    from diffusers.models.transformers.consisid_transformer_3d import PerceiverCrossAttention as Theirs

    width, id_width, heads, head_width, tokens, length = shape
    torch.manual_seed(sum(shape))
    theirs = Theirs(width, head_width, heads, id_width).eval()
    ours = PerceiverCrossAttention(nn, width, id_width, heads, head_width)
    ours.load_state_dict(theirs.state_dict())
    faces, hidden = torch.randn(2, tokens, id_width), torch.randn(2, length, width)
    with torch.inference_mode():
        torch.testing.assert_close(ours(faces, hidden), theirs(faces, hidden), atol=1e-5, rtol=0)


def test_is_the_sum_of_the_subjects_by_weight():
    attention, router = small()
    tokens, hidden = torch.randn(2, 3, 3, 12), torch.randn(2, 5, 16)
    residual, weights, _ = insert(
        attention, router, hidden, block_identity(attention, router, tokens, torch.ones(2, 3)), 0.7
    )
    expected = sum(weights[:, :, n, None] * attention(tokens[:, n], hidden) for n in range(3))
    torch.testing.assert_close(residual, expected, atol=1e-5, rtol=0)
    keys = torch.stack([router.to_kv(router.id_merge.weight[0] @ router.norm1(tokens[0, n])) for n in range(3)])
    logits = router.to_q(router.norm2(hidden[0])) @ keys.T
    torch.testing.assert_close(weights[0], (logits / 0.7).softmax(-1), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 3), st.booleans(), st.integers(0, 2**16), st.randoms())
def test_order_padding_and_batch_do_not_matter(subjects, padding, null, seed, random):
    attention, router = small(null)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn((1, subjects, 3, 12), generator=generator)
    hidden = torch.randn((1, 4, 16), generator=generator)
    here = torch.ones(1, subjects)
    alone, weights, _ = insert(attention, router, hidden, block_identity(attention, router, tokens, here))

    order = random.sample(range(subjects), subjects)
    padded = torch.cat([tokens[:, order], torch.randn((1, padding, 3, 12), generator=generator)], dim=1)
    present = torch.cat([here, torch.zeros(1, padding)], dim=1)
    # In one batch with a row without subjects, as CFG sends it.
    batch = block_identity(
        attention, router, torch.cat([padded, padded]), torch.cat([present, torch.zeros_like(present)])
    )
    residual, shares, _ = insert(attention, router, torch.cat([hidden, hidden]), batch)
    torch.testing.assert_close(residual[:1], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(shares[:1, :, :subjects], weights[:, :, order], atol=1e-5, rtol=0)
    assert not residual[1].any() and not shares[1].any() and not shares[0, :, subjects:].any()


def test_the_null_identity_takes_its_share_and_brings_nothing():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, -9.0], [0.0, 0.0, 50.0]]])
    weights = route(logits, torch.ones(1, 2))
    torch.testing.assert_close(weights[0, 0], torch.full((2,), 1 / 3))
    assert weights[0, 1, 0] > 0.99 and weights[0, 2].sum() < 1e-6


def test_temperature_sharpens():
    logits = torch.tensor([[[1.0, 0.0]]])
    here = torch.ones(1, 2)
    assert route(logits, here, 0.1)[0, 0, 0] > 0.99 > route(logits, here)[0, 0, 0] > route(logits, here, 10)[0, 0, 0]


def test_without_a_router_everybody_counts_the_same():
    attention, _ = small()
    tokens, hidden = torch.randn(1, 3, 3, 12), torch.randn(1, 4, 16)
    identity = block_identity(attention, None, tokens, torch.tensor([[1.0, 0.0, 1.0]]))
    residual, weights, logits = insert(attention, None, hidden, identity)
    assert logits is None and weights[0, 0].tolist() == [0.5, 0.0, 0.5]
    expected = (attention(tokens[:, 0], hidden) + attention(tokens[:, 2], hidden)) / 2
    torch.testing.assert_close(residual, expected, atol=1e-5, rtol=0)


def test_a_run_needs_the_faces_only_once():
    """What a block keeps of them gives the same with other video tokens later on, and no gradient is asked for."""
    attention, router = small()
    tokens = torch.randn(1, 2, 3, 12)
    identity = block_identity(attention, router, tokens, torch.ones(1, 2))
    assert isinstance(identity, BlockIdentity)
    for _ in range(2):
        hidden = torch.randn(1, 4, 16)
        fresh = block_identity(attention, router, tokens, torch.ones(1, 2))
        assert torch.equal(insert(attention, router, hidden, identity)[0], insert(attention, router, hidden, fresh)[0])
