"""Which python runs which ComfyUI: the pinned pair in the user's cache folder, or a ComfyUI that the user has."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from . import comfyui
from .cache import ROOT, cache_folder, exclusive, log_file
from .console import Failure, Progress, last_line, tail

LOCK = ROOT / "tools" / "requirements.lock"
STAMP = "idcrafter-environment.json"
PYTHONS = ((3, 10), (3, 12))
# Imported once before a set-up counts as done: the packages whose binary parts break most often.
PROBE = "import torch, torchvision, torchaudio, aiohttp, av, cv2, onnxruntime, insightface, safetensors, sentencepiece"


@dataclass(frozen=True)
class Environment:
    """A python interpreter that has what ComfyUI and the pack need, and the ComfyUI folder that it runs."""

    python: Path
    comfyui: Path
    pinned: bool

    def variables(self) -> dict[str, str]:
        """The process environment for everything that runs in it."""
        extra = {"IDCRAFTER_COMFYUI": str(self.comfyui), "PYTHONIOENCODING": "utf-8"}
        if self.pinned:
            extra["PYTHONNOUSERSITE"] = "1"  # packages in the user's own site must not shadow the locked ones
        return {key: value for key, value in os.environ.items() if key != "PYTHONHOME"} | extra


def prepare(comfyui_path: str | None = None, fresh: bool = False) -> Environment:
    """The environment to use; sets it up first where that is needed.

    Raises Failure with the reason, and the tail of pip's log, when it cannot.
    """
    return existing(Path(comfyui_path)) if comfyui_path else pinned(fresh)


# The pinned pair ------------------------------------------------------------------------------------------------------


def environment_key() -> str:
    """Changes with the locked requirements, python's version and the platform, and with nothing else."""
    lock = LOCK.read_text("utf-8")  # text mode: a checkout with CRLF line ends has the same key
    python = f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}"
    return hashlib.sha256(f"{lock}\0{python}\0{sysconfig.get_platform()}".encode()).hexdigest()[:12]


def pinned(fresh: bool = False) -> Environment:
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise Failure(
            f"Python {platform.python_version()} ({sys.executable}) cannot set up the environment: it needs "
            "3.10, 3.11 or 3.12. Start run.py with one of those, or give an existing ComfyUI with --comfyui PATH."
        )
    cache = cache_folder()
    home, comfy = cache / f"env-{environment_key()}", comfyui.folder_in(cache)
    environment = Environment(python_in(home), comfy, True)
    if not fresh and is_complete(home) and comfyui.is_complete(comfy):
        return environment
    progress = Progress("waiting for another set-up to end")
    with exclusive(cache / "setup.lock", progress.update):
        if fresh or not is_complete(home):
            _create(home, fresh)
        if fresh or not comfyui.is_complete(comfy):
            _fetch_comfyui(environment)
    return environment


def python_in(home: Path) -> Path:
    return home / "Scripts" / "python.exe" if os.name == "nt" else home / "bin" / "python"


def is_complete(home: Path) -> bool:
    """True when the set-up ran to its end and nothing that it installed was removed or changed since."""
    try:
        stamp = json.loads((home / STAMP).read_text("utf-8"))
        installed = {path.name for path in Path(stamp["packages"]).glob("*.dist-info")}
        if not stamp["distributions"] or not installed.issuperset(stamp["distributions"]):
            return False
        return subprocess.run([python_in(home), "-I", "-S", "-c", ""], check=False).returncode == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _create(home: Path, fresh: bool) -> None:
    if home.exists():
        print(f"The environment in {home} is {'to be made anew' if fresh else 'incomplete or damaged'}: rebuilding it.")
        (home / STAMP).unlink(missing_ok=True)  # should the rebuilding be interrupted, nobody takes it for complete
    print(f"Setting up {home}: 3 GB of downloads the first time, 7 GB on disk.", flush=True)
    log = log_file("setup")
    venv.EnvBuilder(clear=True, with_pip=True, symlinks=os.name != "nt").create(home)
    run_pip(python_in(home), ["install", "--no-deps", "-r", str(LOCK)], log, "packages")
    _run([python_in(home), "-c", PROBE], log, "checking")
    packages = next(home.glob("lib/python*/site-packages" if os.name != "nt" else "Lib/site-packages"))
    stamp = {
        "packages": str(packages),
        "distributions": sorted(path.name for path in packages.glob("*.dist-info")),
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    (home / STAMP).write_text(json.dumps(stamp, indent=1), "utf-8")


def _fetch_comfyui(environment: Environment) -> None:
    log = log_file("setup")
    comfyui.install(
        environment.comfyui,
        lambda arguments: run_pip(environment.python, arguments, log, f"ComfyUI {comfyui.VERSION}"),
    )


def run_pip(python: Path, arguments: list[str], log: Path, title: str) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    _run([python, "-m", "pip", arguments[0], *options, *arguments[1:]], log, title)


def _run(command: list, log: Path, title: str) -> None:
    """Run a command with its output in `log` and one line of progress here."""
    progress = Progress(title)
    with open(log, "ab") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                code = process.wait(0.5)
                break
            except subprocess.TimeoutExpired:
                progress.update(last_line(log, "Collecting|Downloading|Using cached|Installing|Successfully"))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        progress.done("failed")
        raise Failure(f"Set-up failed at: {title}\n{tail(log)}\nThe whole log: {log}")
    progress.done()


# A ComfyUI that the user has ------------------------------------------------------------------------------------------


def existing(folder: Path) -> Environment:
    """An installed ComfyUI (its folder, or the portable build's folder around it) with its own python."""
    folder = folder.expanduser().resolve()
    nested = folder / "ComfyUI"
    if comfyui.version_of(folder) is None and comfyui.version_of(nested) is not None:
        folder = nested
    version = comfyui.version_of(folder)
    if version is None or not (folder / "main.py").is_file():
        raise Failure(f"{folder} is no ComfyUI folder: it has no main.py with a comfyui_version.py beside it.")
    if version < (0, 30, 0):
        number = ".".join(map(str, version))
        raise Failure(f"{folder} holds ComfyUI {number}; IDCrafter needs 0.30.0 or newer. Update it, then try again.")
    python = find_python(folder)
    if python is None:
        python = Path(sys.executable)
        print(f"No virtual environment found in {folder}: using {python}.", flush=True)
    else:
        print(f"Using {folder} with {python}.", flush=True)
    _require(python, ROOT / "requirements.txt")
    return Environment(python, folder, False)


def find_python(folder: Path) -> Path | None:
    """The interpreter of a virtual environment in the ComfyUI folder, or the portable build's."""
    for home in (folder / "venv", folder / ".venv", folder.parent / "venv", folder.parent / ".venv"):
        if python_in(home).is_file():
            return python_in(home)
    portable = folder.parent / "python_embeded" / "python.exe"
    return portable if portable.is_file() else None


def _require(python: Path, requirements: Path) -> None:
    """Fail with the command that helps when `python` lacks torch or one of the pack's requirements."""
    names = ["torch", "aiohttp"]
    for line in requirements.read_text("utf-8").splitlines():
        name = line.strip()
        for separator in "<>=!~;[ ":
            name = name.split(separator)[0]
        if name:
            names.append(name)
    code = (
        "import importlib.metadata as m, sys\n"
        "have = {(d.metadata['Name'] or '').lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*[n for n in sys.argv[1:] if n.lower().replace('_', '-') not in have])"
    )
    found = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Failure(f"{python} does not run: {found.stderr.strip()[-400:]}")
    if missing := found.stdout.split():
        raise Failure(
            f"{python} lacks {', '.join(missing)}. Install what the pack needs with:\n"
            f'  "{python}" -m pip install -r "{requirements}"'
        )
