"""The contact sheet: what face extraction saw in each photo, and how alike all faces are, as a picture and as text."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from PIL import Image, ImageDraw

from .. import drawing
from .faces import ALIKE_COSINE, DISAGREE_COSINE, CastFaces, DetectedFace, SubjectFaces, aligned_crop, similarities
from .faces import to_uint8 as image_to_uint8
from .subject import Cast, Subject

WIDTH = 1280
MARGIN = 24
PHOTO = 160
CROP = 112
TILE = PHOTO + 8 + CROP + 16
TILE_HEIGHT = PHOTO + 30
HEADER = 46
CELL = 48
MAX_CELLS = 16  # more faces than this are shown as one mean per subject


def contact_sheet(cast: Cast) -> torch.Tensor:
    """Picture [1, H, 1280, 3] of a cast with faces: each photo with box and landmarks, its aligned crop, the
    similarity of all faces, and the warnings. Raises ValueError for a cast without faces."""
    faces = _faces_of(cast)
    per_row = (WIDTH - 2 * MARGIN - 16) // TILE
    rows = [-(-len(subject.photos) // per_row) for subject in cast.subjects]
    matrix = _matrix_entries(cast, faces)
    notes = [line for note in faces.warnings for line in _bullet(note)]
    panels = [HEADER + row * TILE_HEIGHT for row in rows]
    matrix_height = 60 + max(len(matrix) * CELL + 26, 150) if matrix else 0
    notes_height = 44 + 22 * len(notes) if notes else 0
    height = 92 + sum(panel + 14 for panel in panels)
    height += sum(part + 14 for part in (matrix_height, notes_height) if part)

    picture = Image.new("RGB", (WIDTH, height), drawing.BACKGROUND)
    draw = ImageDraw.Draw(picture)
    drawing.draw_text(draw, (MARGIN, 20), "Faces of the cast", 26)
    analyzer = faces.analyzer
    drawing.draw_text(
        draw,
        (MARGIN, 56),
        f"found by {analyzer.name}; licence: {analyzer.licence}",
        15,
        drawing.MUTED,
        width=WIDTH - 2 * MARGIN,
    )
    top = 92
    for index, (subject, own) in enumerate(zip(cast.subjects, faces.subjects, strict=True)):
        _panel(draw, top, panels[index])
        _draw_subject(picture, draw, top, index, subject, own, per_row)
        top += panels[index] + 14
    if matrix:
        _panel(draw, top, matrix_height)
        _draw_matrix(draw, top, matrix)
        top += matrix_height + 14
    if notes:
        _panel(draw, top, notes_height)
        drawing.draw_text(draw, (MARGIN + 16, top + 12), "Please check", 18, drawing.WARNING)
        for i, line in enumerate(notes):
            drawing.draw_text(draw, (MARGIN + 16, top + 40 + 22 * i), line, 15)
    return drawing.to_tensor(picture)


def cast_report(cast: Cast) -> str:
    """The contact sheet in words: warnings, per subject the photos used and how well they agree, each pair of subjects.
    Raises ValueError for a cast without faces."""
    faces = _faces_of(cast)
    lines = [f"Warning: {note}" for note in faces.warnings]
    for subject, own in zip(cast.subjects, faces.subjects, strict=True):
        lines.append(f"{subject.name} ({subject.kind}): {_summary(subject, own)}")
    known = [(s.name, own.mean) for s, own in zip(cast.subjects, faces.subjects, strict=True) if own is not None]
    lines += [f"{a} / {b}: similarity {float(x @ y):.2f}" for (a, x), (b, y) in combinations(known, 2)]
    lines.append(f"Faces found by {faces.analyzer.name}; licence: {faces.analyzer.licence}")
    return "\n".join(lines)


def _faces_of(cast: Cast) -> CastFaces:
    if cast.faces is None:
        raise ValueError("The cast has no faces yet; run it through IDCrafterExtractFaces first.")
    return cast.faces


def _summary(subject: Subject, own: SubjectFaces | None) -> str:
    if subject.kind == "object":
        return "an object, faces are not looked for"
    used = [face for face in own.faces if face is not None] if own else []
    text = f"{len(used)} of {len(subject.photos)} photos used"
    if len(used) > 1:
        embeddings = np.stack([face.embedding for face in used])
        cosines = similarities(embeddings, embeddings)[np.triu_indices(len(used), 1)]
        text += f", photos agree {cosines.min():.2f} to {cosines.max():.2f}"
    return text


def _panel(draw: ImageDraw.ImageDraw, top: int, height: int) -> None:
    draw.rounded_rectangle((MARGIN, top, WIDTH - MARGIN, top + height), 8, fill=drawing.PANEL)


def _bullet(note: str) -> list[str]:
    first, *rest = drawing.wrap_text(note[0].upper() + note[1:], 15, WIDTH - 2 * MARGIN - 56)
    return [f"- {first}", *(f"   {line}" for line in rest)]


def _draw_subject(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    top: int,
    index: int,
    subject: Subject,
    own: SubjectFaces | None,
    per_row: int,
) -> None:
    colour = drawing.subject_colour(index)
    left = MARGIN + 16
    draw.rectangle((MARGIN, top + 12, MARGIN + 5, top + 34), fill=colour)
    right = drawing.draw_text(draw, (WIDTH - MARGIN - 16, top + 15), _summary(subject, own), 15, drawing.MUTED, "ra")
    used = drawing.draw_text(
        draw, (left, top + 11), f"{index + 1}  {subject.name}", 20, width=WIDTH - 2 * MARGIN - right - 150
    )
    drawing.draw_text(draw, (left + used + 12, top + 15), subject.kind, 15, drawing.MUTED)
    for i, photo in enumerate(subject.photos):
        x = left + (i % per_row) * TILE
        y = top + HEADER + (i // per_row) * TILE_HEIGHT
        face = own.faces[i] if own else None
        _draw_photo(picture, draw, x, y, photo, face, colour)
        caption = f"photo {i + 1}"
        if face is not None:
            caption += f", score {face.score:.2f}"
        elif subject.kind != "object":
            caption += ", left out"
        drawing.draw_text(
            draw, (x, y + PHOTO + 5), caption, 14, drawing.WARNING if ", left" in caption else drawing.MUTED
        )


def _draw_photo(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    photo: torch.Tensor,
    face: DetectedFace | None,
    colour: drawing.Colour,
) -> None:
    """A photo fitted into its square, with the face marked, and the aligned crop beside it."""
    height, width = photo.shape[:2]
    scale = PHOTO / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    thumb = Image.fromarray(image_to_uint8(photo)).resize(size, Image.Resampling.LANCZOS)
    origin = np.array([x + (PHOTO - size[0]) // 2, y + (PHOTO - size[1]) // 2])
    picture.paste(thumb, tuple(origin.tolist()))
    draw.rectangle((x, y, x + PHOTO - 1, y + PHOTO - 1), outline=drawing.LINE)
    if face is None:
        return
    low, high = origin, origin + np.array(size) - 1
    corners = np.clip(face.box.reshape(2, 2) * scale + origin, low, high)
    draw.rectangle(tuple(corners.ravel().tolist()), outline=colour, width=2)
    for point in face.landmarks * scale + origin:
        if (point >= low).all() and (point <= high).all():
            draw.ellipse((*(point - 2).tolist(), *(point + 2).tolist()), fill=colour, outline=(0, 0, 0))
    crop = Image.fromarray(aligned_crop(photo, face.landmarks, CROP))
    picture.paste(crop, (x + PHOTO + 8, y))
    drawing.draw_text(draw, (x + PHOTO + 8, y + CROP + 5), "aligned", 14, drawing.MUTED)


def _matrix_entries(cast: Cast, faces: CastFaces) -> list[tuple[int, str, str, np.ndarray]]:
    """(subject, short label, long label, embedding) of every face, or of every subject's mean when there are many."""
    entries = []
    for i, (subject, own) in enumerate(zip(cast.subjects, faces.subjects, strict=True)):
        for k, face in enumerate(own.faces if own else ()):
            if face is not None:
                entries.append((i, f"{i + 1}.{k + 1}", f"{subject.name}, photo {k + 1}", face.embedding))
    if len(entries) > MAX_CELLS:
        entries = [
            (i, f"{i + 1}", f"{subject.name}, mean", own.mean)
            for i, (subject, own) in enumerate(zip(cast.subjects, faces.subjects, strict=True))
            if own
        ]
    return entries if len(entries) > 1 else []


def _draw_matrix(draw: ImageDraw.ImageDraw, top: int, entries: list[tuple[int, str, str, np.ndarray]]) -> None:
    """The labelled heat map, with its reading beside it."""
    drawing.draw_text(draw, (MARGIN + 16, top + 12), "Similarity of the faces", 18)
    label_width = 210
    left, first = MARGIN + 16 + label_width, top + 66
    embeddings = np.stack([entry[3] for entry in entries])
    cosines = similarities(embeddings, embeddings)
    for row, (subject, short, long, _) in enumerate(entries):
        colour = drawing.subject_colour(subject)
        y = first + row * CELL
        drawing.draw_text(draw, (left + row * CELL + CELL / 2, first - 8), short, 14, colour, "mb")
        drawing.draw_text(draw, (MARGIN + 16, y + CELL / 2), short, 14, colour, "lm")
        drawing.draw_text(draw, (MARGIN + 54, y + CELL / 2), long, 14, anchor="lm", width=label_width - 46)
        for column, (other, *_) in enumerate(entries):
            x, cosine = left + column * CELL, float(cosines[row, column])
            fill = drawing.scale_colour(cosine)
            odd = cosine < DISAGREE_COSINE if subject == other else cosine >= ALIKE_COSINE
            draw.rectangle((x, y, x + CELL - 3, y + CELL - 3), fill=fill)
            if odd:
                draw.rectangle((x - 1, y - 1, x + CELL - 2, y + CELL - 2), outline=drawing.BAD, width=3)
            ink = drawing.ink_on(fill)
            drawing.draw_text(draw, (x + CELL / 2 - 1, y + CELL / 2 - 1), f"{cosine:.2f}", 14, ink, "mm")
    _draw_legend(draw, left + len(entries) * CELL + 32, first)


def _draw_legend(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    room = WIDTH - MARGIN - 16 - x
    bar = min(240, room)
    for i in range(bar):
        draw.line((x + i, y, x + i, y + 12), fill=drawing.scale_colour(i / (bar - 1)))
    drawing.draw_text(draw, (x, y + 18), "0", 14, drawing.MUTED)
    drawing.draw_text(draw, (x + bar, y + 18), "1", 14, drawing.MUTED, "ra")
    reading = (
        f"Photos of one subject should reach {DISAGREE_COSINE} with each other, "
        f"different subjects should stay below {ALIKE_COSINE}. What does not is framed red."
    )
    for i, line in enumerate(drawing.wrap_text(reading, 14, room)):
        drawing.draw_text(draw, (x, y + 44 + 20 * i), line, 14, drawing.MUTED)
