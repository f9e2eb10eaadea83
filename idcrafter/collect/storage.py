"""Where a collection is kept: a folder, or whatever pyarrow's file systems reach (S3, Google, HDFS).

Names are relative, with slashes. What is written has its name only when it is whole, and is never written twice.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from pathlib import Path

from ..rollouts import files

# Stores in which an object appears when its upload is complete; elsewhere a file grows under its name.
_OBJECT_STORES = ("s3", "gcs", "abfs")


def open_storage(out: str) -> LocalStorage | ArrowStorage:
    """A folder, which is made, or a URI like s3://bucket/folder.

    RuntimeError without pyarrow, ValueError for an unknown scheme or a file, OSError where nothing can be written.
    """
    if not re.match(r"^[a-z][a-z0-9+.-]+://", out):
        return _local(Path(out))
    try:
        import pyarrow
        from pyarrow import fs
    except ImportError as error:
        raise RuntimeError(
            f"'{out}' needs pyarrow, which is not installed; run: python -m pip install pyarrow (in ComfyUI's python)."
        ) from error
    try:
        filesystem, base = fs.FileSystem.from_uri(out)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"'{out}' cannot be opened ({error}); give a folder, or a URI that pyarrow knows.") from error
    if filesystem.type_name == "local":
        return _local(Path(base))
    return ArrowStorage(filesystem, base)


def _local(folder: Path) -> LocalStorage:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"'{folder}' cannot be a folder: there is a file; give another one.") from error
    return LocalStorage(folder)


class LocalStorage:
    """A folder, on this host or shared by several."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def __str__(self) -> str:
        return str(self.folder)

    def put(self, name: str, data: bytes) -> bool:
        """Write it; False when it was there already. Raises OSError, after which nothing of it is there."""
        return files.write_once(self.folder / name, data)

    def read(self, name: str) -> bytes:
        """FileNotFoundError when there is none."""
        return (self.folder / name).read_bytes()

    def sizes(self, folder: str) -> dict[str, int]:
        """{file: bytes} of what is whole in a folder; {} when there is none."""
        found = {}
        for path in (self.folder / folder).glob("*"):
            if path.suffix != files.SUFFIX and path.is_file():
                found[path.name] = path.stat().st_size
        return found

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def move(self, name: str, to: str) -> None:
        (self.folder / to).parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder / name, self.folder / to)


class ArrowStorage:
    """A folder of a pyarrow.fs.FileSystem; the methods are those of `LocalStorage`."""

    def __init__(self, filesystem, base: str):
        self.filesystem = filesystem
        self.base = base.rstrip("/")

    def __str__(self) -> str:
        return f"{self.filesystem.type_name}:{self.base}"

    def put(self, name: str, data: bytes) -> bool:
        if self.has(name):
            return False
        path = self._path(name)
        if self.filesystem.type_name in _OBJECT_STORES:
            try:
                self._write(path, data)
            except BaseException:  # closing it may have stored the half
                self.remove(name)
                raise
            return True
        folder, file = path.rsplit("/", 1)
        self.filesystem.create_dir(folder, recursive=True)
        host = re.sub(r"[^A-Za-z0-9_-]", "_", platform.node()) or "host"
        temporary = f"{folder}/.{file}.{host}-{os.getpid()}-{secrets.token_hex(4)}{files.SUFFIX}"
        try:
            self._write(temporary, data)
            if self.has(name):  # another worker was quicker
                self.filesystem.delete_file(temporary)
                return False
            self.filesystem.move(temporary, path)
        except BaseException:
            if self._exists(temporary):
                self.filesystem.delete_file(temporary)
            raise
        return True

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def sizes(self, folder: str) -> dict[str, int]:
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self._path(folder), allow_not_found=True))
        return {
            info.base_name: info.size
            for info in found
            if info.type == fs.FileType.File and not info.base_name.endswith(files.SUFFIX)
        }

    def has(self, name: str) -> bool:
        return self._exists(self._path(name))

    def remove(self, name: str) -> None:
        if self.has(name):
            self.filesystem.delete_file(self._path(name))

    def move(self, name: str, to: str) -> None:
        if self.filesystem.type_name not in _OBJECT_STORES:
            self.filesystem.create_dir(self._path(to).rsplit("/", 1)[0], recursive=True)
        self.filesystem.move(self._path(name), self._path(to))

    def _write(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def _exists(self, path: str) -> bool:
        from pyarrow import fs

        return self.filesystem.get_file_info(path).type == fs.FileType.File

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"
