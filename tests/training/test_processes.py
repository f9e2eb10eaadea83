"""Two processes with half of a batch each train as one with all of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idcrafter.training import processes as lib
from idcrafter.training.loop import Trainer
from support.sources import ROOT

STEPS = 6


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = torch.nn.Parameter(torch.randn(8, 6, generator=generator) * 0.3)
        self.second = torch.nn.Parameter(torch.randn(2, 8, generator=generator) * 0.3)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.tanh(x @ self.first.T) @ self.second.T


def train(folder, part, average=None, writes=True):
    """The net's weights after STEPS steps on this part of each batch of 8."""
    i, count = part

    def step(net, n):
        generator = torch.Generator().manual_seed(n)
        x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)
        own = slice(i * 8 // count, (i + 1) * 8 // count)
        return {"loss": (net(x[own]) - y[own]).pow(2).mean()}

    net = Net()
    options = {"dtype": torch.float32, "optimizer": "adamw", "warmup": 1, "average": average, "writes": writes}
    Trainer(net, folder, "net", STEPS, 0.01, **options).run(step, 1)
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def by_gloo():
    from torch import distributed

    distributed.init_process_group("gloo")

    def mean(tensor):
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor / distributed.get_world_size()

    return lib.Processes(distributed.get_rank(), distributed.get_world_size(), mean, distributed.barrier)


def work(rank, port, folder, kind):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    assert lib.launched()
    found = lib.join(cpu=True) if kind == "accelerate" else by_gloo()
    weights = train(folder, found.part, found.average_, found.rank == 0)
    found.wait()
    save_file(weights, folder / f"{rank}.safetensors")


@pytest.mark.parametrize("kind", ["gloo", "accelerate"])
def test_two_processes_are_one(tmp_path, kind):
    if kind == "accelerate":
        pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = tmp_path / "two"
    together.mkdir()
    # Processes of their own: a fork would take over the threads of this one's autograd, which does not work.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(port), str(together), kind],
            env={**os.environ, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    expected = train(tmp_path / "one", (0, 1))
    for rank in range(2):
        found = load_file(together / f"{rank}.safetensors")
        for name, weight in expected.items():
            assert (found[name] - weight).abs().max() <= 1e-6, name
    assert not torch.equal(expected["first"], Net().first)
    # Only the first one writes.
    lines = (together / "net.curve.jsonl").read_text().splitlines()
    assert len(lines) == STEPS and (together / "net.state.safetensors").exists()


def test_alone():
    assert not lib.launched() and lib.ALONE.part == (0, 1)
    gradient = torch.ones(2)
    lib.ALONE.average_(gradient)
    lib.ALONE.wait()
    assert gradient.tolist() == [1.0, 1.0]


def test_without_accelerate_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RuntimeError, match="pip install accelerate"):
        lib.join()


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
