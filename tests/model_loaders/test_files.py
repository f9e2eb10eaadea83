"""Model files: found where the user's settings say, and read without being trusted."""

import hashlib
import json
import struct
import zipfile

import pytest
import safetensors.torch
import torch


@pytest.fixture(scope="module")
def files(pack):
    return pack.submodule("model_loaders.files")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A model folder 'things' with two search paths."""
    import folder_paths

    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "things", ([str(root) for root in roots], set()))
    return roots


def test_a_file_is_found_in_any_search_path(files, folder):
    (folder[1] / "sub").mkdir()
    (folder[1] / "sub" / "a.safetensors").write_bytes(b"2")
    assert files.require("things", "sub/a.safetensors") == folder[1] / "sub" / "a.safetensors"
    assert files.require("things", "sub\\a.safetensors") == folder[1] / "sub" / "a.safetensors"
    (folder[0] / "sub").mkdir()
    (folder[0] / "sub" / "a.safetensors").write_bytes(b"1")
    assert files.require("things", "sub/a.safetensors").read_bytes() == b"1"


def test_a_missing_file_names_file_folders_and_command(files, folder):
    with pytest.raises(FileNotFoundError) as error:
        files.require("things", "a.safetensors", "hf download x a.safetensors")
    message = str(error.value)
    for part in ("'a.safetensors'", "'things'", str(folder[0]), str(folder[1]), "hf download x a.safetensors"):
        assert part in message
    with pytest.raises(FileNotFoundError, match="Put it into one of these folders"):
        files.require("things", "a.safetensors")


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:\\x", "", "a\0b"])
def test_a_name_stays_in_its_folder(files, folder, name):
    (folder[0].parent / "secret").write_text("x")
    with pytest.raises(ValueError, match="leaves its model folder"):
        files.require("things", name)


def test_an_unknown_folder(files):
    with pytest.raises(ValueError, match="no model folder 'nowhere'"):
        files.require("nowhere", "a")


def test_the_header_is_read_without_the_weights(files, tmp_path):
    path = tmp_path / "a.safetensors"
    weights = {
        "a": torch.zeros(3, 4, dtype=torch.bfloat16),
        "b": torch.zeros(5),
        "c": torch.zeros((), dtype=torch.uint8),
    }
    safetensors.torch.save_file(weights, path, metadata={"licence": "Apache-2.0"})
    header = files.read_header(path)
    assert {name: (tuple(t.shape), t.dtype) for name, t in header.tensors.items()} == {
        name: (tuple(t.shape), t.dtype) for name, t in weights.items()
    }
    assert all(tensor.is_meta for tensor in header.tensors.values())
    assert header.parameters == 18 and header.dtype == torch.bfloat16 and header.licence == "Apache-2.0"


def test_a_torch_file_is_read_by_weights_only(files, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.zeros(2, 3), "step": 5}}, path)
    header = files.read_header(path)
    assert list(header.tensors) == ["w"] and header.tensors["w"].is_meta


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["bomb.pth", "bomb.ckpt", "bomb.safetensors", "bomb.sft"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_never_runs(files, tmp_path, name, zipped):
    target, path = tmp_path / "written", tmp_path / name
    torch.save({"w": Bomb(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"'bomb\.\w+' .*safetensors version"):
        files.read_header(path)
    assert not target.exists()


def header_only(entries) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x01\x02", "not a safetensors file"),
        (b"hello world, this is text", "not a safetensors file"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"GGUF" + bytes(60), "GGUF"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (struct.pack("<Q", 8) + b"not json", "header .* is damaged"),
        (struct.pack("<Q", 2) + b"[]", "header .* is damaged"),
        (header_only({"a": {"dtype": "F32", "shape": [2]}}), "header .* is damaged"),
        (header_only({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "header .* is damaged"),
        (header_only({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + bytes(3), "truncated: it has"),
        (header_only({}), "holds no weights"),
    ],
)
def test_what_is_no_safetensors_file_is_named(files, tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        files.read_header(path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken zip"])
def test_a_damaged_torch_file(files, tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="'model.pth' cannot be read as plain weights"):
        files.read_header(path)


def test_a_zip_without_weights(files, tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="'model.pth' cannot be read as plain weights"):
        files.read_header(path)


def test_layout_differences_are_named(files, tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"net.a": torch.zeros(4, 3), "net.b": torch.zeros(2), "other": torch.zeros(1)}, path)
    header = files.read_header(path)
    files.check_layout(header, {"a": torch.Size((4, 3)), "b": torch.Size((2,))}, "net.", "a thing")
    with pytest.raises(ValueError, match=r"1 of its 2 tensors are missing \(first: c\)"):
        files.check_layout(header, {"a": torch.Size((4, 3)), "c": torch.Size((2,))}, "net.", "a thing")
    with pytest.raises(ValueError, match=r"a has the shape \[4, 3\] instead of \[4, 6\]"):
        files.check_layout(header, {"a": torch.Size((4, 6))}, "net.", "a thing")


def test_packed_columns_of_quantised_files_are_allowed(files, tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.zeros((4, 3), dtype=torch.uint8), "a_weight_scale": torch.zeros(1)}, path)
    files.check_layout(files.read_header(path), {"a": torch.Size((4, 6))}, "", "a thing")
    with pytest.raises(ValueError, match="shape"):
        files.check_layout(files.read_header(path), {"a": torch.Size((5, 6))}, "", "a thing")


def test_sha256_is_checked_and_a_changed_file_is_read_again(files, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    good = hashlib.sha256(b"one").hexdigest()
    files.verify_sha256(path, good.upper())
    path.write_bytes(b"twoo")
    with pytest.raises(ValueError, match=f"has the sha256 .*, but {good} is expected"):
        files.verify_sha256(path, good)
    files.verify_sha256(path, hashlib.sha256(b"twoo").hexdigest())


def test_an_unchanged_file_is_read_once(files, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    good = hashlib.sha256(b"one").hexdigest()
    files.verify_sha256(path, good)
    monkeypatch.setattr(type(path), "open", lambda *_: pytest.fail("read again"))
    files.verify_sha256(path, good)
