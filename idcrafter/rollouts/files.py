"""Files that are there whole or not at all, whoever is killed, and whoever else writes beside."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import time
from pathlib import Path

SUFFIX = ".tmp"
# A writer on another host cannot be asked whether it lives; after this it is taken for dead.
ABANDONED_SECONDS = 3600.0
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


def write_once(path: Path, data: bytes) -> bool:
    """Create a file that is never changed afterwards. False when it was there already: then it stays as it is.

    It is on the disk (fsync) before it has its name, and of several writers the first one wins. Raises OSError, after
    which nothing of it is left.
    """
    if path.exists():
        return False
    temporary = _write_temporary(path, data, durable=True)
    try:
        try:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def replace(path: Path, data: bytes) -> None:
    """Write or replace a file that can be made again, so it need not outlive a power cut. Raises OSError."""
    temporary = _write_temporary(path, data, durable=False)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files that no living writer will finish."""
    return [path for path in sorted(folder.glob(f".*{SUFFIX}")) if _is_abandoned(path)]


def _write_temporary(path: Path, data: bytes, durable: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:  # an interrupt must not leave it either
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too. Windows has no such thing, and some network drives refuse it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", platform.node()) or "host"


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False  # finished, or removed, since it was listed
    if match and match["host"] == _host() and os.name == "posix":
        pid = int(match["pid"])
        if pid == os.getpid():
            return age > ABANDONED_SECONDS
        try:
            os.kill(pid, 0)  # signal 0 only asks; on Windows it would end the process
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return age > ABANDONED_SECONDS
    return age > ABANDONED_SECONDS
