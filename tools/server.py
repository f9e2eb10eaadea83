"""A real ComfyUI server with this pack, in folders of its own, for run.py and the tests alike."""

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .cache import ROOT, cache_folder, log_file, sweep
from .client import Client, ServerError
from .console import Failure, tail
from .environment import Environment

PACK = "ComfyUI-IDCrafter"  # the folder name that ComfyUI sees, whatever the clone is called
# What Linux has for NVIDIA, AMD, Intel, Windows' own GPU in WSL, and other accelerators.
ACCELERATOR_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/dxg", "/dev/accel")
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")


class Server:
    """One ComfyUI process bound to 127.0.0.1.

    base       folder for its inputs, outputs, user data and temporary files; None: a new one, removed by stop()
    port       0 picks a free one
    cpu        None: only when torch sees no accelerator
    only_pack  leave out other custom nodes of an existing ComfyUI
    extra      more command line arguments for ComfyUI
    """

    def __init__(
        self,
        environment: Environment,
        base: Path | None = None,
        *,
        port: int = 0,
        cpu: bool | None = None,
        only_pack: bool = True,
        extra: tuple[str, ...] = (),
    ):
        self.environment = environment
        self.temporary = base is None
        if base is None:
            sweep(cache_folder(), "run-*")  # of processes that were killed
            base = tempfile.mkdtemp(prefix="run-", dir=cache_folder())
        self.base = Path(base)
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.port = free_port(port)
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.log = log_file("server")
        self.cpu = cpu
        self.only_pack = only_pack
        self.extra = extra
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return self.client.url

    def start(self, timeout: float = 600.0, on_wait=lambda: None) -> "Server":
        """Start the process and return once it answers and has the pack; Failure with the log's tail otherwise.

        `on_wait()` is called a few times a second meanwhile.
        """
        if self.cpu is None:
            self.cpu = not sees_accelerator(self.environment)
        with open(self.log, "ab") as sink:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.base,
                env=self.environment.variables() | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
                stdin=subprocess.PIPE,  # see launch.py
                stdout=sink,
                stderr=subprocess.STDOUT,
                **_own_group(),
            )
        atexit.register(self.stop)
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None:
                raise Failure(f"ComfyUI ended at once (exit {self.process.returncode}).\n{self.explain()}")
            if time.monotonic() > deadline:
                self.stop()
                raise Failure(f"ComfyUI did not answer within {timeout:.0f} s.\n{self.explain()}")
            on_wait()
            time.sleep(0.25)
        if "IDCrafterCast" not in self.client.object_info("IDCrafterCast"):
            self.stop()
            raise Failure(f"ComfyUI runs but could not load the pack.\n{self.explain()}")
        return self

    def stop(self) -> None:
        """End the process (and whatever it started) and remove its folders if they were temporary."""
        atexit.unregister(self.stop)
        if self.process is not None and self.process.poll() is None:
            _signal_group(self.process, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                _signal_group(self.process, getattr(signal, "SIGKILL", signal.SIGTERM))
                self.process.wait(10)
        if self.process is not None:
            self.process.stdin.close()
        if self.temporary and self.base.exists():
            unlink_folder(self.base / "custom_nodes" / PACK)
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> "Server":
        return self if self.process else self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def explain(self) -> str:
        return f"{tail(self.log).strip()}\nThe whole log: {self.log}"

    def command(self) -> list[str]:
        folder = {name: str(self.base / name) for name in FOLDERS}
        command = [str(self.environment.python), str(Path(__file__).with_name("launch.py"))]
        command.append(str(self.environment.comfyui / "main.py"))
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--base-directory", str(self.base), "--input-directory", folder["input"]]
        command += ["--output-directory", folder["output"], "--temp-directory", str(self.base)]
        command += ["--user-directory", folder["user"], "--database-url", "sqlite:///:memory:"]
        if not self.environment.pinned:
            command += ["--models-directory", str(self.environment.comfyui / "models")]
        if self.cpu:
            command.append("--cpu")
        return command + self._pack_arguments() + list(self.extra)

    def _pack_arguments(self) -> list[str]:
        """Make the pack visible without writing into a ComfyUI that is not ours."""
        theirs = self.environment.comfyui / "custom_nodes"
        link = self.base / "custom_nodes" / PACK
        installed = None if self.environment.pinned else clone_in(theirs)
        if installed:
            unlink_folder(link)  # an earlier run may have left one; two would load the pack twice
        else:
            link_folder(link, ROOT)
        arguments = []
        if not self.environment.pinned and (installed or not self.only_pack):
            config = self.base / "extra_model_paths.yaml"
            # JSON is YAML; it needs no care for blanks, quotes and backslashes in the path.
            config.write_text(json.dumps({"comfyui": {"custom_nodes": str(theirs)}}), "utf-8")
            arguments += ["--extra-model-paths-config", str(config)]
        if self.only_pack:
            arguments += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", installed or PACK]
        return arguments

    def _answers(self) -> bool:
        try:
            self.client.get("/system_stats", timeout=2)
            return True
        except (OSError, ServerError):
            return False


def free_port(wanted: int = 0) -> int:
    with socket.socket() as probe:
        if os.name != "nt":  # there the option means something else: it would take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise Failure(f"Port {wanted} cannot be used ({error.strerror}). Choose another with --port.") from error
        return probe.getsockname()[1]


def sees_accelerator(environment: Environment) -> bool:
    """Whether torch can compute on anything but the CPU. Importing torch takes seconds, so that comes second."""
    if sys.platform == "linux" and not any(map(os.path.exists, ACCELERATOR_DEVICES)):
        return False
    code = "import torch; raise SystemExit(not (torch.cuda.is_available() or torch.accelerator.is_available()))"
    process = subprocess.run([environment.python, "-c", code], env=environment.variables(), capture_output=True)
    return process.returncode == 0


def clone_in(custom_nodes: Path) -> str | None:
    """The name under which a custom_nodes folder holds this very clone, None when it does not."""
    with contextlib.suppress(OSError):
        for entry in custom_nodes.iterdir():
            if entry.resolve() == ROOT and not entry.name.endswith(".disabled"):
                return entry.name
    return None


def link_folder(link: Path, target: Path) -> None:
    """A symbolic link; on Windows a directory junction, which needs no administrator."""
    if os.path.lexists(link):
        if link.resolve() == target:
            return
        unlink_folder(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def unlink_folder(link: Path) -> None:
    """Remove a link or junction, never what it points to."""
    if os.path.lexists(link):
        os.rmdir(link) if os.name == "nt" else os.unlink(link)


def _own_group() -> dict:
    """Keep Ctrl-C at the terminal from reaching the server before run.py has decided what to do."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _signal_group(process: subprocess.Popen, number: int) -> None:
    if os.name == "nt":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
