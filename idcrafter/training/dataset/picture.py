"""A data set on one page: of each clip three frames with who is where, and the references beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ... import drawing
from ...rewards.evidence import VideoFrames
from ...subjects.faces import to_uint8
from ...subjects.regions import SPATIAL_STRIDE, TEMPORAL_STRIDE
from .clip import TrainingClip, TrainingDataset
from .regions import subject_cover, token_owners

WIDTH = 1280
MARGIN = 20
FRAME = 224
THUMBNAIL = 84
TINT = 0.35


def draw_dataset(dataset: TrainingDataset, most: int = 40) -> Image.Image:
    """The first `most` clips. A region is tinted in its subject's colour, a token that the router learns has a dot."""
    panels = [_draw_clip(clip) for clip in dataset.clips[:most]]
    top = 64
    page = Image.new("RGB", (WIDTH, top + sum(panel.height + 12 for panel in panels) + 8), drawing.BACKGROUND)
    draw = ImageDraw.Draw(page)
    count = len(dataset.clips)
    rest = f" (the first {most} are shown)" if count > most else ""
    drawing.draw_text(draw, (MARGIN, 18), f"{count} clips{rest}", 24)
    for panel in panels:
        page.paste(panel, (MARGIN, top))
        top += panel.height + 12
    return page


def _draw_clip(clip: TrainingClip) -> Image.Image:
    height = round(FRAME * clip.height / clip.width)
    rows = len(clip.subjects)
    panel = Image.new("RGB", (WIDTH - 2 * MARGIN, 46 + max(height, rows * (THUMBNAIL + 6)) + 12), drawing.PANEL)
    draw = ImageDraw.Draw(panel)
    facts = f"{clip.width}x{clip.height}, {clip.length} frames, {clip.fps:g} fps"
    used = drawing.draw_text(draw, (panel.width - 12, 14), facts, 14, drawing.MUTED, "ra")
    title = f"{clip.line}  {clip.video.name}:  {clip.caption}"
    drawing.draw_text(draw, (12, 12), title, 16, width=panel.width - used - 48)
    chosen = sorted({0, clip.length // 2, clip.length - 1})
    for k, picture in enumerate(_frames(clip, chosen, height)):
        panel.paste(picture, (12 + k * (FRAME + 8), 46))
    left = 12 + 3 * (FRAME + 8) + 12
    for s, subject in enumerate(clip.subjects):
        y = 46 + s * (THUMBNAIL + 6)
        draw.rectangle((left, y, left + 5, y + THUMBNAIL - 1), fill=drawing.subject_colour(s))
        drawing.draw_text(draw, (left + 14, y + 4), subject.name, 14, width=96)
        drawing.draw_text(draw, (left + 14, y + 24), f"{len(subject.references)} pictures", 12, drawing.MUTED, width=96)
        for n, path in enumerate(subject.references[: (panel.width - left - 120) // (THUMBNAIL + 4)]):
            with Image.open(path) as picture:
                thumb = ImageOps.contain(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL))
            panel.paste(thumb, (left + 116 + n * (THUMBNAIL + 4), y))
    return panel


def _frames(clip: TrainingClip, chosen: Sequence[int], height: int) -> list[Image.Image]:
    """These frames, FRAME pixels wide, with regions, face boxes and the dots of tokens."""
    cover = subject_cover(clip, clip.width, clip.height, height, FRAME, chosen).numpy()
    # Of whole tokens, as nearly as the clip has them.
    side = 2 * SPATIAL_STRIDE
    wide, high = max(side, clip.width // side * side), max(side, clip.height // side * side)
    tokens = token_owners(clip, wide, high, 0, (clip.length - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
    pictures = []
    for k, (frame, pixels) in enumerate(zip(chosen, VideoFrames(clip.video).read(chosen), strict=True)):
        small = Image.fromarray(to_uint8(pixels)).resize((FRAME, height), Image.Resampling.LANCZOS)
        shown = np.asarray(small, np.float32)
        for s in range(len(clip.subjects)):
            weight = TINT * cover[s, k][..., None]
            shown = shown * (1 - weight) + weight * np.array(drawing.subject_colour(s))
        picture = Image.fromarray(shown.round().astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for s, subject in enumerate(clip.subjects):
            box = (subject.faces or subject.track or (None,) * clip.length)[frame]
            if box is not None:
                corners = [v * size for v, size in zip(box, (FRAME, height) * 2, strict=True)]
                draw.rectangle(corners, outline=drawing.subject_colour(s), width=2)
        _draw_tokens(draw, tokens[min((frame + 3) // TEMPORAL_STRIDE, len(tokens) - 1)], height)
        pictures.append(picture)
    return pictures


def _draw_tokens(draw: ImageDraw.ImageDraw, owners: torch.Tensor, height: int) -> None:
    rows, columns = owners.shape
    radius = min(3.0, 0.2 * FRAME / columns)
    for row, column in (owners >= 0).nonzero().tolist():
        x, y = (column + 0.5) * FRAME / columns, (row + 0.5) * height / rows
        colour = drawing.subject_colour(int(owners[row, column]))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
