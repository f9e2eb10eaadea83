"""Writers that are killed, that race, that run out of room: no finished group lost, none twice, all damage reported."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from idcrafter.rollouts import dataset, record
from support import rollouts
from support.rollouts import make_part

KILLS = 50


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills as POSIX does")


def run(*arguments):
    """What the writers have reported, who ran in a process of their own."""
    done = subprocess.run(
        [sys.executable, rollouts.__file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


@forks
def test_writers_killed_at_50_random_moments(store):
    told = run("kill", store.folder, KILLS)
    leftovers = [path for folder in (store.groups, store.index) for path in folder.glob(".*.tmp")]
    scan = store.scan()
    found = Counter(entry.facts["part"] for entry in scan.entries)
    reported = set(told["reported"])
    assert len(reported) >= KILLS // 2 and reported <= set(found)  # nothing that was finished is lost
    assert len(found) <= len(reported) + KILLS and max(found.values()) == 1
    # Some were hit in the middle of a file; every half of one is reported, and nothing else.
    assert told["halves"] and {damage.file for damage in scan.damages} == {
        f"{path.parent.name}/{path.name}" for path in leftovers
    }
    for entry in scan.entries:
        record.read_tensors(entry.path, list(entry.facts["tensors"]), entry.facts)
    loaded = dataset.load(store.folder)
    assert sum(len(group.takes) for group in loaded.groups) == 3 * len(found)  # none counted twice
    store.repair()
    assert store.verify() == [] and len(store.scan().entries) == len(found)


@forks
def test_two_writers_fill_one_folder_and_one_of_them_is_killed_and_started_again(store):
    names = run("restart", store.folder, 25, "one", "two")
    assert [len(set(reported)) for reported in names] == [25, 25] and not set(names[0]) & set(names[1])
    scan = store.scan()
    shots = Counter(entry.facts["shot"]["prompt"] for entry in scan.entries)
    assert shots == Counter(f"writer {name}, shot {i}" for name in ("one", "two") for i in range(25))
    assert not [damage for damage in store.verify() if not damage.file.endswith(".tmp")]


@forks
def test_two_writers_of_the_same_groups_store_each_once(store):
    names = run("race", store.folder, 25, "same", "same")
    assert names[0] == names[1] and len(names[0]) == 25
    assert sorted(entry.facts["part"] for entry in store.scan().entries) == sorted(names[0])
    assert store.verify() == []


def contents(store):
    return {path.name: path.read_bytes() for path in store.groups.iterdir()}


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk(store, fill, monkeypatch, call):
    fill(2)
    before, real = contents(store), getattr(os, call)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    if call == "link":  # the rename that takes its place fails too
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(make_part(prompt="too much"))
    assert contents(store) == before  # nothing half, nothing left behind
    monkeypatch.undo()
    assert getattr(os, call) is real and store.save(make_part(prompt="too much")) and store.verify() == []


def test_a_disk_that_is_full_in_the_middle_of_a_group(store, fill, monkeypatch):
    fill(2)
    before, real, written = contents(store), os.write, []

    def little_room(handle, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(handle, bytes(data[:100])))  # a short write, as a nearly full disk does it
        return written[-1]

    monkeypatch.setattr(os, "write", little_room)
    with pytest.raises(OSError, match="No space left"):
        store.save(make_part(prompt="too much"))
    assert written == [100, 100, 100] and contents(store) == before


def test_short_writes_are_continued(store, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:1000])))
    part = make_part()
    assert store.save(part)
    assert store.path(part.name).read_bytes() == part.to_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_file_size_limit_of_the_system(store, fill):
    import resource

    fill(1)
    before, limit = contents(store), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OSError):
            store.save(make_part(prompt="too large"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert contents(store) == before and store.verify() == []


def test_a_truncated_file_is_reported_and_the_others_are_read(store, fill):
    parts = fill(3)
    path = store.path(parts[1].name)
    os.truncate(path, path.stat().st_size // 2)
    loaded = dataset.load(store.folder)
    assert {group.prompt for group in loaded.groups} == {"shot 0", "shot 2"}
    assert [damage.file for damage in loaded.damages] == [f"groups/{path.name}"]
    store.repair()
    assert store.save(make_part(prompt="shot 1")) and len(dataset.load(store.folder).groups) == 3
