"""References: which photos, in which order, and how they fill a frame."""

import numpy as np
import pytest
import torch

from idcrafter.subjects.diversity import farthest_points, most_diverse
from idcrafter.subjects.faces import CastFaces, DetectedFace, SubjectFaces
from idcrafter.subjects.references import PhotoRef, choose_photos, crop_face, cut_out, letterbox, order_photos, picture
from idcrafter.subjects.subject import make_cast, make_subject


def cast_of(*photo_counts):
    return make_cast(
        [make_subject(f"S{i}", "person", "", torch.rand((n, 16, 16, 3))) for i, n in enumerate(photo_counts)]
    )


def test_first_photos_of_everybody_come_first():
    assert order_photos(cast_of(2, 1, 3)) == [
        PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(2, 0), PhotoRef(0, 1), PhotoRef(2, 1), PhotoRef(2, 2),
    ]  # fmt: skip


def with_faces(cast, embeddings):
    """The cast with faces of these embeddings (a list a subject; None = no face there) in a box of 8 px."""
    box = np.array([4, 4, 12, 12], np.float32)

    def face(vector):
        unit = np.asarray(vector, np.float32) / np.linalg.norm(vector)
        return DetectedFace(box, 0.9, np.zeros((5, 2), np.float32), unit)

    subjects = []
    for own in embeddings:
        faces = tuple(None if vector is None else face(vector) for vector in own)
        found = [f.embedding for f in faces if f is not None]
        subjects.append(SubjectFaces(faces, np.mean(found, 0)) if found else None)
    return cast.with_faces(CastFaces(None, tuple(subjects), ()))


def shades(*values):
    """A cast of one subject with flat photos of these greys."""
    photos = torch.stack([torch.full((16, 16, 3), value) for value in values])
    return make_cast([make_subject("Ada", "person", "", photos)])


def test_what_does_not_fit_is_named():
    cast = make_cast([*shades(0.1, 0.2, 0.9).subjects, make_subject("Bo", "person", "", torch.rand((2, 16, 16, 3)))])
    chosen, left_out = choose_photos(cast, 4, "Phantom")
    # Bo has both of his photos in it; of Ada's second and third the one that differs more.
    assert chosen == [PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(0, 2), PhotoRef(1, 1)]
    assert [ref.label(cast) for ref in left_out] == ["photo 2 of subject 'Ada'"]


def test_room_is_given_in_turns():
    chosen, left_out = choose_photos(cast_of(6, 1, 6), 8, "Bernini")
    assert [ref.subject for ref in chosen] == [0, 1, 2, 0, 2, 0, 2, 0] and len(left_out) == 5


def test_no_more_photos_than_wanted():
    cast = shades(0.1, 0.2, 0.9)
    assert choose_photos(cast, 4, "Phantom", photos=2)[0] == [PhotoRef(0, 0), PhotoRef(0, 2)]
    assert choose_photos(cast, 4, "Phantom", photos=1) == ([PhotoRef(0, 0)], [PhotoRef(0, 1), PhotoRef(0, 2)])


@pytest.mark.parametrize(
    ("values", "count", "chosen"),
    [
        ((0.0, 0.1, 1.0, 0.5), 1, [0]),
        ((0.0, 0.1, 1.0, 0.5), 2, [0, 2]),
        ((0.0, 0.1, 1.0, 0.5), 3, [0, 2, 3]),
        ((0.0, 0.1, 1.0, 0.5), 9, [0, 1, 2, 3]),
        ((0.5, 0.5, 0.5, 0.2), 3, [0, 1, 3]),  # copies come last, the earlier one first
    ],
)
def test_farthest_points_by_thumbnail(values, count, chosen):
    cast = shades(*values)
    assert most_diverse(cast, 0, list(range(len(values))), count) == chosen


def test_farthest_points_against_brute_force():
    """Each step takes the point whose nearest chosen one is farthest."""
    points = torch.randn((12, 5), generator=torch.Generator().manual_seed(2))
    chosen = [0]
    while len(chosen) < 7:
        gaps = {i: min(float((points[i] - points[j]).norm()) for j in chosen) for i in range(12) if i not in chosen}
        chosen.append(max(gaps, key=gaps.get))
    assert farthest_points(points, 7) == chosen


def test_known_faces_decide_before_looks_do():
    """The picture that looks most different is the same face; the one that looks alike is the profile."""
    cast = shades(0.1, 0.9, 0.11)
    assert most_diverse(cast, 0, [0, 1, 2], 2) == [0, 1]
    assert most_diverse(with_faces(cast, [[(1, 0), (1, 0.01), (0.5, 1)]]), 0, [0, 1, 2], 2) == [0, 2]
    # With a face missing, embeddings cannot be compared and looks decide.
    assert most_diverse(with_faces(cast, [[(1, 0), None, (0.5, 1)]]), 0, [0, 1, 2], 2) == [0, 1]


def test_framings():
    cast = make_cast(
        [
            make_subject("Ada", "person", "", torch.rand((2, 16, 16, 3))),
            make_subject("Vase", "object", "", torch.rand((1, 16, 16, 3))),
        ]
    )
    with pytest.raises(ValueError, match="'faces' needs to know where the faces are.*Extract Faces"):
        order_photos(cast, "faces")
    with pytest.raises(ValueError, match="'half' is unknown; choose one of whole, faces, both"):
        order_photos(cast, "half")
    cast = with_faces(cast, [[(1, 0), (0, 1)], [None]])
    assert order_photos(cast, "faces") == [PhotoRef(0, 0, True), PhotoRef(1, 0), PhotoRef(0, 1, True)]
    assert order_photos(cast, "both") == [
        PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(0, 0, True), PhotoRef(0, 1), PhotoRef(0, 1, True),
    ]  # fmt: skip
    chosen, left_out = choose_photos(cast, 4, "Phantom", "both")
    assert chosen == [PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(0, 0, True), PhotoRef(0, 1)]
    assert [ref.label(cast) for ref in left_out] == ["the face in photo 2 of subject 'Ada'"]


def test_a_missing_face_wastes_no_room():
    cast = with_faces(shades(0.1, 0.5, 0.9), [[None, (1, 0), (0, 1)]])
    chosen, _ = choose_photos(cast, 4, "Phantom", "both")
    assert len(chosen) == 4 and chosen[0] == PhotoRef(0, 0)
    assert choose_photos(cast, 4, "Phantom", "faces")[0] == [PhotoRef(0, 1, True), PhotoRef(0, 2, True)]


def test_the_face_with_its_hair():
    photo = torch.arange(40.0).view(40, 1, 1).expand(40, 60, 3) / 40
    assert crop_face(photo, (20, 10, 30, 20)).shape == (18, 18, 3)  # 10 px and 40 % on each side
    assert crop_face(photo, (20, 10, 30, 20))[0, 0, 0] == pytest.approx(6 / 40)
    assert crop_face(photo, (-4, -4, 8, 8)).shape == (13, 13, 3)  # as far as the photo reaches


def test_pictures_with_and_without_their_mask():
    mask = torch.zeros((16, 16))
    mask[6:10, 6:10] = 1.0
    cast = make_cast([make_subject("Ada", "person", "", torch.zeros((1, 16, 16, 3)), mask)])
    cast = with_faces(cast, [[(1, 0)]])
    assert picture(cast, PhotoRef(0, 0)).shape == (4, 4, 3)
    assert picture(cast, PhotoRef(0, 0), cut=False).shape == (16, 16, 3)
    face = picture(cast, PhotoRef(0, 0, True))
    assert face.shape == (14, 14, 3)
    assert not face[5:9, 5:9].any() and (face[0] == 1).all()  # behind the subject it is white
    assert not picture(cast, PhotoRef(0, 0, True), cut=False).any()


def test_no_subject_is_dropped_in_silence():
    with pytest.raises(ValueError, match="at most 4 references, but the cast has 5 subjects; remove 1"):
        choose_photos(cast_of(1, 1, 1, 1, 1), 4, "Phantom")


@pytest.mark.parametrize(
    ("photo", "frame", "box"),
    [
        ((100, 50), (96, 64), (0, 64, 32, 64)),  # portrait into landscape: full height, 32 px wide, centred
        ((50, 100), (64, 96), (32, 64, 0, 64)),
        ((64, 96), (96, 64), (0, 64, 0, 96)),  # the same shape: no border
        ((20, 20), (96, 64), (0, 64, 16, 80)),  # smaller than the frame: enlarged
    ],
)
def test_the_whole_photo_is_in_the_frame_undistorted(photo, frame, box):
    width, height = frame
    top, bottom, left, right = box
    out = letterbox(torch.zeros((*photo, 3)), None, width, height)
    assert out.shape == (height, width, 3)
    expected = torch.ones((height, width, 3))
    expected[top:bottom, left:right] = 0.0
    assert torch.equal(out, expected)


def test_nothing_is_cropped():
    """Four coloured corners of a wide photo are still its corners."""
    photo = torch.zeros((60, 200, 3))
    photo[:12, :12, 0] = 1.0
    photo[-12:, -12:, 1] = 1.0
    out = letterbox(photo, None, 100, 80)
    assert out[25, 0].argmax() == 0 and out[25, 0, 0] > 0.9
    assert out[54, 99].argmax() == 1 and out[54, 99, 1] > 0.9
    assert torch.equal(out[24], torch.ones(100, 3))


def test_downscaling_does_not_alias():
    """A one-pixel checkerboard has no detail at a tenth of the size: flat grey, not moire."""
    rows, columns = torch.meshgrid(torch.arange(640), torch.arange(960), indexing="ij")
    board = ((rows + columns) % 2).float().unsqueeze(-1).expand(-1, -1, 3).contiguous()
    out = letterbox(board, None, 96, 64)
    assert (out[2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_values_stay_in_range_and_brightness_is_kept():
    photo = (torch.rand((90, 120, 3), generator=torch.Generator().manual_seed(1)) > 0.5).float()
    out = letterbox(photo, None, 40, 30)
    assert 0.0 <= out.min() and out.max() <= 1.0
    assert abs(out.mean() - photo.mean()) < 0.01


def test_a_mask_cuts_out_and_fills_the_frame_with_the_subject():
    photo = torch.zeros((200, 200, 3))
    mask = torch.zeros((200, 200))
    mask[80:120, 60:100] = 1.0
    piece = cut_out(photo, mask, 1.0)
    assert piece.shape == (44, 44, 3)  # 40 px and 6 % margin on each side
    assert torch.equal(piece[2:42, 2:42], torch.zeros((40, 40, 3)))
    assert torch.equal(piece[0], torch.ones((44, 3)))
    out = letterbox(photo, mask, 64, 64)
    assert (out < 0.5).float().mean() > 0.75


def test_a_mask_at_the_border_keeps_inside_the_photo():
    mask = torch.zeros((50, 30))
    mask[:10] = 1.0
    assert cut_out(torch.zeros((50, 30, 3)), mask, 1.0).shape == (12, 30, 3)


def test_inputs_are_not_changed():
    photo, mask = torch.rand((20, 20, 3)), torch.ones((20, 20))
    mask[:5] = 0.0
    before = photo.clone(), mask.clone()
    letterbox(photo, mask, 32, 32)
    assert torch.equal(photo, before[0]) and torch.equal(mask, before[1])


def test_extreme_shapes_keep_at_least_one_pixel():
    out = letterbox(torch.zeros((8192, 16, 3)), None, 96, 64)
    assert (out == 0.0).any()
