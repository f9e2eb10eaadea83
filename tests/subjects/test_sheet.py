"""The contact sheet as a picture and in words."""

import numpy as np
import pytest
import torch

from idcrafter import drawing
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.sheet import CELL, MAX_CELLS, WIDTH, cast_report, contact_sheet
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


def subject(name, *faces, kind="person", extra=()):
    """A subject with one photo a face (who, similarity); `extra` photos are appended as they are."""
    photos = [paint(blank(96, 96), who, 30, similarity, y=30, size=40) for who, similarity in faces]
    return make_subject(name, kind, "", torch.stack([*photos, *extra]))


def with_faces(*subjects):
    cast = make_cast(subjects)
    return cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "skip", "error"))


def pixels(cast):
    sheet = contact_sheet(cast)
    assert sheet.shape[0] == 1 and sheet.shape[2:] == (WIDTH, 3) and sheet.dtype == torch.float32
    return (sheet[0].numpy() * 255).round().astype(int)


def count(picture, colour):
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


@pytest.fixture(scope="module")
def pair():
    return with_faces(subject("Ada", (1, 1.0), (1, 0.9)), subject("Bo", (2, 1.0)))


def test_boxes_are_drawn_in_the_subjects_colour(pair):
    picture = pixels(pair)
    # The box of a 40 px face in a 96 px photo, drawn into a 160 px square: 4 sides of 2 x 67 px.
    side = 40 * 160 / 96
    for i, photos in enumerate([2, 1]):
        assert count(picture, drawing.subject_colour(i)) > photos * 4 * 2 * (side - 4)


def test_the_crop_shows_the_face(pair):
    # The crop of a painted face is the face's own colour in its middle, right of the 160 px photo.
    picture = pixels(pair)
    crop = picture[92 + 46 + 60 : 92 + 46 + 64, 24 + 16 + 168 + 54 : 24 + 16 + 168 + 58]
    np.testing.assert_allclose(crop.reshape(-1, 3).mean(0), [1 / 16 * 255, 255, 0], atol=2)


def test_matrix_has_a_cell_for_every_pair_of_faces(pair):
    picture = pixels(pair)
    own, other = drawing.scale_colour(1.0), drawing.scale_colour(0.0)
    cell = (CELL - 2) ** 2
    # Three faces on the diagonal (and the two of one person, nearly as bright), four pairs of different people.
    assert 2.5 * cell < count(picture, own) < 6 * cell
    assert 2.5 * cell < count(picture, other) < 5 * cell


def test_what_is_wrong_is_framed(pair):
    fine = count(pixels(pair), drawing.BAD)
    alike = with_faces(subject("Ada", (1, 1.0)), subject("Bo", (1, 0.9)))
    assert fine == 0 and count(pixels(alike), drawing.BAD) > 4 * CELL


def test_warnings_are_printed(pair):
    empty = with_faces(subject("Ada", (1, 1.0), (1, 0.9), extra=(blank(96, 96),)), subject("Bo", (2, 1.0)))
    assert len(contact_sheet(empty)[0]) > len(contact_sheet(pair)[0])
    assert count(pixels(empty), drawing.WARNING) > 100 > count(pixels(pair), drawing.WARNING)


def test_objects_and_people_without_faces_have_their_row():
    cast = with_faces(subject("lamp", (1, 1.0), kind="object"), subject("Bo", extra=(blank(96, 96),)))
    picture = pixels(cast)
    assert count(picture, drawing.subject_colour(0)) > 0 and count(picture, drawing.scale_colour(1.0)) == 0


def test_many_photos_wrap_and_large_casts_show_means():
    one_row = contact_sheet(with_faces(subject("Ada", *[(1, 1.0)] * 4))).shape[1]
    two_rows = contact_sheet(with_faces(subject("Ada", *[(1, 1.0)] * 5))).shape[1]
    assert two_rows - one_row == 190 + CELL  # one row of tiles, one more face in the matrix
    crowd = [subject(f"S{i}", *[(i, 1.0)] * 3) for i in range(6)]
    assert 6 * 3 > MAX_CELLS
    picture = pixels(with_faces(*crowd))
    assert 5 * (CELL - 2) ** 2 < count(picture, drawing.scale_colour(1.0)) < 9 * CELL**2


@pytest.mark.parametrize("name", ["Zo\u00eb", "\u674e\u96f7", "\u0645\u062d\u0645\u062f", "x" * 64, "\U0001f600"])
def test_any_name_draws(name):
    pixels(with_faces(subject(name, (1, 1.0))))


@pytest.mark.parametrize("shape", [(16, 400), (400, 16), (900, 700)])
def test_any_photo_shape_draws(shape):
    photo = paint(blank(*shape), 1, 1, y=1, size=12)
    cast = make_cast([make_subject("Ada", "person", "", photo[None])])
    pixels(cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error")))


def test_report(pair):
    lines = cast_report(pair).splitlines()
    assert lines[0] == "Ada (person): 2 of 2 photos used, photos agree 0.90 to 0.90"
    assert lines[1] == "Bo (person): 1 of 1 photos used"
    assert lines[2] == "Ada / Bo: similarity 0.00"
    assert lines[3] == "Faces found by painted; licence: none needed"


def test_report_carries_warnings():
    report = cast_report(with_faces(subject("Ada", (1, 1.0), extra=(blank(96, 96),))))
    assert "Warning: photo 2 of subject 'Ada': no face found, photo left out." in report


def test_cast_without_faces():
    cast = make_cast([subject("Ada", (1, 1.0))])
    for draw in (contact_sheet, cast_report):
        with pytest.raises(ValueError, match="run it through IDCrafterExtractFaces first"):
            draw(cast)
