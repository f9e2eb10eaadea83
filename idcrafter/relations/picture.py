"""The relation graph as a picture: everybody with a thumbnail, labelled arrows between them, the rest in words."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw

from .. import drawing
from ..subjects.faces import to_uint8
from ..subjects.references import PhotoRef, picture
from ..subjects.subject import Cast
from .graph import Relation, RelationGraph

WIDTH = 1280
MARGIN = 24
TOP = 84
PHOTO = 132
NODE_WIDTH = 200
LABEL_WIDTH = 190
MAX_LINES = 12  # of scene and camera
BEND, LEAST_BEND = 90, 46  # pixels between two arrows of one pair, at most and at least
_STEPS = 80  # straight pieces of a curve
_PLACES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)  # along an arrow, where its label may be


def graph_picture(cast: Cast, graph: RelationGraph, note: str = "") -> torch.Tensor:
    """[1, H, 1280, 3]; `note` is a line under the title."""
    count = len(cast.subjects)
    alone = [_alone(graph, i) for i in range(count)]
    heights = [PHOTO + 34 + 20 * len(lines) for lines in alone]
    pairs = Counter(frozenset((each.subject, each.object)) for each in graph.relations if each.object is not None)
    centres, stage = _layout(count, max(heights), max(pairs.values(), default=0))
    below = [
        line
        for head, text in (("Scene", graph.scene), ("Camera", graph.camera))
        if text
        for line in drawing.wrap_text(f"{head}: {text}", 16, WIDTH - 2 * MARGIN)
    ]
    below = below if len(below) <= MAX_LINES else [*below[: MAX_LINES - 1], "..."]
    height = round(TOP + stage + 24 + 24 * len(below))
    image = Image.new("RGB", (WIDTH, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(image)
    drawing.draw_text(draw, (MARGIN, 20), "Who does what", 26)
    drawing.draw_text(draw, (MARGIN, 54), note, 15, drawing.MUTED, width=WIDTH - 2 * MARGIN)
    half = NODE_WIDTH / 2
    nodes = [(x - half, y, x + half, y + tall) for (x, y), tall in zip(centres, heights, strict=True)]
    labels = _draw_arrows(draw, graph, pairs, centres, heights)
    for i, ((x, y), lines) in enumerate(zip(centres, alone, strict=True)):
        _draw_node(image, draw, cast, i, x, y, lines)
    taken = nodes * 8  # to cover a face is as bad as to cover eight labels
    for relation, curve in labels:
        taken.append(_draw_label(draw, relation, curve, taken))
    for i, line in enumerate(below):
        drawing.draw_text(draw, (MARGIN, TOP + stage + 12 + 24 * i), line, 16, width=WIDTH - 2 * MARGIN)
    return drawing.to_tensor(image)


def _alone(graph: RelationGraph, index: int) -> list[str]:
    """What a subject does by itself, in lines that fit under its picture."""
    lines = []
    for each in graph.relations:
        if each.subject == index and each.object is None:
            lines += drawing.wrap_text(_words(each), 15, NODE_WIDTH)
    return lines if len(lines) <= 5 else [*lines[:4], "..."]


def _words(relation: Relation) -> str:
    parts = (relation.when and f"{relation.when}:", relation.predicate, relation.object is not None and "..." or "")
    return " ".join(filter(None, (*parts[:2], parts[2] if relation.detail else "", relation.detail)))


def _layout(count: int, tallest: int, arrows: int) -> tuple[list[tuple[float, float]], float]:
    """x of the middle and y of the top of each node, and the height of all: in a row for one or two, else around an
    ellipse that is high enough for no node to touch the one below it. `arrows` is the most that any two share."""
    if count <= 2:
        above = max(0.0, (LEAST_BEND * arrows - PHOTO) / 2)
        return [(WIDTH * (i + 1) / (count + 1), TOP + 20 + above) for i in range(count)], tallest + 40 + 2 * above
    # Even numbers stand in pairs, beside and not above each other, because the picture is wide.
    first = 1 + 1 / count if count % 2 == 0 else 1.5
    angles = [math.pi * (first + 2 * i / count) for i in range(count)]
    across = [WIDTH / 2 + (WIDTH / 2 - MARGIN - NODE_WIDTH / 2) * math.cos(angle) for angle in angles]
    low, high = min(map(math.sin, angles)), max(map(math.sin, angles))
    down = [(math.sin(angle) - low) / (high - low) for angle in angles]
    close = [
        abs(down[a] - down[b]) for a, b in combinations(range(count), 2) if abs(across[a] - across[b]) < NODE_WIDTH + 40
    ]
    span = max(260.0, (tallest + 80) / min(close, default=1.0))
    return [(x, TOP + 20 + span * y) for x, y in zip(across, down, strict=True)], span + tallest + 40


def _draw_node(image, draw, cast: Cast, index: int, x: float, y: float, lines: list[str]) -> None:
    colour = drawing.subject_colour(index)
    thumb = Image.fromarray(to_uint8(picture(cast, PhotoRef(index, 0), fill=0.2)))
    scale = PHOTO / max(thumb.size)
    thumb = thumb.resize([max(1, round(side * scale)) for side in thumb.size], Image.Resampling.LANCZOS)
    left, top = round(x - PHOTO / 2), round(y)
    draw.rounded_rectangle((left - 4, top - 4, left + PHOTO + 3, top + PHOTO + 3), 8, drawing.PANEL, colour, 3)
    image.paste(thumb, (left + (PHOTO - thumb.width) // 2, top + (PHOTO - thumb.height) // 2))
    drawing.draw_text(draw, (x, y + PHOTO + 8), cast.subjects[index].name, 20, colour, "ma", NODE_WIDTH)
    for i, line in enumerate(lines):
        drawing.draw_text(draw, (x, y + PHOTO + 36 + 20 * i), line, 15, drawing.TEXT, "ma", NODE_WIDTH)


def _draw_arrows(draw, graph: RelationGraph, pairs: Counter, centres, heights) -> list[tuple[Relation, np.ndarray]]:
    """Each arrow and the points [N, 2] that it goes through, from edge to edge of the two pictures."""
    drawn, numbers = [], Counter()
    for relation in graph.relations:
        if relation.object is None:
            continue
        pair = frozenset((relation.subject, relation.object))
        apart = BEND if pairs[pair] <= 3 else LEAST_BEND
        bend = (numbers[pair] - (pairs[pair] - 1) / 2) * apart
        numbers[pair] += 1
        # Bent to the same side of the pair, whichever way an arrow goes, so that no two lie on each other.
        bend = bend if relation.subject < relation.object else -bend
        start, end = (np.array(centres[i]) + (0, PHOTO / 2) for i in (relation.subject, relation.object))
        along = end - start
        normal = np.array((-along[1], along[0])) / max(np.hypot(*along), 1.0)
        t = np.linspace(0, 1, _STEPS)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * ((start + end) / 2 + 2 * bend * normal) + t**2 * end
        for i in (relation.subject, relation.object):
            x, y = centres[i]
            aside = np.abs(curve[:, 0] - x) > PHOTO / 2 + 8
            curve = curve[aside | (curve[:, 1] < y - 8) | (curve[:, 1] > y + heights[i])]
        if len(curve) < 2:
            curve = np.stack([start, end])
        colour = drawing.subject_colour(relation.subject)
        for a, b in pairwise(curve):
            draw.line((*a, *b), colour, 3)
        _draw_head(draw, curve, colour)
        drawn.append((relation, curve))
    return drawn


def _draw_head(draw, curve: np.ndarray, colour: drawing.Colour) -> None:
    tip, back = curve[-1], curve[-2]
    along = (tip - back) / max(np.hypot(*(tip - back)), 1e-6)
    side = np.array((-along[1], along[0]))
    base = tip - 16 * along
    draw.polygon([tuple(tip + 2 * along), tuple(base + 7 * side), tuple(base - 7 * side)], fill=colour)


def _draw_label(draw, relation: Relation, curve: np.ndarray, taken: list) -> tuple[float, float, float, float]:
    """Where the label was put: on its arrow, where it covers least of the others."""
    lines = drawing.wrap_text(_words(relation), 15, LABEL_WIDTH)[:3]
    half = (min(LABEL_WIDTH, max(drawing.text_width(line, 15) for line in lines)) / 2 + 8, 10 * len(lines) + 4)
    boxes = []
    for place in _PLACES:
        x, y = curve[round(place * (len(curve) - 1))]
        boxes.append((x - half[0], y - half[1], x + half[0], y + half[1]))
    box = min(boxes, key=lambda each: sum(_overlap(each, other) for other in taken))
    draw.rounded_rectangle(box, 6, drawing.PANEL, drawing.subject_colour(relation.subject), 1)
    for i, line in enumerate(lines):
        middle = (box[0] + box[2]) / 2
        drawing.draw_text(draw, (middle, box[1] + 5 + 20 * i), line, 15, drawing.TEXT, "ma", LABEL_WIDTH)
    return box


def _overlap(a, b) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
