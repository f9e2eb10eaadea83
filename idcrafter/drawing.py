"""Text and colours for the pictures that the nodes draw (contact sheet, timeline). PIL only.

PIL's built-in font covers little more than ASCII. Names may be in any script, so `draw_text` takes the first font that
has every glyph of a text: the built-in one, then what the operating system usually has. Without such a font accents
are dropped and what is still missing becomes '?', so that a picture is always drawn.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (24, 26, 30)
PANEL = (34, 37, 43)
LINE = (66, 71, 82)
TEXT = (232, 234, 238)
MUTED = (156, 163, 175)
WARNING = (245, 181, 66)
BAD = (239, 83, 80)
GOOD = (102, 204, 122)

# One colour per subject, in cast order: readable on dark, and told apart by people with colour blindness (after
# Okabe and Ito, lightened for a dark background).
SUBJECT_COLOURS = (
    (86, 180, 233),
    (240, 150, 40),
    (60, 190, 140),
    (222, 140, 190),
    (240, 228, 66),
    (120, 140, 240),
    (230, 100, 60),
    (190, 190, 190),
)

# Anchors of a dark-to-bright scale for similarities of 0..1 (the viridis colours, sampled at quarters).
_SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)

# Looked up by file name in the system's font folders: Linux, Windows, macOS; Latin first, then wide coverage.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "WenQuanYiMicroHei.ttf",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "meiryo.ttc",
    "malgun.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Nirmala.ttf",
    "LeelawUI.ttf",
    "FreeSans.ttf",
    "unifont.ttf",
)

Colour = tuple[int, int, int]


def draw_text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    fill: Colour = TEXT,
    anchor: str = "la",
    width: float | None = None,
) -> float:
    """Draw one line and return its width in pixels; `width` shortens it with dots. Anchors as in PIL."""
    text, font = _typeset(text, size)
    if width is not None and font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text = text.rstrip() + "..."
    draw.text(xy, text, fill=fill, font=font, anchor=anchor)
    return font.getlength(text)


def text_width(text: str, size: int) -> float:
    """Width in pixels that `draw_text` needs."""
    text, font = _typeset(text, size)
    return font.getlength(text)


def wrap_text(text: str, size: int, width: float) -> list[str]:
    """Split at spaces into lines that fit; a single longer word gets a line of its own."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and text_width(longer, size) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line else lines


def scale_colour(value: float) -> Colour:
    """The colour of a similarity: dark violet at 0 (or less), yellow at 1."""
    position = min(max(value, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(position), len(_SCALE) - 2)
    mixed = _SCALE[low] + (_SCALE[low + 1] - _SCALE[low]) * (position - low)
    return tuple(int(round(c)) for c in mixed)


def ink_on(colour: Colour) -> Colour:
    """Near-black or near-white, whichever has more contrast on a colour (they break even at a luminance of 0.18)."""
    r, g, b = ((c / 255) ** 2.2 for c in colour)
    return (16, 16, 16) if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 else (245, 245, 245)


def subject_colour(index: int) -> Colour:
    return SUBJECT_COLOURS[index % len(SUBJECT_COLOURS)]


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """RGB picture -> [1, H, W, 3] float32 in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255.0).unsqueeze(0)


def _typeset(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text as far as a font can show it, and that font."""
    fonts = (None, *_SYSTEM_FONTS)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    for candidate in dict.fromkeys((text, plain)):
        for name in fonts:
            if all(_has_glyph(name, c) for c in set(candidate)):
                return candidate, _font(name, size)
    best = max(fonts, key=lambda name: sum(_has_glyph(name, c) for c in plain))
    return "".join(c if _has_glyph(best, c) else "?" for c in plain), _font(best, size)


@lru_cache(maxsize=256)
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    if name is None:
        return ImageFont.load_default(size)
    if _font_path(name) is None:
        return None
    return ImageFont.truetype(_font_path(name), size)


@lru_cache(maxsize=len(_SYSTEM_FONTS))
def _font_path(name: str) -> str | None:
    """Where a system font is; the search walks the font folders, so it is done once."""
    try:
        return ImageFont.truetype(name, 16).path
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_glyph(name: str | None, character: str) -> bool:
    """Whether a font draws a character itself, not the box that stands for missing ones."""
    if character.isspace() or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return True
    font = _font(name, 16)
    if font is None:
        return False
    return _shape(font, character) != _shape(font, "\U0010fffd")


def _shape(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
