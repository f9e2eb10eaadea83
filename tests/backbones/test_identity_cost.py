"""What an adapter costs at the released sizes, counted on the meta device over two blocks and one insertion."""

import pytest
import torch

from support import full_size
from support.full_size import WAN_1_3B, WAN_14B

META, DTYPE = torch.device("meta"), torch.bfloat16
BLOCKS = 2
SIZES = {"1.3B": WAN_1_3B.shortened(BLOCKS, WAN_1_3B.latent), "14B": WAN_14B.shortened(BLOCKS, WAN_14B.latent)}


@pytest.fixture(params=SIZES)
def size(request):
    return SIZES[request.param]


@pytest.fixture
def both(pack, size):
    """For so many references and subjects: (MODEL, CONDITIONING) with the adapter and without, and its config."""
    lib = pack.submodule("idcrafter.modules.identity_adapter")

    def both(references=0, subjects=3):
        config = full_size.adapter_config(lib, size)
        model = full_size.model_of(size, DTYPE, META)
        positive = full_size.positive_of(size, DTYPE, META, references)
        adapter = full_size.adapter_of(pack, config, DTYPE, META)
        return full_size.injected(pack, model, adapter, positive, subjects), (model, positive), config

    return both


def flops_of_blocks(size, tokens):
    d, inner, text = size.config["dim"], size.config["ffn_dim"], size.text
    attention = 8 * tokens * d * d + 4 * tokens**2 * d
    cross_attention = 4 * (tokens + text) * d * d + 4 * tokens * text * d
    return BLOCKS * (attention + cross_attention + 4 * tokens * d * inner)


def flops_of_insertion(size, config, subjects):
    """One projection in and one out for everybody, attention to each one's tokens, one product with the keys."""
    inner = config.heads * config.head_width
    a_token = 4 * size.config["dim"] * inner + subjects * 4 * config.tokens * inner
    return size.tokens * (a_token + 2 * size.config["dim"] * (subjects + 1))


def test_the_count_is_that_of_the_formulas(pack, both, size):
    injected, alone, config = both()
    plain, rest = full_size.flops_of(pack, *alone, size)
    assert plain == pytest.approx(flops_of_blocks(size, size.tokens), rel=0.01) and rest == 0
    step, once = full_size.flops_of(pack, *injected, size)
    assert step - plain == flops_of_insertion(size, config, 3)
    assert once > 0  # extractor's tokens -> hierarchy, keys and values: in the first step only


@pytest.mark.parametrize("subjects", [3, 8])
def test_a_step_costs_at_most_a_twentieth_more(pack, both, size, subjects):
    injected, alone, _ = both(subjects=subjects)
    plain, _ = full_size.flops_of(pack, *alone, size)
    assert full_size.flops_of(pack, *injected, size)[0] <= 1.05 * plain


def test_references_that_see_themselves_cost_their_own_attention_only(pack, both, size):
    injected, alone, config = both(references=3)
    plain, _ = full_size.flops_of(pack, *alone, size)
    frame = size.tokens // size.latent[1]
    own = BLOCKS * 3 * 4 * frame**2 * size.config["dim"]
    assert full_size.flops_of(pack, *injected, size)[0] - plain == flops_of_insertion(size, config, 3) + own
    assert plain == pytest.approx(flops_of_blocks(size, size.tokens + 3 * frame), rel=0.01)


def test_memory_hardly_grows(pack, both, size):
    """What it needs for itself is gone before the block's own worst moment: only keys and values stay."""
    injected, alone, config = both()
    extra = full_size.peak_of(pack, *injected, size) - full_size.peak_of(pack, *alone, size)
    kept = 2 * 2 * 3 * config.tokens * config.heads * config.head_width
    assert kept <= extra <= 0.02 * full_size.peak_of(pack, *alone, size)
