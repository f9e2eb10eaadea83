"""ComfyUI and this pack inside the test process, for tests of single nodes."""

import asyncio
import importlib
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def comfyui_folder() -> Path:
    """$IDCRAFTER_COMFYUI (run.py sets it), else the ComfyUI that `run.py setup` has put into the cache."""
    from tools import cache, comfyui

    folder = Path(os.environ.get("IDCRAFTER_COMFYUI") or comfyui.folder_in(cache.cache_folder()))
    if comfyui.version_of(folder) is None:
        raise RuntimeError(f"no ComfyUI in {folder}: run `python run.py test`, or set IDCRAFTER_COMFYUI")
    return folder


def prepare_path() -> None:
    """Make `import comfy` and `import idcrafter` work.

    ComfyUI comes before this repository, whose `nodes` package would hide ComfyUI's `nodes` module.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]
    sys.path.insert(0, str(comfyui_folder()))


def configure(base: Path) -> None:
    """Set ComfyUI's options for this process: the CPU, and all of its folders under `base`."""
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(base)
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)


class Result(tuple):
    """A node's outputs in order; `ui` is what it sends to the browser (None, or a dict)."""

    ui = None


def wait_for(coroutine):
    """Its result; in a thread of its own, because playwright has an event loop running in the tests' thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class Pack:
    """The pack, imported as ComfyUI does it: under a name made from its path.

    module  the imported package
    nodes   {node id: class}
    """

    def __init__(self):
        name = str(ROOT).replace(".", "_x_")
        if name in sys.modules:
            self.module = sys.modules[name]
        else:
            spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
            self.module = importlib.util.module_from_spec(spec)
            sys.modules[name] = self.module
            spec.loader.exec_module(self.module)
        self.nodes = {node.GET_SCHEMA().node_id: node for node in wait_for(self._node_list())}
        self._core = None

    async def _node_list(self) -> list:
        entrypoint = self.module.comfy_entrypoint()
        extension = await entrypoint if asyncio.iscoroutine(entrypoint) else entrypoint
        await extension.on_load()
        return await extension.get_node_list()

    def submodule(self, name: str) -> ModuleType:
        """A module of the pack under the mangled name, for example `submodule("idcrafter.subjects.subject")`.

        Its classes are the ones that the nodes use; `import idcrafter...` would make a second set of them.
        """
        return importlib.import_module(f"{self.module.__name__}.{name}")

    def core(self, node_id: str):
        """A class of ComfyUI's own nodes, comfy_extras included."""
        if self._core is None:
            import nodes

            wait_for(nodes.init_builtin_extra_nodes())
            self._core = nodes.NODE_CLASS_MAPPINGS
        return self._core[node_id]

    def execute(self, node_id: str, /, hidden: dict | None = None, **inputs) -> Result:
        """Run one node of the pack, or of ComfyUI.

        inputs  what the node's execute() receives (an Autogrow input is a dict)
        hidden  the values of hidden inputs by name, for example {"prompt": graph, "unique_id": "7"}
        """
        node = self.nodes.get(node_id) or self.core(node_id)
        if not hasattr(node, "PREPARE_CLASS_CLONE"):
            answer = getattr(node(), node.FUNCTION)(**inputs)
            if isinstance(answer, dict):
                result = Result(answer.get("result", ()))
                result.ui = answer.get("ui")
                return result
            return Result(answer)
        from comfy_api.latest import io

        values = {io.Hidden[key]: value for key, value in (hidden or {}).items()}
        output = node.PREPARE_CLASS_CLONE({"hidden_inputs": values}).EXECUTE_NORMALIZED(**inputs)
        if asyncio.iscoroutine(output):
            output = wait_for(output)
        result = Result(output.args)
        result.ui = output.ui if output.ui is None or isinstance(output.ui, dict) else output.ui.as_dict()
        return result
