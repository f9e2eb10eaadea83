"""Text and colours of the pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from idcrafter import drawing


def ink(text, size=16, **kwargs):
    """The white-on-black picture of one line."""
    picture = Image.new("L", (400, 40))
    drawing.draw_text(ImageDraw.Draw(picture), (4, 4), text, size, 255, **kwargs)
    return np.asarray(picture)


def has_font(name):
    return drawing._font_path(name) is not None


def test_plain_text_uses_the_built_in_font(monkeypatch):
    monkeypatch.setattr(drawing, "_SYSTEM_FONTS", ())
    assert ink("Ada 0.93").max() == 255
    assert (ink("Ada") != ink("Bob")).any()


def test_accents_are_dropped_without_a_font(monkeypatch):
    monkeypatch.setattr(drawing, "_SYSTEM_FONTS", ())
    np.testing.assert_array_equal(ink("Zo\u00eb \u0141ukasz"), ink("Zoe ?ukasz"))
    np.testing.assert_array_equal(ink("\u674e\u96f7"), ink("??"))


@pytest.mark.skipif(not has_font("DejaVuSans.ttf"), reason="this system has no DejaVu Sans")
@pytest.mark.parametrize("name", ["Zo\u00eb", "\u0414\u043c\u0438\u0442\u0440\u0438\u0439", "\u05d3\u05df"])
def test_names_in_other_scripts_are_drawn_as_they_are(name):
    text, font = drawing._typeset(name, 16)
    assert text == name and font.getname()[0] != drawing._font(None, 16).getname()[0]
    assert ink(name).max() == 255


def test_width_limit_shortens_with_dots():
    full = drawing.text_width("a rather long name", 16)
    shown = ink("a rather long name", width=80)
    assert full > 80 and shown[:, 84 + 4 :].max() == 0
    assert (shown != ink("a rather long name")).any()
    np.testing.assert_array_equal(ink("short", width=80), ink("short"))


def test_wrap():
    lines = drawing.wrap_text("one two three four five six seven", 16, 90)
    assert " ".join(lines) == "one two three four five six seven" and len(lines) > 1
    assert all(drawing.text_width(line, 16) <= 90 for line in lines)
    assert drawing.wrap_text("", 16, 90) == []


def test_scale_is_clamped_and_brightens():
    assert drawing.scale_colour(-1.0) == drawing.scale_colour(0.0) == (68, 1, 84)
    assert drawing.scale_colour(2.0) == drawing.scale_colour(1.0) == (253, 231, 37)
    brightness = [sum(drawing.scale_colour(v)) for v in np.linspace(0, 1, 20)]
    assert brightness == sorted(brightness)


def test_ink_reads_on_every_subject_colour():
    def luminance(colour):
        linear = [(c / 255) ** 2.2 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*drawing.SUBJECT_COLOURS, drawing.GOOD, drawing.BAD, drawing.WARNING):
        low, high = sorted([luminance(colour), luminance(drawing.ink_on(colour))])
        assert (high + 0.05) / (low + 0.05) >= 4.0


def test_to_tensor():
    tensor = drawing.to_tensor(Image.new("RGB", (5, 3), (255, 0, 51)))
    assert tensor.shape == (1, 3, 5, 3) and tensor.dtype.is_floating_point
    np.testing.assert_allclose(tensor[0, 0, 0], [1.0, 0.0, 0.2])
