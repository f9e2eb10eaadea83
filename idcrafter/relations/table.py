"""A table of shots, one a row: what a batch writes into the widgets of a graph.

CSV with a head, separated by commas, semicolons or tabs. Spreadsheets like to put a mark in front of the file and to
quote cells with line breaks; both is understood. Empty rows do not count.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence


def read_table(text: str) -> list[dict[str, str]]:
    """The rows by column. Raises ValueError that names the row (counted from 1, without the head) or the column."""
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError("The table is empty; its first line names the columns, such as: action, seed")
    separator = max(",;\t", key=text.strip().splitlines()[0].count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"The table is not CSV ({error}); look for a quote that is not closed.") from error
    rows = [[cell.strip() for cell in row] for row in lines if any(cell.strip() for cell in row)]
    head = rows[0]
    for i, column in enumerate(head):
        if not column or column in head[:i]:
            raise ValueError(f"Column {i + 1} of the table has {'the name of another' if column else 'no name'}.")
    table = []
    for number, row in enumerate(rows[1:], 1):
        if len(row) > len(head):
            raise ValueError(
                f"Row {number} of the table has {len(row)} cells for {len(head)} columns; put a cell with a "
                f"'{separator}' in it into quotes."
            )
        table.append(dict(zip(head, row + [""] * (len(head) - len(row)), strict=True)))
    if not table:
        raise ValueError("The table has a head but no rows.")
    return table


def cell(table: Sequence[dict[str, str]], row: int, column: str) -> str:
    """The cell in a row (counted from 0; beyond the last it begins again). Raises ValueError for an unknown column."""
    found = table[row % len(table)]
    if column not in found:
        raise ValueError(f"The table has no column '{column}', only {', '.join(found)}.")
    return found[column]


def whole_number(text: str) -> int:
    """The cell as a number, for seeds; 0 when it is none."""
    try:
        return int(text)
    except ValueError:
        return 0
