"""A report as tables: a monospaced one of its takes for people, and CSV of every scored frame."""

from __future__ import annotations

import csv
import io
import unicodedata

CSV_COLUMNS = (
    "take",
    "seed",
    "frame",
    "seconds",
    "subject",
    "seen",
    "similarity",
    "monitor",
    "x1",
    "y1",
    "x2",
    "y2",
    "events",
)


def report_table(report: dict) -> str:
    """One line per take, the best one starred: score, similarities (with the share of frames in which a subject was
    seen), and what went wrong; below it what the similarities are to be measured by. Takes count from 0, as in
    IDCrafterPickTake."""
    names = [subject["name"] for subject in report["subjects"] if subject["scored"]]
    rewarded = "reward" in report
    head = ["", "take", "seed", *(["reward"] if rewarded else []), "score", "mean", "min", *names]
    head += ["missing", "extra", "swaps", "note"]
    rows = [head]
    for take in report["takes"]:
        people = [
            f"{take['subjects'][name]['similarity']:.2f} ({take['subjects'][name]['coverage']:.0%})" for name in names
        ]
        rows.append(
            [
                "*" if take["index"] == report["best"] else "",
                str(take["index"]),
                "-" if take["seed"] is None else str(take["seed"]),
                *([_number(take["reward"])] if rewarded else []),
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
    lines += [f"Measured by: {_yardsticks(report)}"]
    lines += [f"Faces: {analyzer['name']} (licence: {analyzer['licence']})"]
    if "monitor" in report:
        lines += [f"Second opinion (chooses nothing): {_second_opinion(report, names)}"]
    lines += [f"Warning: {warning}" for warning in report["warnings"]]
    return "\n".join(line.rstrip() for line in lines)


def report_csv(report: dict) -> str:
    """One line a take, scored frame and subject, with CSV_COLUMNS; what does not exist is empty.

    seen    1 where the subject's face was found, else 0
    events  what happens to the subject in this frame (events.KINDS without extra), joined by spaces
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for take in report["takes"]:
        for frame in take["frames"]:
            number = frame["frame"]
            seconds = "" if take["fps"] is None else round(number / take["fps"], 3)
            for name, seen in frame["subjects"].items():
                events = [
                    event["kind"]
                    for event in take["events"]
                    if name in event["subjects"] and event["first"] <= number <= event["last"]
                ]
                found = seen or {"similarity": "", "box": [""] * 4}
                values = [int(seen is not None), found["similarity"], found.get("monitor", ""), *found["box"]]
                seed = "" if take["seed"] is None else take["seed"]
                writer.writerow([take["index"], seed, number, seconds, name, *values, " ".join(events)])
    return text.getvalue()


def own_photos(subject: dict) -> str:
    """How alike a subject's own photos are, in words: what a video can be expected to reach."""
    if subject["photos_agree"] is None:
        return "own photos: only one"
    return f"own photos {subject['photos_agree']:.2f}"


def _yardsticks(report: dict) -> str:
    """For each subject how alike the own photos are, and how large the face is in the best take."""
    figures = report["takes"][report["best"]]["subjects"]
    return "; ".join(
        f"{subject['name']}: {own_photos(subject)}, face {_number(figures[subject['name']]['face_px'], 0)} px"
        for subject in report["subjects"]
        if subject["scored"]
    )


def _second_opinion(report: dict, names: list[str]) -> str:
    """What the monitor says of the best take's faces."""
    figures = report["takes"][report["best"]]["subjects"]
    seen = ", ".join(f"{name} {_number(figures[name].get('monitor_seen'), 2)}" for name in names)
    return f"{seen}, by {report['monitor']['name']} (licence: {report['monitor']['licence']})"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
