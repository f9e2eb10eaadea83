"""The user's cache folder: where the environment, the pinned ComfyUI, logs and run folders live."""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """%LOCALAPPDATA%/idcrafter on Windows, else $XDG_CACHE_HOME/idcrafter or ~/.cache/idcrafter."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "idcrafter"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sweep(folder: Path, pattern: str, days: float = 7) -> None:
    """Remove what earlier processes left behind, unless it is recent. Links are removed, never what they point to."""
    for old in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > days * 86400:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


def log_file(name: str) -> Path:
    """A fresh log file in the cache; logs older than a week go."""
    folder = cache_folder() / "logs"
    folder.mkdir(exist_ok=True)
    sweep(folder, "*.log")
    path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path.touch()
    return path


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(path: Path, waiting):
    """Hold a lock file. The operating system drops the lock when the process ends, however it ends.

    `waiting()` is called about twice a second while another process holds it.
    """
    with open(path, "a+b") as stream:
        while not _try_lock(stream):
            waiting()
            time.sleep(0.5)
        try:
            yield
        finally:
            _unlock(stream)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(stream) -> bool:
        stream.seek(0)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(stream) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(stream) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(stream) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)
