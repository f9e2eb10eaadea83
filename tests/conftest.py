"""Fixtures: a real ComfyUI server with this pack, a client for it, and the pack in this process."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

# Workers share the cores with each other, and with the servers that they start; read when torch is imported. Not in the
# process that starts them: they would inherit its number.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from support import inprocess  # noqa: E402
from tools.client import Client  # noqa: E402
from tools.demo import copy_photos  # noqa: E402
from tools.environment import Environment  # noqa: E402
from tools.server import Server  # noqa: E402

MODEL_FOLDERS = ("diffusion_models", "loras", "text_encoders", "vae")

# Before any test module is imported, because those may import comfy or idcrafter at their top: nothing in this
# process writes into the ComfyUI folder or needs a GPU.
_base = tempfile.TemporaryDirectory(prefix="idcrafter-tests-")
inprocess.prepare_path()
inprocess.configure(Path(_base.name))


@pytest.fixture(scope="session")
def environment() -> Environment:
    """This python with the ComfyUI under test."""
    return Environment(Path(sys.executable), inprocess.comfyui_folder(), pinned=False)


@pytest.fixture(scope="session")
def comfyui_server(environment, tmp_path_factory):
    """A ComfyUI server on the CPU with the pack, started as run.py starts it; the reference photos are its inputs.

    It also looks for models in `base`/more_models, where tests may put tiny ones.
    """
    base = tmp_path_factory.mktemp("server")
    more = base / "more_models"
    for name in MODEL_FOLDERS:
        (more / name).mkdir(parents=True)
    config = base / "more_models.yaml"
    config.write_text(json.dumps({"tests": {name: str(more / name) for name in MODEL_FOLDERS}}))  # JSON is YAML
    server = Server(environment, base, cpu=True, extra=("--extra-model-paths-config", str(config)))
    copy_photos(server.base / "input")
    with server.start():
        yield server


@pytest.fixture
def client(comfyui_server) -> Client:
    """Posts graphs to the server; raises GraphError with the failing node's message."""
    return comfyui_server.client


@pytest.fixture(scope="session")
def pack() -> inprocess.Pack:
    """The pack in this process; `pack.execute("IDCrafterSubject", name="Ada", ...)` runs one node."""
    return inprocess.Pack()


@pytest.fixture
def quickstart() -> dict:
    """A fresh copy of the quickstart graph in API format."""
    return json.loads((ROOT / "workflows" / "api" / "quickstart.json").read_text("utf-8"))
