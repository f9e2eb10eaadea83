"""Grouped attention against attention with a dense mask, its gradients, and the memory that it takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.modules import region_attention
from idcrafter.modules.region_attention import QueryGroup, grouped_attention, query_groups
from support import wan_regions
from support.dense_attention import attend_with, visibility
from support.wan_regions import FULL, peak_of


def consecutive(start, lengths):
    ranges = []
    for length in lengths:
        ranges.append(range(start, start + length))
        start += length
    return ranges


@st.composite
def cases(draw):
    subjects = draw(st.integers(1, 4))
    bound = sorted(draw(st.sets(st.integers(0, subjects - 1), min_size=1)))
    owners = draw(st.lists(st.one_of(st.none(), st.integers(0, subjects - 1)), min_size=1, max_size=6))
    lengths = draw(st.lists(st.integers(1, 5), min_size=len(owners), max_size=len(owners)))
    video_start, count, gap = draw(st.integers(0, 3)), draw(st.integers(1, 24)), draw(st.integers(0, 2))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    regions = torch.rand((len(bound), count), generator=generator) < share
    references = consecutive(video_start + count + gap, lengths)
    return regions, bound, owners, video_start, references, draw(st.booleans()), generator


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([1.0, 0.4, 0.0]), st.integers(1, 40))
def test_equals_the_dense_mask(case, batch, heads, strength, chunk):
    regions, bound, owners, video_start, references, outside_sees_all, generator = case
    total = references[-1].stop
    q, k, v = (torch.randn((batch, total, heads * 8), generator=generator) for _ in range(3))
    groups = query_groups(regions, bound, owners, video_start, references, total, outside_sees_all)
    assert torch.cat([group.queries for group in groups]).sort().values.equal(torch.arange(total))
    before = k.clone(), v.clone()
    result = grouped_attention(attend_with(heads), q, k, v, groups, references, strength, chunk)
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])

    mask = visibility(regions, bound, owners, video_start, references, total, outside_sees_all)
    expected = attend_with(heads, mask)(q, k, v)
    if strength < 1:
        expected = torch.lerp(attend_with(heads)(q, k, v), expected, strength)
    assert (result - expected).abs().max() <= 1e-5


def test_strength_is_the_share_of_weight_that_is_taken_away():
    """Read off the attention weights themselves: with the identity as values, the result is the weights."""
    total, references = 8, consecutive(4, [2, 2])
    q, k = torch.randn((2, 1, total, total), generator=torch.Generator().manual_seed(0))
    regions = torch.eye(2).repeat(1, 2).bool()
    groups = query_groups(regions, [0, 1], [0, 1], 0, references, total, True)
    values = torch.eye(total)[None]
    free = grouped_attention(attend_with(1), q, k, values.clone(), groups, references, 0.0)[0, 0]
    bound = grouped_attention(attend_with(1), q, k, values.clone(), groups, references, 0.3)[0, 0]
    assert torch.allclose(bound[6:], 0.7 * free[6:], atol=1e-6)  # token 0 stands in the region of subject 0
    grown = bound[:6] / free[:6]
    assert torch.allclose(grown, grown[:1].expand(6), atol=1e-5) and bool((grown > 1).all())
    assert torch.isclose(bound.sum(), torch.tensor(1.0))


def test_a_kernel_that_fails_leaves_the_keys_as_they_were():
    references = consecutive(3, [2, 2])
    q, k, v = (torch.randn((1, 7, 4)) for _ in range(3))
    before = k.clone(), v.clone()

    def attend(q, k, v):
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        grouped_attention(attend, q, k, v, [QueryGroup(torch.arange(7), (1,))], references)
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_gradients_equal_the_dense_masks(strength):
    references, total = consecutive(6, [2, 3, 1]), 12
    regions = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    arguments = (regions, [0, 1], [0, 1, 0], 0, references, total, False)
    inputs = [torch.randn((2, total, 8), dtype=torch.float64) for _ in range(3)]
    gradients = []
    for kind in ("grouped", "dense"):
        q, k, v = leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        q, k, v = (tensor * 1.0 for tensor in (q, k, v))  # as a model's own are: no leaves
        if kind == "grouped":
            out = grouped_attention(attend_with(2), q, k, v, query_groups(*arguments), references, strength)
        else:
            mask = visibility(*arguments)
            out = torch.lerp(attend_with(2)(q, k, v), attend_with(2, mask)(q, k, v), strength)
        out.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-10


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", wan_regions.KINDS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_extra_memory_at_wans_size_is_a_twentieth_of_a_masks(kind, strength):
    total, references = FULL.total, FULL.references
    groups = query_groups(FULL.regions(kind), range(4), range(4), 0, references, total, True)
    meta_groups = [group.to(torch.device("meta")) for group in groups]
    # References that are moved at once, at most.
    moved = max(len(group.sees) for group in groups)

    def bound(attend, q, k, v):
        return grouped_attention(attend, q, k, v, meta_groups, references, strength)

    for dtype, batch in ((torch.bfloat16, 1), (torch.bfloat16, 3)):
        extra = peak_of(bound, dtype, batch) - peak_of(unbound, dtype, batch)
        extra += sum(group.queries.numel() * 8 for group in groups)
        chunk = max(region_attention.MIN_CHUNK, total // 8)
        # The chunk of queries and its result (and, when blended, what it is blended with and into), the references,
        # and the index of every token.
        tokens = chunk * (2 if strength == 1 else 4) + 2 * FULL.frame * moved
        assert 0 < extra <= batch * wan_regions.WIDTH * dtype.itemsize * tokens + total * 8
        assert total == 39000 and extra < 0.05 * total**2 * batch  # a mask of one byte a pair, for each row


def unbound(attend, q, k, v):
    return attend(q, k, v)


def test_the_accounting_sees_a_dense_mask():
    def masked(attend, q, k, v):
        mask = torch.empty((q.shape[1], k.shape[1]), dtype=torch.bool, device="meta")
        return attend(q, k + mask.sum() * 0, v)

    plain = peak_of(unbound, torch.bfloat16, 1)
    assert plain == 39000 * wan_regions.WIDTH * 2
    assert peak_of(masked, torch.bfloat16, 1) - plain >= 39000**2
