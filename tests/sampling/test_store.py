"""Takes on disk: whole or not there, and only for the run that made them."""

import logging

import pytest
import torch

from idcrafter.sampling.store import TakeStore
from idcrafter.sampling.takes import Take

SHAPE = torch.Size((1, 16, 2, 6, 8))


def take(seed=7, samples=None):
    return Take(seed=seed, samples=torch.randn(SHAPE) if samples is None else samples, seconds=1.25, resumed=False)


def test_round_trip(tmp_path):
    store = TakeStore(tmp_path / "takes", "a" * 32)
    made = take(2**64 - 1)
    store.save(made)
    back = store.load(made.seed, SHAPE)
    assert torch.equal(back.samples, made.samples) and back.samples.dtype == torch.float32
    assert (back.seed, back.seconds, back.resumed) == (2**64 - 1, 1.25, True)
    assert [path.name for path in store.folder.iterdir()] == [f"{2**64 - 1}.safetensors"]


def test_a_take_that_is_not_there(tmp_path):
    assert TakeStore(tmp_path, "k").load(1, SHAPE) is None


@pytest.mark.parametrize(
    "damage", ["truncate", "garbage", "empty", "not finite", "other seed", "other key", "other shape"]
)
def test_what_is_damaged_or_foreign_is_not_used(tmp_path, caplog, damage):
    store = TakeStore(tmp_path, "k")
    store.save(take(samples=torch.full(SHAPE, float("nan"))) if damage == "not finite" else take())
    path = store.path(7)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-100])
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04" + content[2:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other seed":
        path = path.rename(store.path(8))
    elif damage == "other key":
        path = path.rename(tmp_path / "k" / "9.safetensors")
        store = TakeStore(tmp_path, "k")
        store.key = "another"
    shape = torch.Size((1, 16, 3, 6, 8)) if damage == "other shape" else SHAPE
    with caplog.at_level(logging.WARNING):
        assert store.load(int(path.stem), shape) is None
    assert "sampled again" in caplog.text


def test_a_write_that_fails_is_a_warning_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    store = TakeStore(tmp_path, "k")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    store.save(take())
    assert "No space left" in caplog.text
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    TakeStore(tmp_path / "file", "k").save(take())
    assert "cannot be written" in caplog.text
