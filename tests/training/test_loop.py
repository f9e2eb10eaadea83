"""The training loop: it learns, resumes to the same weights, and survives a bad step."""

import json

import pytest
import torch

from idcrafter.training.loop import Trainer


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


def test_adamw_alone(tmp_path):
    net = train(tmp_path, 300, optimizer="adamw", weight_decay=1e-4)
    assert step(net, 10_000)["loss"] < 0.2 * step(Net(), 10_000)["loss"]


def test_old_torch_is_told_about_muon(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match="muon needs torch 2.9 or newer; this is torch .* choose adamw"):
        train(tmp_path, 1)
    train(tmp_path, 1, optimizer="adamw")
    with pytest.raises(ValueError, match="'sgd' is unknown; choose one of muon, adamw"):
        train(tmp_path / "other", 1, optimizer="sgd")


def frozen_at_first(net, n):
    """The weight is frozen in the first ten steps, and the bias in the last ten."""
    net.weight.requires_grad_(n >= 10)
    net.bias.requires_grad_(n < 20)
    return step(net, n)


@pytest.mark.parametrize("stopped_at", [5, 15, 25])
def test_what_is_frozen_stays_and_resumes(tmp_path, stopped_at):
    def run(folder, until=30):
        net = Net()
        trainer = Trainer(net, folder, "net", 30, 0.05, dtype=torch.float32, warmup=5)

        def stop(trainer):
            if trainer.n == until:
                raise KeyboardInterrupt

        trainer.run(frozen_at_first, 1, stop)
        return net

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stopped_at)
    resumed = run(tmp_path / "parts", None)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    rows = [(tmp_path / name / "net.curve.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    first, second = ([{k: v for k, v in json.loads(r).items() if k != "seconds"} for r in row] for row in rows)
    assert first == second


def test_what_a_frozen_part_is(tmp_path):
    net = Net()
    net.weight.requires_grad_(True)
    trainer = Trainer(net, tmp_path, "net", 10, 0.05, dtype=torch.float32, warmup=1)
    trainer.run(frozen_at_first)
    assert torch.equal(net.weight, Net().weight) and not torch.equal(net.bias, Net().bias)


def test_other_facts_are_refused(tmp_path):
    train(tmp_path, 3, facts={"seed": "1", "data": "a"})
    train(tmp_path, 3, facts={"seed": "1", "data": "a"})
    with pytest.raises(ValueError, match=r"another training: data \(a then, b now\), seed \(1 then, none now\)"):
        train(tmp_path, 3, facts={"data": "b"})


def test_averaged_weights_are_lent(tmp_path):
    net, seen = Net(), {}
    trainer = Trainer(net, tmp_path, "net", 9, 0.05, dtype=torch.float32, warmup=1)

    def look(trainer):
        if trainer.n == 9:
            seen["before"] = net.weight.detach().clone()
            with trainer.averaged():
                seen["inside"] = net.weight.detach().clone()
            seen["after"] = net.weight.detach().clone()

    trainer.run(step, 1, look)
    assert torch.equal(seen["before"], seen["after"]) and not torch.equal(seen["inside"], seen["after"])
    assert torch.equal(seen["inside"], net.weight)


def test_a_process_that_does_not_write(tmp_path):
    train(tmp_path, 3, writes=False)
    assert not list(tmp_path.iterdir())
