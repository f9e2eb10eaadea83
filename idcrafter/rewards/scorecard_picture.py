"""The scorecard as a picture that people understand: a row for each subject with its photo, its best and its worst
frame, how alike it is over time, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw

from .. import drawing
from ..subjects.faces import DISAGREE_COSINE
from .crops import SIDE, Crop, SubjectCrops
from .table import own_photos
from .verdict import BAD, DOUBTFUL, GOOD, clip_verdict, concerns, subject_verdict

WIDTH = 1280
MARGIN = 24
HEAD = 128
ROW = 222
LEFT = MARGIN + 16
TILE = SIDE + 14
CHART_LEFT = LEFT + 3 * TILE + 44
CHART_RIGHT = WIDTH - MARGIN - 24
CHART_TOP, CHART_HEIGHT = 84, 88

_COLOURS = {GOOD: drawing.GOOD, DOUBTFUL: drawing.WARNING, BAD: drawing.BAD}
_MARKS = {"swapped": ("swap", drawing.BAD), "cloned": ("twice", drawing.WARNING), "blended": ("mixed", drawing.WARNING)}


def draw_scorecard(report: dict, crops: Mapping[str, SubjectCrops], take: int | None = None) -> torch.Tensor:
    """Picture [1, H, 1280, 3] of one take of a validated report, the best one unless another is named.

    crops  by subject name, from `crops.cut_crops` of the same take; a subject without is drawn without pictures
    """
    record = report["takes"][report["best"] if take is None else take]
    scored = [(i, subject) for i, subject in enumerate(report["subjects"]) if subject["scored"]]
    notes = clip_verdict(record)
    unscored = [subject["name"] for subject in report["subjects"] if not subject["scored"]]
    if unscored:
        notes.append((f"Without a face, not scored: {', '.join(unscored)}.", DOUBTFUL))
    foot = 18 + 24 * len(notes) if notes else 0
    picture = Image.new("RGB", (WIDTH, HEAD + (ROW + 14) * len(scored) + foot + 10), drawing.BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _draw_head(draw, report, record)
    top = HEAD
    for i, subject in scored:
        draw.rounded_rectangle((MARGIN, top, WIDTH - MARGIN, top + ROW), 8, drawing.PANEL)
        colour = drawing.subject_colour(i)
        draw.rectangle((MARGIN, top + 14, MARGIN + 5, top + 38), fill=colour)
        _draw_pictures(picture, draw, top, crops.get(subject["name"]))
        _draw_words(draw, top, record, subject, colour)
        _draw_curve(draw, top, record, subject["name"], colour)
        top += ROW + 14
    for k, (text, level) in enumerate(notes):
        drawing.draw_text(draw, (LEFT, top + 8 + 24 * k), text, 17, _COLOURS[level], width=WIDTH - 2 * LEFT)
    return drawing.to_tensor(picture)


def _draw_head(draw: ImageDraw.ImageDraw, report: dict, record: dict) -> None:
    drawing.draw_text(draw, (MARGIN, 20), "Is everybody there, and recognisable?", 26)
    score = f"{record['score']:.2f}"
    used = drawing.draw_text(draw, (WIDTH - MARGIN, 16), score, 34, drawing.TEXT, "ra")
    drawing.draw_text(draw, (WIDTH - MARGIN - used - 10, 30), "score, 0 to 1", 15, drawing.MUTED, "ra")
    about = f"{len(record['frames'])} frames looked at"
    if record["seed"] is not None:
        about = f"Take {record['index']} of {len(report['takes'])}, seed {record['seed']}; {about}"
    analyzer = report["analyzer"]
    about += f"; faces by {analyzer['name']}, licence: {analyzer['licence']}"
    drawing.draw_text(draw, (MARGIN, 60), about, 15, drawing.MUTED, width=WIDTH - 2 * MARGIN)
    legend = (
        f"The curves show how alike the face is, over time. Red: missing. Dotted: {DISAGREE_COSINE}, below it nobody "
    )
    legend += "would be sure that it is the same person."
    drawing.draw_text(draw, (MARGIN, 88), legend, 15, drawing.MUTED, width=WIDTH - 2 * MARGIN)


def _draw_pictures(picture: Image.Image, draw: ImageDraw.ImageDraw, top: int, crops: SubjectCrops | None) -> None:
    y = top + 66
    for k, (title, which) in enumerate((("photo", "photo"), ("best frame", "best"), ("worst frame", "worst"))):
        x = LEFT + k * TILE
        crop: Crop | None = getattr(crops, which) if crops else None
        drawing.draw_text(draw, (x, y - 9), title, 14, drawing.MUTED, "ls")
        draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=drawing.LINE, fill=drawing.BACKGROUND)
        if crop is None:
            drawing.draw_text(draw, (x + SIDE / 2, y + SIDE / 2), "never seen", 15, drawing.MUTED, "mm")
            continue
        picture.paste(Image.fromarray(crop.pixels), (x, y))
        if crop.frame is not None:
            caption = f"frame {crop.frame}: {crop.similarity:.2f}"
            drawing.draw_text(draw, (x, y + SIDE + 6), caption, 14, drawing.TEXT, width=SIDE)


def _draw_words(draw: ImageDraw.ImageDraw, top: int, record: dict, subject: dict, colour: drawing.Colour) -> None:
    """The name, the verdict, and the figures with what they are to be measured by."""
    drawing.draw_text(draw, (LEFT, top + 12), subject["name"], 22, colour, width=3 * TILE)
    text, level = subject_verdict(record, subject["name"], subject["photos_agree"])
    lines = drawing.wrap_text(text, 19, CHART_RIGHT - CHART_LEFT)[:2]
    for k, line in enumerate(lines):
        drawing.draw_text(draw, (CHART_LEFT, top + 12 + 25 * k), line, 19, _COLOURS[level])
    figures = record["subjects"][subject["name"]]
    parts = [f"similarity {figures['similarity']:.2f}"]
    if figures["similarity_seen"] is not None and figures["coverage"] < 1:
        parts.append(f"where seen {figures['similarity_seen']:.2f}")
    parts.append(own_photos(subject))
    if figures.get("monitor_seen") is not None:
        parts.append(f"second opinion {figures['monitor_seen']:.2f}")
    parts.append(f"seen in {figures['coverage']:.0%} of the frames")
    if figures["face_px"] is not None:
        parts.append(f"face {figures['face_px']:.0f} px")
    y = top + ROW - 10
    drawing.draw_text(draw, (CHART_LEFT, y), "   ".join(parts), 14, drawing.MUTED, "lb", CHART_RIGHT - CHART_LEFT)


def _draw_curve(draw: ImageDraw.ImageDraw, top: int, record: dict, name: str, colour: drawing.Colour) -> None:
    """Similarity over the frames; red where the subject is missing, marks where something happened."""
    y0 = top + CHART_TOP
    base = y0 + CHART_HEIGHT
    draw.rectangle((CHART_LEFT, y0, CHART_RIGHT, base), fill=drawing.BACKGROUND)
    for value in (0.0, 0.5, 1.0):
        y = base - value * CHART_HEIGHT
        draw.line((CHART_LEFT, y, CHART_RIGHT, y), fill=drawing.LINE)
        drawing.draw_text(draw, (CHART_LEFT - 8, y), f"{value:g}", 13, drawing.MUTED, "rm")
    frames = record["frames"]
    if not frames:
        return
    first, span = frames[0]["frame"], max(frames[-1]["frame"] - frames[0]["frame"], 1)
    half = (CHART_RIGHT - CHART_LEFT) / (2 * len(frames))

    def place(frame: int) -> float:
        return CHART_LEFT + half + (frame - first) / span * (CHART_RIGHT - CHART_LEFT - 2 * half)

    line: list[tuple[float, float]] = []
    for frame in [*frames, None]:
        seen = frame and frame["subjects"][name]
        if seen:
            value = min(max(seen["similarity"], 0.0), 1.0)
            line.append((place(frame["frame"]), base - value * CHART_HEIGHT))
            continue
        if len(line) > 1:
            draw.line(line, fill=colour, width=3, joint="curve")
        for x, y in line if len(line) == 1 or half >= 5 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        line = []
        if frame:
            x = place(frame["frame"])
            draw.rectangle((x - half, y0, x + half, base), fill=(92, 34, 38))
    level = base - DISAGREE_COSINE * CHART_HEIGHT
    for x in range(CHART_LEFT, CHART_RIGHT, 8):
        draw.line((x, level, x + 2, level), fill=drawing.TEXT)
    _draw_marks(draw, y0, record, name, place, half)
    for frame in (frames[0]["frame"], frames[-1]["frame"]):
        anchor = "la" if frame == frames[0]["frame"] else "ra"
        x = CHART_LEFT if anchor == "la" else CHART_RIGHT
        drawing.draw_text(draw, (x, base + 4), f"frame {frame}", 13, drawing.MUTED, anchor)


def _draw_marks(draw: ImageDraw.ImageDraw, y: float, record: dict, name: str, place, half: float) -> None:
    """A tag over the chart for each event that is not a gap of the curve, with a line along its frames."""
    free = float(CHART_LEFT)
    for event in record["events"]:
        if event["kind"] not in _MARKS or not concerns(event, name):
            continue
        word, colour = _MARKS[event["kind"]]
        x1, x2 = place(event["first"]) - half, place(event["last"]) + half
        if event["kind"] == "swapped":
            draw.line((x1, y - 2, x1, y + CHART_HEIGHT), fill=colour, width=2)
        else:
            draw.line((x1, y - 6, x2, y - 6), fill=colour, width=4)
        width = drawing.text_width(word, 13) + 8
        x = min(max(x1 - (width / 2 if event["kind"] == "swapped" else 0), free), CHART_RIGHT - width)
        draw.rounded_rectangle((x, y - 21, x + width, y - 5), 3, fill=colour)
        drawing.draw_text(draw, (x + width / 2, y - 13), word, 13, drawing.ink_on(colour), "mm")
        free = x + width + 2
