"""The table: one row a run of the graph, one column an input of a node.

CSV in UTF-8 with a header. A column is named by what it sets: `Sample Takes.seed` (title of a node, a point, its input)
or `15.seed` (id of the node). A column whose name begins with `#` is a note. An empty cell leaves what the graph has.
Rows are counted as spreadsheets do: the header is row 1.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .graph import Target, find_target, with_values

NOTE = "#"
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Case:
    """A row: its number, and its cells by column, notes and empty cells left out."""

    row: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """What was read: columns without notes, and at least one case."""

    path: Path
    columns: tuple[str, ...]
    cases: tuple[Case, ...]


def read_table(path: Path) -> Table:
    """Read it whole. FileNotFoundError, or ValueError that names the row and what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no table '{path}'.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"The table '{path.name}' is not UTF-8 (byte {error.start}); save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f"The table '{path.name}' is not CSV ({error}); put quotes around cells with commas."
        ) from error
    if not rows or not any(cell.strip() for cell in rows[0]):
        raise ValueError(f"The table '{path.name}' has no header in its first row; name its columns NodeTitle.input.")
    header = [cell.strip() for cell in rows[0]]
    _check_header(path, header)
    cases = []
    for row, cells in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"Row {row} of '{path.name}' has {len(cells)} cells, the header has {len(header)}; put quotes around "
                "cells with commas."
            )
        named = zip(header, (cell.strip() for cell in cells), strict=True)
        cases.append(Case(row, {name: cell for name, cell in named if cell and not name.startswith(NOTE)}))
    if not cases:
        raise ValueError(f"The table '{path.name}' has a header, but no row below it.")
    _check_repeats(path, cases)
    return Table(path, tuple(name for name in header if not name.startswith(NOTE)), tuple(cases))


def bind(table: Table, graph: Mapping) -> dict[str, Target]:
    """Which input each column sets. ValueError that names the column."""
    targets: dict[str, Target] = {}
    for column in table.columns:
        try:
            target = find_target(graph, column)
        except ValueError as error:
            raise ValueError(f"Column '{column}' of '{table.path.name}': {error}") from error
        for other, taken in targets.items():
            if taken == target:
                raise ValueError(f"The columns '{other}' and '{column}' of '{table.path.name}' set the same input.")
        targets[column] = target
    return targets


def fill(graph: Mapping, table: Table, targets: Mapping[str, Target], kind_of: Callable[[Target], Sequence]) -> list:
    """The graph of each case, in the table's order.

    kind_of  a target -> its kind as in `convert`, and the options of a COMBO
    Raises ValueError with row and column.
    """
    graphs = []
    for case in table.cases:
        values = {}
        for column, cell in case.cells.items():
            try:
                values[targets[column]] = convert(cell, *kind_of(targets[column]))
            except ValueError as error:
                raise ValueError(f"Row {case.row}, column '{column}' of '{table.path.name}': {error}") from error
        graphs.append(with_values(graph, values))
    return graphs


def convert(cell: str, kind: str, options: Sequence = ()):
    """The value of a cell. Kinds are ComfyUI's INT, FLOAT, BOOLEAN, STRING and COMBO, and NUMBER for either number.

    Raises ValueError; an unknown kind cannot be written in a table.
    """
    if kind == "STRING":
        return cell
    if kind == "COMBO":
        return next((option for option in options if str(option) == cell), cell)
    if kind == "BOOLEAN":
        if cell.lower() not in _YES + _NO:
            raise ValueError(f"'{cell}' is neither true nor false.")
        return cell.lower() in _YES
    if kind in ("INT", "NUMBER"):
        try:
            return int(cell)
        except ValueError:
            if kind == "INT":
                raise ValueError(f"'{cell}' is not a whole number.") from None
    if kind in ("FLOAT", "NUMBER"):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"'{cell}' is not a number; write decimals with a point.")
        return number
    raise ValueError(f"it takes a {kind}, which comes from another node and cannot be written into a table.")


def _check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"The columns of '{path.name}' are separated by semicolons; save it with commas.")
    for number, name in enumerate(header, 1):
        if not name:
            raise ValueError(f"Column {number} of '{path.name}' has no name; name it NodeTitle.input, or # for a note.")
        if not name.startswith(NOTE) and header.index(name) != number - 1:
            raise ValueError(f"'{path.name}' has two columns '{name}'.")
    if all(name.startswith(NOTE) for name in header):
        raise ValueError(f"All columns of '{path.name}' are notes; at least one must set an input.")


def _check_repeats(path: Path, cases: Sequence[Case]) -> None:
    seen: dict[tuple, int] = {}
    for case in cases:
        key = tuple(sorted(case.cells.items()))
        if key in seen:
            raise ValueError(
                f"The rows {seen[key]} and {case.row} of '{path.name}' are the same and would make the same takes; "
                "give one of them another seed, or remove it."
            )
        seen[key] = case.row
