"""Rows on workers that are lost, fail or are stopped: no row is lost, none is done twice."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from idcrafter.collect import journal, plan
from idcrafter.collect.run import Collection
from idcrafter.collect.storage import LocalStorage
from idcrafter.collect.worker import Job, Settings, Stopped, WorkerLost
from idcrafter.rollouts.dataset import load
from idcrafter.rollouts.store import RolloutStore
from support import collecting
from support.collecting import GRAPH, SCHEMAS

ROOT = Path(__file__).resolve().parents[2]


class Worker(collecting.Worker):
    """In this process: a crash ends only the worker."""

    def end(self):
        raise WorkerLost("its process ended")


class Seat:
    """As `local.LocalSeat`, for the worker above."""

    def __init__(self, settings, name, starts=99):
        self.name, self.settings, self.running, self.starts = name, settings, False, starts
        self.closed = threading.Event()
        self.log = []

    def start(self):
        if self.closed.is_set():
            raise Stopped("stopped")
        if not self.starts:
            raise RuntimeError("ComfyUI ended at once (exit 1)")
        self.starts -= 1
        self.worker = Worker(self.settings, self.name)
        self.worker.start()
        self.running = True

    def run(self, job):
        self.log.append(job.row)
        if job.cells.get("wait"):
            self.closed.wait(60)
            raise Stopped("stopped")
        return self.worker.run(job)

    def stop(self):
        self.running = False

    def close(self):
        self.closed.set()
        self.stop()


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, tmp_path, str(tmp_path / "out"), tmp_path / "scratch", 60.0)


@pytest.fixture
def storage(settings):
    return LocalStorage(Path(settings.out))


def jobs_of(*cells):
    return [Job(row, f"{row:032x}", {}, ("kept",), each) for row, each in enumerate(cells, 2)]


def rows_of_groups(settings):
    """The number in the prompt of each stored group."""
    return sorted(int(group.prompt.split()[1]) for group in load(settings.out).groups)


def test_rows_of_lost_workers_are_done_by_others_and_nothing_is_there_twice(settings, storage):
    jobs = jobs_of({}, {"crash": "before"}, {"crash": "between"}, {}, {})
    outcome = Collection(jobs, [Seat(settings, "a"), Seat(settings, "b")], retries=2).run()
    assert sorted(outcome.results) == [2, 3, 4, 5, 6] and not outcome.failed and outcome.lost == 2
    assert rows_of_groups(settings) == [2, 3, 4, 5, 6] and not RolloutStore(settings.out).verify()
    # The group that was there before its worker was lost is not written again, and its note tells of the one that is.
    assert outcome.results[4]["new_groups"] == 0 and outcome.results[3]["new_groups"] == 1
    assert journal.finished(storage, [job.id for job in jobs]) == {job.id for job in jobs}
    videos = sorted((Path(settings.out) / "files").glob("*/video.mp4"))
    assert [path.read_text() for path in videos] == [f"video of row {row}" for row in range(2, 7)]


def test_a_row_that_loses_every_worker_fails_and_the_others_do_not(settings):
    jobs = jobs_of({"crash": "before"}, {}, {"fail": "1"})
    outcome = Collection(jobs, [Seat(settings, "a")], retries=0).run()
    assert "lost 1 workers" in outcome.failed[2] and "its process ended" in outcome.failed[2]
    assert outcome.failed[4] == "Extract Faces (node 7): no face in photo 1 of Ada" and list(outcome.results) == [3]


def test_a_seat_that_cannot_start_leaves_its_row_to_the_others(settings):
    seats = [Seat(settings, "broken", starts=0), Seat(settings, "good")]
    outcome = Collection(jobs_of({}, {}, {}), seats, retries=0).run()
    assert sorted(outcome.results) == [2, 3, 4] and outcome.lost == 0


def test_no_seat_left_is_an_error(settings):
    seat = Seat(settings, "a", starts=1)
    collection = Collection(jobs_of({}, {"crash": "before"}, {}), [seat], retries=5)
    with pytest.raises(RuntimeError, match="No worker is left for 2 rows"):
        collection.run()
    assert list(collection.outcome.results) == [2] and seat.closed.is_set()


def test_a_full_disk_ends_the_collection_and_keeps_what_was_finished(settings, storage, monkeypatch):
    put, calls = LocalStorage.put, []

    def full(self, name, data):
        calls.append(name)
        if sum(each.startswith("groups/") for each in calls) > 2:
            raise OSError(28, "No space left on device")
        return put(self, name, data)

    monkeypatch.setattr(LocalStorage, "put", full)
    jobs = jobs_of({}, {}, {}, {})
    with pytest.raises(OSError, match="No space left"):
        Collection(jobs, [Seat(settings, "a")], retries=2).run()
    monkeypatch.undo()
    done = journal.finished(storage, [job.id for job in jobs])
    assert done == {jobs[0].id, jobs[1].id} and rows_of_groups(settings) == [2, 3]
    Collection([job for job in jobs if job.id not in done], [Seat(settings, "a")], retries=2).run()
    assert rows_of_groups(settings) == [2, 3, 4, 5]


def test_ctrl_c_ends_the_workers_and_leaves_what_can_be_gone_on_with(settings, storage, monkeypatch):
    from idcrafter.collect import run

    jobs = jobs_of({}, {"wait": "1"}, {})
    seat = Seat(settings, "a")
    waited = run.wait

    def wait(*arguments):
        answer = waited(*arguments)
        if seat.log == [2, 3]:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(run, "wait", wait)
    collection = Collection(jobs, [seat], retries=2)
    with pytest.raises(KeyboardInterrupt):
        collection.run()
    assert seat.closed.is_set() and seat.log == [2, 3] and list(collection.outcome.results) == [2]
    assert journal.finished(storage, [job.id for job in jobs]) == {jobs[0].id}


# What is finished -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_plan(tmp_path, storage):
    """The plan for a table over the graph of `support.collecting`."""

    def make(text, sha256=None):
        (tmp_path / "graph.json").write_text(json.dumps(GRAPH), "utf-8")
        (tmp_path / "cases.csv").write_text(text, "utf-8")
        request = plan.read_request(tmp_path / "graph.json", tmp_path / "cases.csv")
        return plan.make(request, plan.fill(request, SCHEMAS, tmp_path), sha256 or {"ada.png": "a" * 64}, storage)

    return make


def test_a_second_run_skips_what_is_finished(make_plan, settings):
    table = "2.seed,# note\n1,a\n2,b\n"
    first = make_plan(table)
    Collection(first.jobs[:1], [Seat(settings, "a")], retries=0).run()
    again = make_plan(table.replace("a\n", "another note\n"))
    assert again.finished == (2,) and [job.row for job in again.jobs] == [3]
    # Rows may be added and sorted; what shapes the takes may not change.
    assert make_plan("2.seed\n2\n1\n3\n").finished == (3,)
    assert make_plan("2.seed,2.text\n1,Bo waves.\n").finished == ()
    assert make_plan(table, {"ada.png": "b" * 64}).finished == ()
    assert make_plan(table, {"ada.png": "a" * 64, "bo.png": "c" * 64}).finished == (2,)  # not a photo of this row


def test_rows_that_would_make_the_same_takes_are_refused(make_plan):
    with pytest.raises(ValueError, match="rows 2 and 3 of 'cases.csv' give the same graph"):
        make_plan("2.seed,2.text\n1,\n1,Ada waves.\n")


@pytest.mark.parametrize("damage", ["truncated", "gone", "note"])
def test_a_damaged_group_is_collected_again(make_plan, settings, storage, damage, caplog):
    table = "2.seed\n1\n2\n"
    jobs = make_plan(table).jobs
    Collection(jobs, [Seat(settings, "a")], retries=0).run()
    assert not make_plan(table).jobs
    note = storage.folder / "collected" / f"{jobs[0].id}.json"
    group = storage.folder / "groups" / json.loads(note.read_text("utf-8"))["groups"][0]["file"]
    if damage == "gone":
        group.unlink()
    elif damage == "truncated":
        group.write_bytes(group.read_bytes()[:-10])
    else:
        note.write_text(note.read_text("utf-8")[:-10], "utf-8")
    again = make_plan(table).jobs
    assert [job.row for job in again] == [2] and "collected again" in caplog.text
    Collection(again, [Seat(settings, "a")], retries=0).run()
    assert not make_plan(table).jobs and not RolloutStore(settings.out).verify()
    assert rows_of_groups(settings) == [2, 3]
    assert (storage.folder / "damaged" / group.name).is_file() == (damage == "truncated")


# Ray ------------------------------------------------------------------------------------------------------------------


def test_ray_workers_that_die_are_replaced(tmp_path):
    pytest.importorskip("ray")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "tests" / "support" / "collecting.py"), str(tmp_path), "5", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": path}
    environment["RAY_raylet_start_wait_time_s"] = "300"  # other tests may keep the machine busy
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert sorted(answer["results"]) == ["2", "3", "4", "5", "6"] and not answer["failed"] and answer["lost"] == 2
    assert answer["results"]["3"]["new_groups"] == 0  # its group outlived its worker
    groups = load(tmp_path / "out").groups
    assert sorted(group.prompt for group in groups) == [f"row {row}" for row in range(2, 7)]
