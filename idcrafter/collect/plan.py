"""From a graph and a table to the rows that have to be run, everything checked before the first of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import cases, journal
from . import graph as graphs
from .storage import ArrowStorage, LocalStorage
from .worker import Job

_SHOWN = 10


@dataclass(frozen=True)
class Request:
    """A graph and a table that fit each other, as far as that can be told without ComfyUI."""

    graph: dict
    table: cases.Table
    targets: dict[str, graphs.Target]

    @property
    def classes(self) -> list[str]:
        return graphs.classes(self.graph)


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    finished  rows that an earlier run has finished;  sha256: of every file that the graphs name
    """

    jobs: tuple[Job, ...]
    finished: tuple[int, ...]
    sha256: dict[str, str]


def read_request(graph: Path, table: Path) -> Request:
    """FileNotFoundError, or ValueError that names the node, or row and column."""
    read = graphs.read_graph(graph)
    cells = cases.read_table(table)
    request = Request(read, cells, cases.bind(cells, read))
    for filled in cases.fill(read, cells, request.targets, functools.partial(graphs.guessed_kind, read)):
        graphs.rollout_folders(filled)
    return request


def fill(request: Request, schemas: Mapping, inputs: Path) -> list[dict]:
    """The graph of each row, checked against ComfyUI's schemas. ValueError with everything that is wrong.

    inputs  ComfyUI's input folder
    """
    kind_of = functools.partial(graphs.kind_by_schema, request.graph, schemas)
    filled = cases.fill(request.graph, request.table, request.targets, kind_of)
    columns = {target: column for column, target in request.targets.items()}
    wrong: dict[str, None] = {}
    for case, graph in zip(request.table.cases, filled, strict=True):
        for problem in graphs.check(graph, schemas, lambda name: (inputs / name).is_file()):
            column = columns.get(graphs.Target(problem.node, problem.input))
            text = graphs.describe(problem, graph)
            wrong[f"Row {case.row}, column '{column}': {text}" if column in case.cells else text] = None
    if wrong:
        more = f" And {len(wrong) - _SHOWN} more." if len(wrong) > _SHOWN else ""
        raise ValueError(" ".join(list(wrong)[:_SHOWN]) + more)
    return filled


def names(filled: list[dict], schemas: Mapping) -> list[str]:
    """Of all files that the graphs may read."""
    return sorted(set().union(*(graphs.chosen(graph, schemas) for graph in filled)))


def make(request: Request, filled: list[dict], sha256: Mapping[str, str], storage: LocalStorage | ArrowStorage) -> Plan:
    """Rows with their ids, those that are finished left out. ValueError when two rows would make the same."""
    ids = [journal.row_id(graph, sha256) for graph in filled]
    rows: dict[str, int] = {}
    for case, name in zip(request.table.cases, ids, strict=True):
        if name in rows:
            raise ValueError(
                f"The rows {rows[name]} and {case.row} of '{request.table.path.name}' give the same graph and would "
                "make the same takes; give one of them another seed, or remove it."
            )
        rows[name] = case.row
    done = journal.finished(storage, ids)
    jobs = tuple(
        Job(case.row, name, graphs.bare(graph), graphs.rollout_folders(graph), dict(case.cells))
        for case, graph, name in zip(request.table.cases, filled, ids, strict=True)
        if name not in done
    )
    return Plan(jobs, tuple(rows[name] for name in ids if name in done), dict(sha256))
