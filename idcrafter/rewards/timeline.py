"""The timeline: a report as one picture. Each take is a strip, each subject in it a row of bars over the frames."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw

from .. import drawing
from ..subjects.faces import DISAGREE_COSINE

WIDTH = 1280
MARGIN = 24
LABEL = 170
FIGURES = 250
CHART_LEFT = MARGIN + 16 + LABEL
CHART_RIGHT = WIDTH - MARGIN - 16 - FIGURES
TITLE = 48
EVENTS = 20
AXIS = 26
TALL, SHORT = 56, 26
MANY_ROWS = 32  # with more rows than this in all, they are drawn short

_Colours = dict[str, drawing.Colour]


def draw_timeline(report: dict) -> torch.Tensor:
    """Picture [1, H, 1280, 3] of a validated report."""
    names = [subject["name"] for subject in report["subjects"] if subject["scored"]]
    colours = {
        subject["name"]: drawing.subject_colour(i) for i, subject in enumerate(report["subjects"]) if subject["scored"]
    }
    row = TALL if len(report["takes"]) * len(names) <= MANY_ROWS else SHORT
    heights = [_strip_height(take, len(names), row) for take in report["takes"]]
    top = 122
    picture = Image.new("RGB", (WIDTH, top + sum(height + 14 for height in heights) + 10), drawing.BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _draw_head(draw, report)
    for take, height in zip(report["takes"], heights, strict=True):
        _draw_take(draw, top, height, take, take["index"] == report["best"], colours, row)
        top += height + 14
    return drawing.to_tensor(picture)


def _strip_height(take: dict, rows: int, row: int) -> int:
    return TITLE + (EVENTS + rows * (row + 6) + AXIS if take["frames"] else 0)


def _draw_head(draw: ImageDraw.ImageDraw, report: dict) -> None:
    analyzer = report["analyzer"]
    drawing.draw_text(draw, (MARGIN, 20), "Who is there, frame by frame", 26)
    about = f"{len(report['takes'])} takes; faces by {analyzer['name']}, licence: {analyzer['licence']}"
    drawing.draw_text(draw, (MARGIN, 56), about, 15, drawing.MUTED, width=WIDTH - 2 * MARGIN)
    x = MARGIN
    draw.rectangle((x, 88, x + 8, 104), fill=drawing.MUTED)
    x += 16
    x += drawing.draw_text(
        draw, (x, 88), f"similarity of the face to its subject, 0 to 1 (dotted: {DISAGREE_COSINE})", 14, drawing.MUTED
    )
    x += 28
    _draw_missing(draw, x, 88, x + 16, 104)
    x += 24
    x += drawing.draw_text(draw, (x, 88), "missing", 14, drawing.MUTED) + 28
    x += _draw_event(draw, x, 96, "+1", drawing.WARNING) + 8
    x += drawing.draw_text(draw, (x, 88), "people too many", 14, drawing.MUTED) + 28
    x += _draw_event(draw, x, 96, "swap", drawing.BAD) + 8
    drawing.draw_text(draw, (x, 88), "subjects exchanged", 14, drawing.MUTED)


def _draw_take(
    draw: ImageDraw.ImageDraw, top: int, height: int, take: dict, best: bool, colours: _Colours, row: int
) -> None:
    outline = drawing.GOOD if best else drawing.PANEL
    draw.rounded_rectangle((MARGIN, top, WIDTH - MARGIN, top + height), 8, drawing.PANEL, outline, 2)
    left = MARGIN + 16
    x = left + drawing.draw_text(draw, (left, top + 12), f"Take {take['index']}", 20) + 14
    x += drawing.draw_text(draw, (x, top + 16), f"seed {take['seed']}", 15, drawing.MUTED) + 20
    if best:
        draw.rounded_rectangle((x, top + 12, x + 50, top + 34), 4, fill=drawing.GOOD)
        drawing.draw_text(draw, (x + 25, top + 23), "best", 15, drawing.ink_on(drawing.GOOD), "mm")
        x += 66
    if take["note"]:
        drawing.draw_text(draw, (x, top + 16), take["note"], 15, drawing.WARNING, width=CHART_RIGHT - x)
    right = WIDTH - MARGIN - 16
    used = drawing.draw_text(draw, (right, top + 10), f"{take['score']:.3f}", 24, drawing.TEXT, "ra")
    drawing.draw_text(draw, (right - used - 10, top + 16), "score", 15, drawing.MUTED, "ra")
    if not take["frames"]:
        return
    _draw_events(draw, top + TITLE + EVENTS // 2 - 4, take)
    y = top + TITLE + EVENTS
    for name, colour in colours.items():
        _draw_row(draw, y, row, take, name, colour)
        y += row + 6
    _draw_axis(draw, y, take)


def _slots(take: dict) -> list[tuple[float, float]]:
    """Left and right edge of each scored frame's bar."""
    step = (CHART_RIGHT - CHART_LEFT) / len(take["frames"])
    gap = 3 if step >= 12 else 1 if step >= 3 else 0
    return [(CHART_LEFT + i * step, CHART_LEFT + (i + 1) * step - gap) for i in range(len(take["frames"]))]


def _draw_row(draw: ImageDraw.ImageDraw, y: float, height: int, take: dict, name: str, colour: drawing.Colour) -> None:
    base, level = y + height, y + height * (1 - DISAGREE_COSINE)
    drawing.draw_text(draw, (MARGIN + 16, y + height / 2), name, 16, colour, "lm", width=LABEL - 14)
    draw.rectangle((CHART_LEFT, y, CHART_RIGHT, base), fill=drawing.BACKGROUND)
    numbers = []
    for frame, (x1, x2) in zip(take["frames"], _slots(take), strict=True):
        seen = frame["subjects"][name]
        if seen is None:
            _draw_missing(draw, x1, y, x2, base)
            continue
        value = min(max(seen["similarity"], 0.0), 1.0)
        bar = base - value * height
        draw.rectangle((x1, bar, x2, base), fill=colour)
        numbers.append(((x1 + x2) / 2, bar, value))
    for x in range(CHART_LEFT, CHART_RIGHT, 8):
        draw.line((x, level, x + 2, level), fill=drawing.TEXT)
    if height == TALL and CHART_RIGHT - CHART_LEFT >= 34 * len(take["frames"]):
        for x, bar, value in numbers:
            # Above the bar and the dotted line, or inside a bar that leaves no room above it.
            if min(bar, level) - y >= 19:
                drawing.draw_text(draw, (x, min(bar, level) - 4), f"{value:.2f}", 14, drawing.TEXT, "mb")
            else:
                drawing.draw_text(draw, (x, bar + 4), f"{value:.2f}", 14, drawing.ink_on(colour), "mt")
    figures = take["subjects"][name]
    size = f", {figures['face_px']:.0f} px" if figures["face_px"] is not None else ""
    x, middle = CHART_RIGHT + 16, y + height / 2
    used = drawing.draw_text(draw, (x, middle), f"{figures['similarity']:.2f}", 20, drawing.TEXT, "lm")
    drawing.draw_text(draw, (x + used + 12, middle), f"seen {figures['coverage']:.0%}{size}", 14, drawing.MUTED, "lm")


def _draw_missing(draw: ImageDraw.ImageDraw, x1: float, y1: float, x2: float, y2: float) -> None:
    """A red frame with diagonal strokes, also readable without colour."""
    draw.rectangle((x1, y1, x2, y2), fill=(72, 30, 34), outline=drawing.BAD)
    if x2 - x1 >= 6:
        draw.line((x1, y2, x2, y1), fill=drawing.BAD)


def _draw_events(draw: ImageDraw.ImageDraw, y: float, take: dict) -> None:
    """Marks of extra people and swaps over the frames; some that would overlap on narrow frames are left out."""
    free = CHART_LEFT - 1.0
    for frame, (x1, x2) in zip(take["frames"], _slots(take), strict=True):
        marks = [("swap", drawing.BAD)] if frame["swapped"] else []
        marks += [(f"+{frame['extra']}", drawing.WARNING)] if frame["extra"] else []
        for text, colour in marks:
            width = drawing.text_width(text, 13) + 8
            x = max(free + 1, (x1 + x2) / 2 - width * len(marks) / 2)
            if x > x2 + width:
                break
            free = x + _draw_event(draw, x, y, text, colour)


def _draw_event(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: drawing.Colour) -> float:
    """A small tag with its middle at height y; returns its width."""
    width = drawing.text_width(text, 13) + 8
    draw.rounded_rectangle((x, y - 8, x + width, y + 8), 3, fill=colour)
    drawing.draw_text(draw, (x + width / 2, y), text, 13, drawing.ink_on(colour), "mm")
    return width


def _draw_axis(draw: ImageDraw.ImageDraw, y: float, take: dict) -> None:
    """Frame numbers below the bars, every n-th so that they fit."""
    drawing.draw_text(draw, (MARGIN + 16, y), "frame", 13, drawing.MUTED)
    slots = _slots(take)
    room = drawing.text_width(str(take["frames"][-1]["frame"]), 13) + 10
    every = math.ceil(room * len(slots) / (CHART_RIGHT - CHART_LEFT))
    for frame, (x1, x2) in list(zip(take["frames"], slots, strict=True))[::every]:
        drawing.draw_text(draw, ((x1 + x2) / 2, y), str(frame["frame"]), 13, drawing.MUTED, "ma")
