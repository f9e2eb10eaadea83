"""The curve of a training as a picture: one panel a loss, and what validation measured. PIL only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .. import drawing

WIDTH, PANEL, MARGIN, LEFT, TITLE = 960, 200, 16, 72, 28
_NOT_DRAWN = ("step", "seconds")


def read_curve(path: Path) -> list[dict]:
    """The rows of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def draw_curves(rows: Sequence[dict], steps: int) -> Image.Image:
    """Rows with "step" and numbers by name -> a picture; null is left out.

    steps  in all, where the axis ends
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _NOT_DRAWN))
    series = {name: [(row["step"], row[name]) for row in rows if _is_number(row.get(name))] for name in names}
    series = {name: points for name, points in series.items() if points}
    height = MARGIN + max(1, len(series)) * (TITLE + PANEL + MARGIN)
    picture = Image.new("RGB", (WIDTH, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(picture)
    if not series:
        drawing.draw_text(draw, (MARGIN, MARGIN), "no step has been taken yet", 16, drawing.MUTED)
    for i, (name, points) in enumerate(series.items()):
        _panel(draw, MARGIN + i * (TITLE + PANEL + MARGIN), name, points, steps, drawing.subject_colour(i))
    return picture


def _panel(draw: ImageDraw.ImageDraw, top: int, name: str, points: list, steps: int, colour: drawing.Colour) -> None:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    spread = (high - low) or max(abs(high), 1e-3)
    drawing.draw_text(draw, (MARGIN, top), f"{name}: {values[-1]:.4g} at step {points[-1][0]}", 16, drawing.TEXT)
    top += TITLE
    right = WIDTH - MARGIN
    draw.rectangle((LEFT, top, right, top + PANEL), fill=drawing.PANEL, outline=drawing.LINE)
    for value, y in ((high, top), (low, top + PANEL - 14)):
        drawing.draw_text(draw, (MARGIN, y), f"{value:.3g}", 12, drawing.MUTED)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + 6 + (right - LEFT - 12) * step / max(steps, 1)
        return x, top + PANEL - 8 - (PANEL - 16) * (value - low) / spread

    placed = [place(*point) for point in points]
    if len(placed) > 1:
        draw.line(placed, fill=colour, width=2, joint="curve")
    for x, y in placed if len(placed) < 40 else placed[-1:]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
