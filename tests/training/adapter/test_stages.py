"""Who is trained when."""

import pytest
import torch

from support.tiny_training import adapter_for, batch_for, losses_of, network_for


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.training.adapter.stages")


def test_shares_of_the_steps(lib):
    stages = lib.Stages(2, 1, 1)
    assert [stages.at(n, 8) for n in range(8)] == ["align"] * 4 + ["route"] * 2 + ["joint"] * 2
    assert {lib.Stages(1, 0, 0).at(n, 3) for n in range(3)} == {"align"}
    assert {stages.at(n, 8, router=False) for n in range(8)} == {"joint"}


@pytest.mark.parametrize("shares", [(0, 0, 0), (-1, 1, 1)])
def test_shares_that_train_nothing_are_refused(lib, shares):
    with pytest.raises(ValueError, match="none may be negative, and one must be more than 0"):
        lib.Stages(*shares)


def trained(pack, lib, network, stage):
    """Names of what gets a gradient that is not zero."""
    network.zero_grad()
    lib.set_stage(network, stage)
    losses = lib.stage_loss(losses_of(pack, network, batch_for(pack, "phantom")), stage, 0.5)
    losses["loss"].backward()
    return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.fixture
def network(pack, model_of):
    model = model_of("phantom")
    lora = pack.submodule("idcrafter.training.lora").LoRA(model.model.diffusion_model, 2, 3)
    return network_for(pack, model, adapter_for(pack, model), lora)


def test_each_stage_moves_its_own(pack, lib, network):
    router = {name for name, _ in network.named_parameters() if name.startswith("adapter.router.")}
    ups = {name for name, _ in network.named_parameters() if "lora_down" not in name}  # downs wait for the ups
    assert trained(pack, lib, network, "route") == router
    assert trained(pack, lib, network, "align") == ups - router
    assert trained(pack, lib, network, "joint") == ups


def test_what_each_stage_minimises(pack, lib):
    losses = {"flow": torch.tensor(2.0), "router": torch.tensor(3.0), "loss": torch.tensor(0.0)}
    assert [float(lib.stage_loss(losses, s, 0.5)["loss"]) for s in lib.STAGES] == [2.0, 3.0, 3.5]
    unlabelled = {"flow": torch.tensor(2.0), "loss": torch.tensor(0.0)}
    assert [float(lib.stage_loss(unlabelled, s, 0.5)["loss"]) for s in lib.STAGES] == [2.0, 0.0, 2.0]


def test_a_batch_without_labels_moves_no_router(pack, lib, network):
    lib.set_stage(network, "route")
    batch = batch_for(pack, "phantom", owners=torch.full((2, 36), -1))
    lib.stage_loss(losses_of(pack, network, batch), "route", 0.5)["loss"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_new_routers_mixture_is_even_among_people(pack, lib, model_of):
    model = model_of("phantom")
    network = network_for(pack, model, adapter_for(pack, model, trained=False))
    batch = batch_for(pack, "phantom", rows=1, photos=torch.ones(1, 3, 2))
    _, routings = network(batch.clean, torch.tensor([0.5]), batch)
    for routing in routings:
        torch.testing.assert_close(routing.weights, routing.weights[..., :1].expand_as(routing.weights))


def test_an_unknown_stage_is_refused(lib, network):
    with pytest.raises(ValueError, match="'begin' is unknown; choose one of align, route, joint"):
        lib.set_stage(network, "begin")
