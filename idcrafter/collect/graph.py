"""An API graph: its inputs by name, values written into them, and what a server's schemas say about it."""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROLLOUTS_NODE = "IDCrafterSaveRollouts"
# Schema types that are a widget; every other one is a connection.
_WIDGETS = ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO")


@dataclass(frozen=True)
class Target:
    """An input of a node, by the node's id and the input's name."""

    node: str
    input: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with an input of a node, or with the node (input '')."""

    node: str
    input: str
    reason: str


def read_graph(path: Path) -> dict:
    """{node id: {"class_type", "inputs", ...}}. FileNotFoundError, or ValueError when it is not an API graph."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no graph '{path}'.")
    try:
        graph = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"The graph '{path.name}' is not JSON ({error}).") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise ValueError(
            f"The graph '{path.name}' is as the canvas saves it; export it in ComfyUI by Workflow > Export (API)."
        )
    if not isinstance(graph, dict) or not graph:
        raise ValueError(f"'{path.name}' is not an API graph; export it in ComfyUI by Workflow > Export (API).")
    for node_id, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise ValueError(f"Node {node_id} of '{path.name}' has no class_type; export the graph again as API.")
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise ValueError(f"The inputs of node {node_id} of '{path.name}' are no JSON object; export it again.")
        for name, value in node["inputs"].items():
            if is_link(value) and str(value[0]) not in graph:
                raise ValueError(f"{_called(graph, node_id)}: '{name}' comes from node {value[0]}, which is not there.")
    return graph


def is_link(value) -> bool:
    """Whether an input comes from another node, as [node id, number of its output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def title(graph: Mapping, node_id: str) -> str:
    node = graph[node_id]
    return str((node.get("_meta") or {}).get("title") or node["class_type"])


def find_target(graph: Mapping, column: str) -> Target:
    """The input that `Title.input` or `id.input` names. ValueError when there is none, or more than one.

    Titles and inputs may have points in them. An input that the graph does not have counts where it is the only
    reading: exports leave out what nobody has set; the server's schema decides then.
    """
    known, others = [], []
    for i, letter in enumerate(column):
        if letter == ".":
            for node_id in graph:
                if column[:i] in (node_id, title(graph, node_id)) and column[i + 1 :]:
                    target = Target(node_id, column[i + 1 :])
                    (known if target.input in graph[node_id]["inputs"] else others).append(target)
    found = list(dict.fromkeys(known or others))
    if not found:
        raise ValueError(_not_found(graph, column))
    if len(found) > 1:
        ids = ", ".join(f"{target.node}.{target.input}" for target in found)
        raise ValueError(f"it may mean any of {ids}; write the id instead of the title.")
    value = graph[found[0].node]["inputs"].get(found[0].input)
    if is_link(value):
        raise ValueError(
            f"this input comes from {_called(graph, value[0])}; set an input of that node, or disconnect it."
        )
    return found[0]


def guessed_kind(graph: Mapping, target: Target) -> tuple[str]:
    """The kind of a value by what the graph has there; text where it has nothing."""
    value = graph[target.node]["inputs"].get(target.input)
    if isinstance(value, bool):
        return ("BOOLEAN",)
    return ("NUMBER",) if isinstance(value, (int, float)) else ("STRING",)


def kind_by_schema(graph: Mapping, schemas: Mapping, target: Target) -> tuple:
    """The kind of an input as its node declares it, and the options of a COMBO. ValueError where it has no such input.

    Inputs that depend on others (`mode.strength`) are not in a schema as such; their value decides.
    """
    known = _inputs(schemas.get(graph[target.node]["class_type"]))
    if target.input in known:
        kind, _, options = known[target.input]
        return kind, options.get("options") or ()
    if target.input.split(".")[0] in known:
        return guessed_kind(graph, target)
    close = difflib.get_close_matches(target.input, known, 3)
    raise ValueError(f"{_called(graph, target.node)} has no input '{target.input}'{_did_you_mean(close)}.")


def with_values(graph: Mapping, values: Mapping[Target, object]) -> dict:
    """A copy with values written in."""
    filled = copy.deepcopy(dict(graph))
    for target, value in values.items():
        filled[target.node]["inputs"][target.input] = value
    return filled


def check(graph: Mapping, schemas: Mapping, is_file=lambda name: False) -> Iterator[Problem]:
    """What ComfyUI would refuse, and what it would silently ignore.

    schemas  /object_info of the classes of the graph
    is_file  whether a name that no COMBO lists is a file of the input folder; those in its subfolders are not listed
    """
    if not any((schemas.get(node["class_type"]) or {}).get("output_node") for node in graph.values()):
        known = all(schemas.get(node["class_type"]) for node in graph.values())
        if known:
            yield Problem(next(iter(graph)), "", "no node of the graph has an output; add one that saves something")
    for node_id, node in graph.items():
        schema = schemas.get(node["class_type"])
        if not schema:
            yield Problem(node_id, "", f"ComfyUI has no node {node['class_type']}; install the pack that brings it")
            continue
        known = _inputs(schema)
        for name, (kind, required, options) in known.items():
            value = node["inputs"].get(name)
            if name not in node["inputs"]:
                dynamic = kind.startswith("COMFY_") or any(given.startswith(f"{name}.") for given in node["inputs"])
                if required and not dynamic:
                    yield Problem(node_id, name, "it is required, but the graph has nothing there")
            elif is_link(value):
                outputs = (schemas.get(graph[value[0]]["class_type"]) or {}).get("output")
                if outputs is not None and not 0 <= value[1] < len(outputs):
                    yield Problem(node_id, name, f"node {value[0]} has no output {value[1]}")
            elif reason := _wrong_value(value, kind, options, is_file):
                yield Problem(node_id, name, reason)


def describe(problem: Problem, graph: Mapping) -> str:
    where = _called(graph, problem.node)
    return f"{where}, {problem.input}: {problem.reason}." if problem.input else f"{where}: {problem.reason}."


def chosen(graph: Mapping, schemas: Mapping) -> set[str]:
    """Every text that is chosen from a list: among them are the names of all files that the graph reads."""
    found = set()
    for node in graph.values():
        for name, (kind, _, _) in _inputs(schemas.get(node["class_type"])).items():
            value = node["inputs"].get(name)
            if kind == "COMBO" and isinstance(value, str) and value:
                found.add(value)
    return found


def rollout_folders(graph: Mapping) -> tuple[str, ...]:
    """Where Save Rollouts nodes write, inside the output folder. ValueError when that is not known in advance."""
    folders = []
    for node_id, node in graph.items():
        if node["class_type"] == ROLLOUTS_NODE:
            folder = node["inputs"].get("folder", "idcrafter/rollouts")
            if not isinstance(folder, str):
                raise ValueError(f"{_called(graph, node_id)}: its folder comes from another node; write it in.")
            folders.append(folder)
    return tuple(dict.fromkeys(folders))


def classes(graph: Mapping) -> list[str]:
    return sorted({node["class_type"] for node in graph.values()})


def bare(graph: Mapping) -> dict:
    """Without titles: what decides about the result."""
    return {node_id: {"class_type": n["class_type"], "inputs": n["inputs"]} for node_id, n in graph.items()}


def _inputs(schema: Mapping | None) -> dict[str, tuple[str, bool, dict]]:
    """{name: (kind, required, options)} of a node of /object_info; a list of choices is a COMBO, however it is told."""
    found = {}
    for section in ("required", "optional"):
        for name, entry in ((schema or {}).get("input", {}).get(section) or {}).items():
            kind = entry[0]
            options = entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found[name] = (str(kind), section == "required", options)
    return found


def _wrong_value(value, kind: str, options: Mapping, is_file) -> str:
    """'' when the value is good."""
    if kind in ("INT", "FLOAT"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (kind == "INT" and value != int(value)):
            return f"{value!r} is not a {'whole ' if kind == 'INT' else ''}number"
        for limit, wrong in (("min", value < options.get("min", value)), ("max", value > options.get("max", value))):
            if wrong:
                return f"{value} is {'below' if limit == 'min' else 'above'} {options[limit]}"
    elif kind == "BOOLEAN" and not isinstance(value, (bool, int)):
        return f"{value!r} is neither true nor false"
    elif kind == "COMBO" and isinstance(options.get("options"), list) and value not in options["options"]:
        if options.get("multiselect") or (isinstance(value, str) and is_file(value)):
            return ""
        close = difflib.get_close_matches(str(value), map(str, options["options"]), 3)
        return f"'{value}' is none of its {len(options['options'])} choices{_did_you_mean(close)}"
    return ""


def _called(graph: Mapping, node_id: str) -> str:
    return f"'{title(graph, node_id)}' (node {node_id})"


def _not_found(graph: Mapping, column: str) -> str:
    names = [
        f"{title(graph, node_id)}.{name}"
        for node_id, node in graph.items()
        for name, value in node["inputs"].items()
        if not is_link(value)
    ]
    close = difflib.get_close_matches(column, names, 3)
    return f"the graph has no such node and input; name it NodeTitle.input or id.input{_did_you_mean(close)}."


def _did_you_mean(names: Iterable[str]) -> str:
    names = [f"'{name}'" for name in names]
    return f" (did you mean {' or '.join(names)}?)" if names else ""
