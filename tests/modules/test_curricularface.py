"""IR-101 against a straight reading of its layout, and against numbers of TFace's network in junjiehe96/UniPortrait."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idcrafter.modules.curricularface import CurricularFace, layout
from support.curricular_weights import BLOCKS, crops, released_layout, seeded_weights

# First six values and length of the embeddings that UniPortrait's IR_101 gives for the seeded weights and crops.
PUBLISHED = (
    ((0.502747, 0.575398, -0.144454, -0.864145, 0.364867, 0.321707), 8.903399),
    ((0.455780, 0.483426, -0.254914, -0.882651, 0.355586, 0.416337), 8.812988),
)


@pytest.fixture(scope="module")
def weights():
    return seeded_weights()


@pytest.fixture(scope="module")
def embeddings(weights):
    net = CurricularFace(nn).eval()
    net.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        return net(crops())


def straight(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network written out as functions of its weights."""

    def norm(x, name):
        scale, shift = w.get(f"{name}.weight"), w.get(f"{name}.bias")
        return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], scale, shift)

    x = F.conv2d(x, w["input_layer.0.weight"], padding=1)
    x = F.prelu(norm(x, "input_layer.1"), w["input_layer.2.weight"])
    for i, (inner, outer, stride) in enumerate(BLOCKS):
        block = f"body.{i}"
        short = x[:, :, ::stride, ::stride]
        if inner != outer:
            short = norm(F.conv2d(short, w[f"{block}.shortcut_layer.0.weight"]), f"{block}.shortcut_layer.1")
        y = F.conv2d(norm(x, f"{block}.res_layer.0"), w[f"{block}.res_layer.1.weight"], padding=1)
        y = F.prelu(norm(y, f"{block}.res_layer.2"), w[f"{block}.res_layer.3.weight"])
        y = F.conv2d(y, w[f"{block}.res_layer.4.weight"], stride=stride, padding=1)
        x = norm(y, f"{block}.res_layer.5") + short
    x = norm(x, "output_layer.0").flatten(1)
    return norm(F.linear(x, w["output_layer.3.weight"], w["output_layer.3.bias"]), "output_layer.4")


def test_the_layout_is_the_released_one():
    assert {name: tuple(shape) for name, shape in layout().items()} == released_layout()
    learned = [shape for name, shape in layout().items() if "running" not in name]
    assert sum(shape.numel() for shape in learned) == 65_150_912


def test_full_size_equals_the_straight_reading(embeddings, weights):
    with torch.inference_mode():
        expected = straight(weights, crops())
    assert embeddings.shape == (2, 512)
    torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)


def test_full_size_equals_the_published_network(embeddings):
    for embedding, (values, length) in zip(embeddings, PUBLISHED, strict=True):
        assert embedding[:6].tolist() == pytest.approx(values, abs=2e-4)
        assert float(embedding.norm()) == pytest.approx(length, abs=1e-3)


def test_every_tensor_has_a_part_in_the_result():
    torch.manual_seed(0)
    net = CurricularFace(nn, stages=((8, 2), (16, 2)), dimensions=12).eval()
    x = crops()
    with torch.no_grad():
        before = net(x)
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            kept = tensor.clone()
            tensor.add_(0.5)
            assert not torch.allclose(net(x), before, atol=1e-6), name
            tensor.copy_(kept)
        torch.testing.assert_close(net(x), before)
