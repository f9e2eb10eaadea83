"""A folder and pyarrow's file systems behave the same."""

import pytest

from idcrafter.collect.storage import ArrowStorage, LocalStorage, open_storage


@pytest.fixture(params=["folder", "arrow"])
def storage(request, tmp_path):
    if request.param == "folder":
        return LocalStorage(tmp_path / "out")
    fs = pytest.importorskip("pyarrow.fs")
    return ArrowStorage(fs.LocalFileSystem(), str(tmp_path / "out"))


def test_what_is_written_is_never_written_twice(storage, tmp_path):
    assert storage.sizes("groups") == {} and not storage.has("groups/a.bin")
    assert storage.put("groups/a.bin", b"first") and not storage.put("groups/a.bin", b"second one")
    assert storage.read("groups/a.bin") == b"first" and storage.sizes("groups") == {"a.bin": 5}
    assert [path.name for path in (tmp_path / "out" / "groups").iterdir()] == ["a.bin"]  # no temporary file is left
    storage.move("groups/a.bin", "damaged/a.bin")
    assert not storage.has("groups/a.bin") and storage.read("damaged/a.bin") == b"first"
    storage.remove("damaged/a.bin")
    storage.remove("damaged/a.bin")
    assert storage.sizes("damaged") == {}


def test_half_written_files_do_not_count(storage, tmp_path):
    storage.put("groups/a.bin", b"whole")
    (tmp_path / "out" / "groups" / ".b.bin.host-1-00000000.tmp").write_bytes(b"ha")
    assert storage.sizes("groups") == {"a.bin": 5} and not storage.has("groups/b.bin")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    fs = pytest.importorskip("pyarrow.fs")
    storage = ArrowStorage(fs.LocalFileSystem(), str(tmp_path / "out"))
    write = ArrowStorage._write

    def full(self, path, data):
        write(self, path, data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrowStorage, "_write", full)
    with pytest.raises(OSError, match="No space"):
        storage.put("groups/a.bin", b"first")
    assert not list((tmp_path / "out" / "groups").iterdir())


def test_an_object_store_has_no_halves(tmp_path, monkeypatch):
    """There a file has its name at once, so what a failed write has left is removed."""
    fs = pytest.importorskip("pyarrow.fs")
    storage = ArrowStorage(fs.LocalFileSystem(), str(tmp_path))
    monkeypatch.setattr("idcrafter.collect.storage._OBJECT_STORES", ("local",))
    assert storage.put("a.bin", b"first") and not storage.put("a.bin", b"second")
    write = ArrowStorage._write
    monkeypatch.setattr(ArrowStorage, "_write", lambda self, path, data: (write(self, path, data[:2]), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        storage.put("b.bin", b"first")
    assert storage.sizes("") == {"a.bin": 5}


def test_what_opens_where(tmp_path):
    pytest.importorskip("pyarrow")
    assert open_storage(str(tmp_path)).folder == tmp_path
    assert open_storage(tmp_path.as_uri()).folder == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="there is a file"):
        open_storage(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be opened"):
        open_storage("nonsense://bucket/folder")
