"""A small HTTP client for ComfyUI's own API: post a graph, wait for it, read what it made."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid


class ServerError(RuntimeError):
    """The server refused a request; the text says why."""


class GraphError(RuntimeError):
    """A graph was refused or one of its nodes failed.

    node_id, node_type and message tell where and why; node_errors holds the server's validation answer if there is one.
    """

    def __init__(self, message, node_id=None, node_type=None, node_errors=None):
        super().__init__(f"{node_type} (node {node_id}): {message}" if node_type else message)
        self.message = message
        self.node_id = node_id
        self.node_type = node_type
        self.node_errors = node_errors or {}


class Interrupted(GraphError):
    """The run was stopped on request."""


class Client:
    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def get(self, path: str, timeout: float = 60):
        return json.loads(self._open(self.url + path, timeout) or b"null")

    def post(self, path: str, body: dict, timeout: float = 60):
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return json.loads(self._open(request, timeout) or b"null")

    def object_info(self, node: str = "") -> dict:
        """Schemas of all nodes, or of one ({} when the server does not know it)."""
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def queue(self, graph: dict, **extra) -> str:
        """Post an API-format graph; returns its prompt id. GraphError when any part of it does not validate."""
        prompt_id = str(uuid.uuid4())
        try:
            answer = self.post("/prompt", {"prompt": graph, "prompt_id": prompt_id, **extra})
        except ServerError as error:
            raise _refusal(error, graph) from None
        if answer.get("node_errors"):  # the server runs what is valid of a graph; half a result helps nobody
            self.interrupt(prompt_id)
            raise _refused_nodes(answer["node_errors"], graph, "the graph is invalid")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600, on_wait=lambda: None, every: float = 0.2) -> dict:
        """The history entry of a finished run. GraphError with the node's own message when it failed."""
        deadline = time.monotonic() + timeout
        while True:
            entry = self.history(prompt_id)
            if entry is not None:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {prompt_id} did not finish within {timeout:.0f} s")
            on_wait()
            time.sleep(every)
        for event, data in entry["status"]["messages"]:
            if event == "execution_error":
                message = data["exception_message"].strip()
                raise GraphError(message, data["node_id"], data["node_type"])
            if event == "execution_interrupted":
                raise Interrupted("interrupted", data["node_id"], data["node_type"])
        return entry

    def run(self, graph: dict, timeout: float = 600, on_wait=lambda: None) -> dict:
        return self.wait(self.queue(graph), timeout, on_wait)

    def history(self, prompt_id: str) -> dict | None:
        """None until the run has ended, whatever its end."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def running(self) -> list[str]:
        return [item[1] for item in self.get("/queue")["queue_running"]]

    def interrupt(self, prompt_id: str) -> None:
        """Stop a run, or take it out of the queue if it has not begun."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})

    def files(self, entry: dict) -> list[dict]:
        """Every file that a run's nodes reported: {"node", "filename", "subfolder", "type"}."""
        found = []
        for node, outputs in entry["outputs"].items():
            for items in outputs.values():
                if isinstance(items, list | tuple):
                    found += [{"node": node, **item} for item in items if isinstance(item, dict) and "filename" in item]
        return found

    def download(self, file: dict) -> bytes:
        query = urllib.parse.urlencode({key: file.get(key, "") for key in ("filename", "subfolder", "type")})
        return self._open(f"{self.url}/view?{query}", 60)

    def _open(self, request, timeout: float) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(error.read().decode("utf-8", "replace") or str(error)) from error


def _refusal(error: ServerError, graph: dict) -> GraphError:
    try:
        answer = json.loads(str(error))
        problem = answer["error"]
        text = problem["message"] + (f": {problem['details']}" if problem.get("details") else "")
    except (ValueError, KeyError, TypeError):
        return GraphError(str(error))
    return _refused_nodes(answer.get("node_errors") or {}, graph, text)


def _refused_nodes(node_errors: dict, graph: dict, otherwise: str) -> GraphError:
    lines, first = [], None
    for node_id, problem in node_errors.items():
        kind = problem.get("class_type") or graph.get(node_id, {}).get("class_type")
        first = first or (node_id, kind)
        for entry in problem.get("errors", []):
            text = entry["message"] + (f": {entry['details']}" if entry.get("details") else "")
            lines.append(text if (node_id, kind) == first else f"{kind} (node {node_id}): {text}")
    lines = list(dict.fromkeys(lines))
    if not first or not lines:
        return GraphError(otherwise, node_errors=node_errors)
    return GraphError("; ".join(lines), *first, node_errors=node_errors)
