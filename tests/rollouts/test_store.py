"""The folder: what is written once, found again, verified, repaired, and thrown away."""

import os
import time

import pytest
import torch

from idcrafter.rollouts import files, index, record
from idcrafter.rollouts.conditioning import object_name
from support.rollouts import make_part

PLAN = {"positive": [[{"tensor": "0" * 64, "shape": [1], "dtype": "float32"}, {"dict": {}}]]}


def names(store):
    return [entry.facts["part"] for entry in store.scan().entries]


def test_groups_are_found_again(store, fill):
    parts = fill(3)
    scan = store.scan()
    assert {entry.facts["part"] for entry in scan.entries} == {part.name for part in parts} and scan.damages == ()
    assert all(store.has(part.name) for part in parts) and not store.has("f" * 32)
    for part in parts:
        back = record.read_tensors(store.path(part.name), list(part.tensors), part.facts)
        assert all(torch.equal(back[name], tensor) for name, tensor in part.tensors.items())


def test_the_same_group_is_there_once_and_the_first_one_stays(store):
    assert store.save(make_part())
    before = store.path(make_part().name).read_bytes()
    assert not store.save(make_part(salt=7))  # the same shot and seeds, other latents
    assert store.path(make_part().name).read_bytes() == before and len(names(store)) == 1


def test_first_wins_even_when_both_have_looked(store, monkeypatch):
    """Both writers see no file, both write; the name is given away once."""
    first, second = make_part(), make_part(salt=7)
    write = files._write_temporary

    def other_is_faster(path, data, durable):
        temporary = write(path, data, durable)
        monkeypatch.setattr(files, "_write_temporary", write)
        assert files.write_once(path, second.to_bytes())
        return temporary

    monkeypatch.setattr(files, "_write_temporary", other_is_faster)
    assert not files.write_once(store.path(first.name), first.to_bytes())
    assert store.path(first.name).read_bytes() == second.to_bytes()
    assert [path.name for path in store.groups.iterdir()] == [store.path(first.name).name]


def test_a_file_system_without_links(store, monkeypatch):
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert store.save(make_part()) and not store.save(make_part())
    assert len(names(store)) == 1


def test_a_group_is_on_the_disk_before_it_has_its_name(store, monkeypatch):
    order = []
    fsync, link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda *a: (order.append("fsync"), fsync(*a))[1])
    monkeypatch.setattr(os, "link", lambda *a: (order.append("link"), link(*a))[1])
    assert files.write_once(store.path("a"), b"data")
    assert order[:2] == ["fsync", "link"]


def test_objects_are_stored_once_and_checked(store):
    tensor = torch.randn(1, 3, 4)
    name = object_name(tensor)
    store.save(make_part(), {name: tensor})
    stamp = (store.objects / f"{name}.safetensors").stat().st_mtime_ns
    store.save(make_part(prompt="Another."), {name: tensor})
    assert (store.objects / f"{name}.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(store.load_object(name), tensor)
    path = store.objects / f"{name}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        store.load_object(name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="make the conditioning again with Cast to Video"):
        store.load_object(name)


def test_verify_finds_every_damage_and_repair_puts_it_aside(store, fill):
    parts = fill(5)
    paths = [store.path(part.name) for part in parts]
    whole = paths[0].read_bytes()
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # the size is right: only verify can tell
    paths[3].rename(store.path("e" * 32))
    lonely = make_part(prompt="lonely", plan=PLAN)
    store.save(lonely)
    assert len(store.scan().damages) == 2
    damages = {damage.file: damage.reason for damage in store.verify()}
    assert len(damages) == 4
    assert "cut off" in damages[f"groups/{paths[1].name}"]
    assert "changed since it was written" in damages[f"groups/{paths[2].name}"]
    assert "was renamed" in damages[f"groups/{'e' * 32}.safetensors"]
    assert "its object 000000000000 is missing" in damages[f"groups/{store.path(lonely.name).name}"]
    assert len(store.repair()) == 4
    assert {path.name for path in (store.folder / "damaged").iterdir()} == {
        paths[1].name, paths[2].name, f"{'e' * 32}.safetensors",
    }  # fmt: skip
    assert set(names(store)) == {parts[0].name, parts[4].name, lonely.name}
    assert paths[0].read_bytes() == whole
    assert [damage.whole for damage in store.repair()] == [True]  # what is missing stays missing


def test_leftovers_of_dead_writers_are_reported_and_removed_but_not_those_of_living_ones(store, fill):
    fill(1)
    host = files._host()
    dead, foreign = f".x.safetensors.{host}-99999999-0123abcd.tmp", ".x.safetensors.elsewhere-12-0123abcd.tmp"
    living = f".x.safetensors.{host}-{os.getppid()}-0123abcd.tmp"
    for name in (dead, foreign, living):
        (store.groups / name).write_bytes(b"half")
    assert [damage.file for damage in store.scan().damages] == [f"groups/{dead}"]
    old = time.time() - 2 * files.ABANDONED_SECONDS
    os.utime(store.groups / foreign, (old, old))
    assert {damage.file for damage in store.repair()} == {f"groups/{dead}", f"groups/{foreign}"}
    assert [path.name for path in store.groups.glob(".*")] == [living]


def test_prune_deletes_what_teaches_least_and_keeps_what_it_is_told_to(store):
    spreads = {}
    for i, high in enumerate((0.2, 0.9, 0.5, 0.3)):
        part = make_part(prompt=f"shot {i}", totals=(0.1, high))
        store.save(part)
        spreads[high] = part.name
    size, one = store.size(), store.path(spreads[0.2]).stat().st_size
    assert size == 4 * one
    assert store.prune(size) == []
    gone = store.prune(size - one - 1, keep=[spreads[0.2]])
    assert [entry.facts["part"] for entry in gone] == [spreads[0.3], spreads[0.5]]
    assert set(names(store)) == {spreads[0.2], spreads[0.9]} and store.size() == 2 * one


def test_prune_takes_objects_that_nobody_needs_but_no_young_ones(store):
    tensors = [torch.full((1, 1, 1), float(i)) for i in range(3)]
    shared, own, young = (object_name(tensor) for tensor in tensors)

    def plan(*found):
        return {"positive": [[{"tensor": name, "shape": [1, 1, 1], "dtype": "float32"}, None] for name in found]}

    store.save(make_part(totals=(0.1, 0.2), plan=plan(shared, own)), dict(zip([shared, own], tensors[:2], strict=True)))
    store.save(make_part(totals=(0.1, 0.9), prompt="kept", plan=plan(shared)), {shared: tensors[0]})
    store.save_object(young, tensors[2])
    old = time.time() - 7200
    for name in (shared, own):
        os.utime(store.objects / f"{name}.safetensors", (old, old))
    assert len(store.prune(store.size() - 1)) == 1
    assert {path.stem for path in store.objects.iterdir()} == {shared, young}


# The index ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parquet():
    pytest.importorskip("pyarrow")
    return index


def test_the_index_has_a_row_a_take(store, fill, parquet):
    import pyarrow.parquet

    fill(2)
    (shard,) = index.shards(store.index)
    rows = pyarrow.parquet.read_table(shard).to_pylist()
    assert len(rows) == 6 and {row["prompt"] for row in rows} == {"shot 0", "shot 1"}
    assert rows[2]["total"] == 0.9 and dict(rows[2]["rewards"]) == {"identity": 0.9, "motion": 2.0}
    assert rows[0]["licences"] == "Apache-2.0" and rows[0]["seed"] == "0"


def test_reading_asks_the_index_and_not_the_files(store, fill, parquet, monkeypatch):
    fill(3)
    monkeypatch.setattr(record, "read_facts", lambda path: pytest.fail("a head was read"))
    assert len(store.scan().entries) == 3


def test_the_files_are_the_truth(store, fill, parquet):
    """The index may lack groups, know some that are gone, be damaged or not there: the answer is the same."""
    parts = fill(3)
    store.path(parts[0].name).unlink()
    assert set(names(store)) == {part.name for part in parts[1:]}
    (shard,) = index.shards(store.index)
    shard.write_bytes(b"PAR1 this is none")
    scan = store.scan()
    assert {entry.facts["part"] for entry in scan.entries} == {part.name for part in parts[1:]}
    assert [damage.file for damage in scan.damages] == [f"index/{shard.name}"]
    assert store.scan().damages == ()  # it was made again
    for shard in index.shards(store.index):
        shard.unlink()
    assert set(names(store)) == {part.name for part in parts[1:]} and index.shards(store.index)


def test_a_row_that_lies_is_not_believed(store, fill, parquet):
    part = fill(1)[0]
    facts = {**part.facts, "takes": [{**part.facts["takes"][0], "total": 99.0}]}
    for shard in index.shards(store.index):
        shard.unlink()
    path = store.path(part.name)
    index.write(store.index / "wrong.parquet", index.rows_of(path.name, path.stat().st_size, facts))
    assert store.scan().entries[0].facts == part.facts


def test_shards_are_closed_and_merged(store, fill, parquet, monkeypatch):
    monkeypatch.setattr(index, "PARTS_A_SHARD", 2)
    parts = fill(5)
    assert len(index.shards(store.index)) == 3
    index.merge(store.index, ((e.path.name, e.bytes, e.facts) for e in store.scan().entries))
    assert len(index.shards(store.index)) == 1
    store.save(make_part(prompt="after"))
    known, damaged = index.read(store.index)
    assert len(known) == 6 and not damaged and len(parts) == 5


def test_without_pyarrow_only_the_index_is_missing(store, fill, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    parts = fill(2)
    assert len(names(store)) == 2 and store.repair() == [] and not store.index.exists()
    assert len(store.prune(store.size() - 1)) == 1 and len(parts) == 2
    with pytest.raises(RuntimeError, match="pip install pyarrow"):
        index.write(store.index / "x.parquet", [])


def test_an_index_that_cannot_be_written_loses_nothing(store, fill, monkeypatch, caplog):
    pytest.importorskip("pyarrow")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    fill(2)
    assert "The index" in caplog.text and len(names(store)) == 2
