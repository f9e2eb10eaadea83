"""Gradient checkpointing: at every depth the gradients of training without it."""

import pytest
import torch

from support import tiny_training
from support.tiny_training import batch_for, gradients, network_for

FAMILIES = ("phantom", "vace", "cogvideox", "cogvideox-i2v")


def everything(pack, model, family, depth=0):
    """Adapter, gates where there are references, and a LoRA, all with gradients."""
    gates = {"reference_heads": 2} if family == "phantom" else {}
    lora = pack.submodule("idcrafter.training.lora").LoRA(model.model.diffusion_model, 2, 3)
    with torch.no_grad():
        for up in lora.lora_up:
            up.copy_(tiny_training.noise(*up.shape, seed=7) * 0.1)
    return network_for(pack, model, tiny_training.adapter_for(pack, model, **gates), lora, depth)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def plain(pack, model_of):
    """Gradients without checkpointing, by family."""
    found = {}

    def plain(family):
        if family not in found:
            found[family] = gradients(pack, everything(pack, model_of(family), family), batch_for(pack, family))
        return found[family]

    return plain


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_without_checkpointing(pack, model_of, plain, family, depth):
    network = everything(pack, model_of(family), family, depth)
    assert_same(gradients(pack, network, batch_for(pack, family)), plain(family))
    assert all(gradient.any() for gradient in plain(family).values())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_routings_are_recorded_once(pack, model_of, depth):
    network = everything(pack, model_of("phantom"), "phantom", depth)
    batch = batch_for(pack, "phantom")
    velocity, routings = network(batch.clean, torch.tensor([0.5, 0.7]), batch)
    assert [routing.block for routing in routings] == [0, 1]
    (velocity.sum() + sum(routing.logits.sum() for routing in routings)).backward()
    assert [routing.block for routing in routings] == [0, 1]


def seen_blocks(model):
    """The numbers of the blocks that an attention patch of another node reads, forward and backward."""
    seen = []

    def patch(args):
        seen.append(args["transformer_options"]["block_index"])
        return args["x"]

    model.set_model_attn2_patch(patch)
    return seen


def test_what_is_computed_again_knows_its_block(pack, model_of, monkeypatch):
    """Core counts blocks in a dict that all of them share, so in the backward pass it says the last one."""
    for frozen in (True, False):
        model, batch = model_of("phantom"), batch_for(pack, "phantom")
        seen = seen_blocks(model)
        network = everything(pack, model, "phantom", 2)
        if not frozen:
            # Without the copies the trap is there: this test would not see it otherwise.
            checkpointing = pack.submodule("idcrafter.training.checkpointing")
            monkeypatch.setattr(checkpointing, "_kept", lambda value: value)
        gradients(pack, network, batch)
        assert seen == ([0, 1, 1, 0] if frozen else [0, 1, 1, 1])


def test_the_model_is_left_as_it_was(pack, model_of):
    import comfy.model_management

    model = model_of("phantom")
    dit = model.model.diffusion_model
    network = everything(pack, model, "phantom", 3)
    gradients(pack, network, batch_for(pack, "phantom"))
    for module in dit.modules():
        assert "forward" not in vars(module) and not module._forward_hooks
    assert not any(p.requires_grad or p.grad is not None for p in dit.parameters())
    assert comfy.model_management.in_training is False


def test_an_unknown_depth_is_refused(pack, model_of):
    network = everything(pack, model_of("phantom"), "phantom", 4)
    with pytest.raises(ValueError, match="checkpointing is 4; choose one of"):
        gradients(pack, network, batch_for(pack, "phantom"))
