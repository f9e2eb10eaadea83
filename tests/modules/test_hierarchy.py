"""The three levels: what each may see, and what must not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idcrafter.modules.hierarchy import IdentityHierarchy, Levels, photo_mean

WIDTH, CONTEXT = 16, 12


@pytest.fixture(scope="module")
def hierarchy():
    torch.manual_seed(3)
    net = IdentityHierarchy(nn, WIDTH, 4, CONTEXT, depth=2).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)
    return net


def case(subjects, photos, seed=0, tokens=3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn((1, subjects, photos, tokens, WIDTH), generator=generator),
        torch.ones(1, subjects, photos),
        torch.randn((1, 5, CONTEXT), generator=generator),
    )


def test_zero_gates_change_nothing():
    net = IdentityHierarchy(nn, WIDTH, 4, CONTEXT, depth=2)
    for name, parameter in net.named_parameters():
        if name.endswith("gate"):
            nn.init.zeros_(parameter)
    tokens, photos, context = case(2, 3)
    for stage in net(tokens, photos, context):
        assert torch.equal(stage, photo_mean(tokens, photos > 0))


def test_levels_see_what_they_are_for(hierarchy):
    tokens, photos, context = case(3, 2)
    other = tokens.clone()
    other[:, 1] = other[:, 1].flip(-1)  # another second subject

    def changed(levels, tokens=tokens, context=context):
        base = hierarchy(case(3, 2)[0], photos, case(3, 2)[2], levels=levels)[-1]
        return (hierarchy(tokens, photos, context, levels=levels)[-1] - base).abs().amax(dim=(0, 2, 3)) > 1e-6

    assert changed(Levels(1, 0, 0), tokens=other).tolist() == [False, True, False]
    assert changed(Levels(0, 1, 0), tokens=other).tolist() == [True, True, True]
    assert changed(Levels(0, 0, 1), tokens=other).tolist() == [False, True, False]
    assert changed(Levels(1, 1, 0), context=context + 1).tolist() == [False, False, False]
    assert changed(Levels(0, 0, 1), context=context.flip(-1)).tolist() == [True, True, True]


def test_levels_off_are_off(hierarchy):
    tokens, photos, context = case(2, 2)
    stages = hierarchy(tokens, photos, context, levels=Levels(0, 0, 0))
    assert len(stages) == 2 and all(torch.equal(stage, photo_mean(tokens, photos > 0)) for stage in stages)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2), st.integers(0, 99), st.randoms())
def test_order_padding_and_batch_do_not_matter(hierarchy, subjects, photos, more, extra, seed, random):
    tokens, exist, context = case(subjects, photos, seed)
    context_keys = torch.tensor([[True, True, True, False, True]])
    alone = hierarchy(tokens, exist, context, context_keys)
    order, shuffled = random.sample(range(subjects), subjects), random.sample(range(photos), photos)

    padded = torch.full((1, subjects + more, photos + extra, 3, WIDTH), 7.0)
    padded[:, :subjects, :photos] = tokens[:, order][:, :, shuffled]
    mask = torch.zeros(1, subjects + more, photos + extra)
    mask[:, :subjects, :photos] = 1
    hidden = context.clone()
    hidden[:, 3] = 100.0  # what is masked can't be seen
    both = hierarchy(
        torch.cat([padded, padded]),
        torch.cat([mask, torch.zeros_like(mask)]),
        torch.cat([hidden, hidden]),
        context_keys.expand(2, -1),
    )
    for stage, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(stage[:1, :subjects], expected[:, order], atol=2e-5, rtol=0)
        assert stage.isfinite().all()


def test_more_photos_are_one_subject(hierarchy):
    """The same photo twice says no more than once."""
    tokens, photos, context = case(2, 1)
    twice = hierarchy(tokens.repeat(1, 1, 2, 1, 1), photos.repeat(1, 1, 2), context)[-1]
    torch.testing.assert_close(twice, hierarchy(tokens, photos, context)[-1], atol=1e-5, rtol=0)
