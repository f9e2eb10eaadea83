"""A report as a monospaced table."""

from __future__ import annotations

import unicodedata


def report_table(report: dict) -> str:
    """One line per take, the best one starred: score, similarities (with the share of frames in which a subject was
    seen), and what went wrong. Takes count from 0, as in IDCrafterPickTake."""
    names = [subject["name"] for subject in report["subjects"] if subject["scored"]]
    head = ["", "take", "seed", "score", "mean", "min", *names, "missing", "extra", "swaps", "note"]
    rows = [head]
    for take in report["takes"]:
        people = [
            f"{take['subjects'][name]['similarity']:.2f} ({take['subjects'][name]['coverage']:.0%})" for name in names
        ]
        rows.append(
            [
                "*" if take["index"] == report["best"] else "",
                str(take["index"]),
                str(take["seed"]),
                f"{take['score']:.3f}",
                f"{take['similarity_mean']:.2f}",
                f"{take['similarity_min']:.2f}",
                *people,
                str(take["missing"]),
                str(take["extra"]),
                str(take["swapped"]),
                take["note"] or "",
            ]
        )
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(_columns(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    analyzer = report["analyzer"]
    lines += [f"Faces: {analyzer['name']} (licence: {analyzer['licence']})"]
    lines += [f"Warning: {warning}" for warning in report["warnings"]]
    return "\n".join(line.rstrip() for line in lines)


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
