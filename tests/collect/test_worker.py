"""A worker beside its ComfyUI: what it hashes, brings over and leaves, and what it says when ComfyUI is gone."""

import hashlib
from types import SimpleNamespace

import pytest

from idcrafter.collect import delivery
from idcrafter.collect.storage import LocalStorage
from idcrafter.collect.worker import Job, RowFailed, Settings, Stopped, Worker, WorkerLost, clean
from idcrafter.rollouts.store import RolloutStore
from support.rollouts import make_part
from tools.client import GraphError


class Client:
    """Answers what it was told to, in turn; an exception is raised."""

    def __init__(self, *answers, folders=None):
        self.answers, self.folders = list(answers), folders

    def get(self, path):
        assert path == "/internal/folder_paths"
        return self.folders

    def queue(self, graph):
        return self._next()

    def wait(self, prompt_id, timeout, on_wait):
        on_wait()
        return self._next()

    def files(self, entry):
        return [{"filename": name, "subfolder": "", "type": kind} for name, kind in entry["files"]]

    def _next(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def make_worker(tmp_path):
    (tmp_path / "input").mkdir()

    def make(client=None, exit_code=None, seconds=60.0):
        settings = Settings(tmp_path, tmp_path / "input", str(tmp_path / "out"), tmp_path / "scratch", seconds)
        worker = Worker(settings, "worker-0")
        process = SimpleNamespace(poll=lambda: exit_code, returncode=exit_code)
        worker.server = SimpleNamespace(client=client, process=process, log="comfyui.log", stop=lambda: None)
        worker.base = tmp_path / "base"
        (worker.base / "output").mkdir(parents=True, exist_ok=True)
        return worker

    return make


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def test_files_are_told_by_their_content(make_worker, tmp_path):
    models = tmp_path / "models"
    model = put(models / "unet" / "sub" / "a.safetensors", "weights")
    photo = put(tmp_path / "input" / "ada.png", "photo")
    put(models / "unet" / "shards" / "1.safetensors", "one")
    put(models / "secret.txt", "outside")
    put(models / "nodes" / "euler", "a pack")
    folders = {
        "diffusion_models": [str(models / "unet"), str(models / "unet")],
        "custom_nodes": [str(models / "nodes")],
    }
    worker = make_worker(Client(folders=folders))
    names = ["sub/a.safetensors", "ada.png", "shards", "euler", "../secret.txt", str(models / "secret.txt")]
    found = worker.digests(names)
    assert found == {"sub/a.safetensors": model, "ada.png": photo, "shards": hashlib.sha256(b"one").hexdigest()}
    put(models / "unet" / "shards" / "2.safetensors", "two")
    assert worker.digests(["shards"])["shards"] != found["shards"]


def test_a_row_is_brought_over_and_its_note_comes_last(make_worker, tmp_path, monkeypatch):
    worker = make_worker(Client("id", {"outputs": {"9": {"text": ["Stored: x"]}}, "files": [("v.mp4", "output")]}))
    output = worker.base / "output"
    part = make_part(prompt="row 2")
    store = RolloutStore(output / "rl")
    store.save_photo("a" * 64, b"photo")
    store.save(part)
    (store.groups / ".half.safetensors.host-1-00000000.tmp").write_bytes(b"half")
    put(output / "v.mp4", "video")
    put(output / "idcrafter" / "takes" / "of-a-failed-row" / "1.safetensors", "take")
    names, write = [], LocalStorage.put
    monkeypatch.setattr(LocalStorage, "put", lambda self, name, data: (names.append(name), write(self, name, data))[1])
    job = Job(2, "f" * 32, {"9": {"class_type": "IDCrafterSaveRollouts", "inputs": {}}}, ("rl",))
    done = worker.run(job)
    group = f"groups/{part.name}.safetensors"
    assert names == [f"photos/{'a' * 64}.png", group, f"files/{job.id}/v.mp4", f"collected/{job.id}.json"]
    assert done["new_groups"] == 1 and done["groups"][0]["policy"] == part.facts["hashes"]["policy"]
    assert not done["notes"] and not (output / "rl").exists()
    assert (output / "idcrafter" / "takes" / "of-a-failed-row").is_dir()
    # A row that another command has finished meanwhile is not run again.
    assert worker.run(job)["new_groups"] == 0


def test_a_file_that_a_node_need_not_make_again_is_in_every_row(make_worker, tmp_path):
    entries = [{"outputs": {}, "files": files} for files in ([("a", "output"), ("t", "temp")], [("a", "output")], [])]
    worker = make_worker(Client("1", entries[0], "2", entries[1], "3", entries[2]))
    put(worker.base / "output" / "a", "sheet")
    for row in (2, 3, 4):
        worker.run(Job(row, f"{row:032x}", {}))
    rows = sorted(path.parent.name for path in (tmp_path / "out" / "files").glob("*/a"))
    assert rows == [f"{2:032x}", f"{3:032x}"] and not (worker.base / "output" / "a").exists()


def test_a_damaged_group_is_not_brought_over(tmp_path):
    store = RolloutStore(tmp_path / "output" / "rl")
    part = make_part()
    store.save(part)
    path = store.path(part.name)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError):
        delivery.deliver(tmp_path / "output", ("rl",), (), LocalStorage(tmp_path / "out"), "f" * 32)
    assert path.is_file() and not LocalStorage(tmp_path / "out").sizes("groups")


def test_what_ended_a_row_decides_whether_it_is_tried_again(make_worker):
    job = Job(2, "f" * 32, {})
    with pytest.raises(RowFailed, match=r"Extract Faces \(node 7\): no face"):
        make_worker(Client("id", GraphError("no face", "7", "Extract Faces"))).run(job)
    with pytest.raises(WorkerLost, match="ended .exit -9.; its log: comfyui.log"):
        make_worker(Client(ConnectionRefusedError("refused")), exit_code=-9).run(job)
    with pytest.raises(WorkerLost, match="does not answer"):
        make_worker(Client(ConnectionRefusedError("refused"))).run(job)
    with pytest.raises(WorkerLost, match="did not end the row in time"):
        make_worker(Client("id", TimeoutError("run id did not finish")), seconds=0.0).run(job)
    worker = make_worker(Client("id", {}))
    worker.stop()
    with pytest.raises(Stopped):
        worker.run(job)


def test_a_server_too_busy_to_answer_is_waited_for(make_worker, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    worker = make_worker(Client("id", TimeoutError("timed out"), {"outputs": {}, "files": []}))
    assert worker.run(Job(2, "f" * 32, {}))["groups"] == []


def test_workers_of_one_host_do_not_share_a_folder(make_worker, tmp_path):
    one, two = make_worker(), make_worker()
    folders = [worker._own_folder() for worker in (one, two)]
    assert [folder.name for folder in folders] == ["worker-0", "worker-1"]
    for folder in folders:
        put(folder / "output" / "x", "left")
    two.stop()
    clean(tmp_path / "scratch")
    assert folders[0].is_dir() and not folders[1].exists()
    one.stop()
    assert make_worker()._own_folder() == folders[0]
