"""The facial extractor against diffusers' ConsisID modules on the same weights."""

import pytest
import torch
from torch import nn

from idcrafter.modules.facial_extractor import FacialExtractor

# id_width, visual and inner width, output, tokens, id tokens, scales, depth, heads, head width, rows, map length
SHAPES = [
    (24, 16, 12, 5, 3, 2, 4, 2, 4, 3, 7),
    (40, 32, 32, 8, 1, 1, 1, 4, 8, 1, 10),
    (20, 16, 48, 4, 5, 5, 10, 2, 8, 2, 4),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_extractor_of_diffusers(shape):
    from diffusers.models.transformers.consisid_transformer_3d import LocalFacialExtractor

    id_width, width, out, tokens, id_tokens, scales, depth, heads, head_width, rows, length = shape
    torch.manual_seed(sum(shape))
    theirs = LocalFacialExtractor(id_width, width, depth, head_width, heads, id_tokens, tokens, out, 4, scales).eval()
    ours = FacialExtractor(nn, id_width, width, width, out, tokens, id_tokens, scales, depth, heads, head_width)
    ours.load_state_dict(theirs.state_dict())
    identity, maps = torch.randn(rows, id_width), [torch.randn(rows, length, width) for _ in range(scales)]
    with torch.inference_mode():
        expected = theirs(identity, maps)
        assert ours(identity, maps).shape == (rows, tokens, out)
        torch.testing.assert_close(ours(identity, maps), expected, atol=1e-5, rtol=0)


def test_maps_may_have_a_width_of_their_own():
    net = FacialExtractor(nn, 8, 6, 16, 12, 4, 2, 1, 2, 2, 8)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert net(torch.randn(2, 8), [torch.randn(2, 5, 6)]).shape == (2, 4, 12)


def test_says_what_does_not_fit():
    with pytest.raises(ValueError, match="3 layers can't be shared out to 2 hidden maps"):
        FacialExtractor(nn, 8, 8, 8, 8, scales=2, depth=3)
    with pytest.raises(ValueError, match="takes 2 hidden maps of the image, not 1"):
        FacialExtractor(nn, 8, 8, 8, 8, 4, 2, 2, 2, 1, 8)(torch.randn(1, 8), [torch.randn(1, 3, 8)])
