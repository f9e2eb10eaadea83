"""References: which photos, in which order, and how they fill a frame."""

import pytest
import torch

from idcrafter.subjects.references import PhotoRef, choose_photos, cut_out, letterbox, order_photos
from idcrafter.subjects.subject import make_cast, make_subject


def cast_of(*photo_counts):
    return make_cast(
        [make_subject(f"S{i}", "person", "", torch.rand((n, 16, 16, 3))) for i, n in enumerate(photo_counts)]
    )


def test_first_photos_of_everybody_come_first():
    assert order_photos(cast_of(2, 1, 3)) == [
        PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(2, 0), PhotoRef(0, 1), PhotoRef(2, 1), PhotoRef(2, 2),
    ]  # fmt: skip


def test_what_does_not_fit_is_named():
    cast = cast_of(3, 2)
    chosen, left_out = choose_photos(cast, 4, "Phantom")
    assert chosen == [PhotoRef(0, 0), PhotoRef(1, 0), PhotoRef(0, 1), PhotoRef(1, 1)]
    assert [ref.label(cast) for ref in left_out] == ["photo 3 of subject 'S0'"]


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
