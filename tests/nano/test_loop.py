"""The training loop: it learns, resumes to the same weights, and survives a bad step."""

import pytest
import torch

from idcrafter.nano.recipes.loop import Trainer


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(6, 4, 3, generator=generator) * 0.1)
        self.bias = torch.nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return torch.nn.functional.conv1d(x, self.weight, self.bias)


TARGET = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(9))


def step(net, n):
    x = torch.randn(8, 4, 10, generator=torch.Generator().manual_seed(n))
    wanted = torch.nn.functional.conv1d(x, TARGET, torch.full((6,), 0.5))
    return {"loss": (net(x.to(net.weight.dtype)).float() - wanted).pow(2).mean()}


def train(folder, steps, **options):
    net = Net()
    trainer = Trainer(net, folder, "net", steps, 0.05, dtype=torch.float32, warmup=5, **options)
    trainer.run(step, log_every=5)
    return net


def test_it_learns(tmp_path):
    net = train(tmp_path, 300)
    assert step(net, 10_000)["loss"] < 0.02 * step(Net(), 10_000)["loss"]


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = train(tmp_path / "whole", 40)
    stopped = Net()
    trainer = Trainer(stopped, tmp_path / "parts", "net", 40, 0.05, dtype=torch.float32, warmup=5)

    def interrupted(net, n):
        if n == 23:
            trainer.save()
            raise KeyboardInterrupt
        return step(net, n)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(interrupted)
    resumed = train(tmp_path / "parts", 40)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    assert not list((tmp_path / "parts").glob("*.part"))


def test_only_the_viewed_part_is_trained(tmp_path):
    net = train(tmp_path, 20, view=lambda p: p[:, :, -1:] if p.ndim == 3 else p)
    start = Net().weight
    assert torch.equal(net.weight[:, :, :-1], start[:, :, :-1])
    assert not torch.equal(net.weight[:, :, -1], start[:, :, -1])


def test_a_gradient_that_is_not_finite_costs_one_step_only(tmp_path):
    net = Net()
    trainer = Trainer(net, tmp_path, "net", 30, 0.05, dtype=torch.float32, warmup=5)
    trainer.run(lambda m, n: {"loss": step(m, n)["loss"] * (float("nan") if n == 10 else 1.0)})
    assert torch.isfinite(net.weight).all()
    assert step(net, 10_000)["loss"] < step(Net(), 10_000)["loss"]
