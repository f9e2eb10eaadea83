"""Where a subject is, in video frames and fractions, and which tokens that means."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.subjects.regions import (
    FaceTrack,
    MaskRegion,
    Track,
    check_region,
    latent_frame_span,
    make_mask_region,
    parse_tracks,
    token_regions,
    tracks_from_report,
)
from idcrafter.subjects.subject import make_cast, make_subject
from support.reports import make_report


def cast_of(*names):
    return make_cast([make_subject(name, "person", "", torch.rand((1, 16, 16, 3))) for name in names])


def grid(tokens, frames, rows, columns):
    return tokens.reshape(frames, rows, columns)


def test_latent_frames_cover_the_video_frames_once():
    covered = list(itertools.chain.from_iterable(latent_frame_span(i) for i in range(21)))
    assert covered == list(range(81))
    assert list(latent_frame_span(0)) == [0] and list(latent_frame_span(2)) == [5, 6, 7, 8]


def test_a_standing_box():
    tokens = grid(token_regions([Track(((0, (0.25, 0.5, 0.75, 1.0)),))], range(3), 8, 16, (2, 2))[0], 3, 4, 8)
    expected = torch.zeros((3, 4, 8), dtype=torch.bool)
    expected[:, 2:, 2:6] = True
    assert torch.equal(tokens, expected)


def test_a_box_that_moves_covers_all_places_of_its_latent_frame():
    """From the left eighth to the right one in 8 frames: an eighth a frame, four of them in a latent frame."""
    track = Track(((0, (0.0, 0.0, 0.125, 1.0)), (8, (1.0, 0.0, 1.125, 1.0))))
    tokens = grid(token_regions([track], range(3), 2, 16, (2, 2))[0], 3, 1, 8)[:, 0]
    assert tokens.int().tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]


def test_between_and_beyond_keyframes():
    track = Track(((2, (0.0, 0.0, 0.2, 0.4)), (4, (0.4, 0.2, 0.6, 0.6)), (6, None), (9, (0.1, 0.1, 0.2, 0.2))))
    assert track.box(0) == track.box(2) == (0.0, 0.0, 0.2, 0.4)
    assert track.box(3) == pytest.approx((0.2, 0.1, 0.4, 0.5))
    assert track.box(4) == track.box(5) == (0.4, 0.2, 0.6, 0.6)  # nothing to move to: it stands until it is away
    assert track.box(6) is track.box(8) is None and track.box(100) == (0.1, 0.1, 0.2, 0.2)


def test_a_context_window_sees_its_own_frames():
    track = Track(((0, (0.0, 0.0, 0.25, 1.0)), (40, (0.75, 0.0, 1.0, 1.0))))
    whole = grid(token_regions([track], range(11), 4, 32, (2, 2))[0], 11, 2, 16)
    window = grid(token_regions([track], [4, 7, 5], 4, 32, (2, 2))[0], 3, 2, 16)
    assert torch.equal(window, whole[[4, 7, 5]]) and not torch.equal(whole[4], whole[7])


def touched(low, high, cell, count):
    """Whether the interval overlaps the cell by more than rounding."""
    return min(high, (cell + 1) / count) - max(low, cell / count) > 1e-5 / count


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_tracks_and_masks_touch_the_same_tokens(data):
    """A box on pixel borders, once as a track and once as a mask of the video's size, and once cell by cell."""
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    height, width = 8 * rows, 8 * columns
    left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    box = (left / width, top / height, right / width, bottom / height)
    mask = torch.zeros((1, height, width), dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    tokens, masked = token_regions([Track(((0, box),)), MaskRegion(mask)], range(2), rows, columns, (2, 2))
    assert torch.equal(tokens, masked)
    cells = torch.zeros((rows + rows % 2, columns + columns % 2), dtype=torch.bool)
    for row, column in itertools.product(range(rows), range(columns)):
        cells[row, column] = touched(box[1], box[3], row, rows) and touched(box[0], box[2], column, columns)
    patches = torch.nn.functional.max_pool2d(cells.float()[None], 2)[0].bool()
    assert torch.equal(grid(tokens, 2, *patches.shape)[1], patches) and patches.any()


def test_masks_of_every_frame_are_united_over_a_latent_frame():
    mask = torch.zeros((9, 4, 4), dtype=torch.bool)
    for frame in range(9):
        mask[frame, frame % 4, 0] = True
    tokens = grid(token_regions([MaskRegion(mask)], range(3), 4, 4, (1, 1))[0], 3, 4, 4)
    assert tokens[0].sum() == 1 and tokens[0, 0, 0] and tokens[1:, :, 0].all() and not tokens[:, :, 1:].any()


@pytest.mark.parametrize("size", [(3, 5), (48, 64), (481, 833)])
def test_masks_of_any_size_are_stretched(size):
    mask = torch.zeros((1, *size), dtype=torch.bool)
    mask[:, :, : size[1] // 2] = True
    tokens = grid(token_regions([MaskRegion(mask)], range(1), 6, 8, (2, 2))[0], 1, 3, 4)[0]
    assert tokens[:, 0].all() and not tokens[:, 3].any()


def test_masks_come_from_masks_and_images():
    image = torch.zeros((2, 4, 4, 3))
    image[1, 0] = 1.0
    region = make_mask_region("Ada", image)
    assert torch.equal(region.mask, make_mask_region("Ada", image[..., 0]).mask) and region.mask.sum() == 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros((1, 64, 64)), "'Ada' is empty"),
        (torch.full((1, 4, 4), float("nan")), "'Ada' holds NaN"),
        (torch.ones((4, 4)), r"'Ada' has the shape \[4, 4\]"),
    ],
)
def test_masks_that_cannot_be_used(image, message):
    with pytest.raises(ValueError, match=message):
        make_mask_region("Ada", image)


def test_lines_of_boxes():
    cast = cast_of("Ada", "Ada: the 2nd", "Z\u00f6e")
    text = """
        ada: 0 0.1 0.5 1
        Ada: the 2nd @ 1: 0.5, 0, 1, 1

        Ada: the 2nd @ 41 : none
        Zo\u0308e@5:-0.5 0 0.25 1.5
    """
    assert parse_tracks(text, cast) == {
        0: Track(((0, (0.0, 0.1, 0.5, 1.0)),)),
        1: Track(((0, (0.5, 0.0, 1.0, 1.0)), (40, None))),
        2: Track(((4, (-0.5, 0.0, 0.25, 1.5)),)),
    }
    assert parse_tracks(" \n", cast) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cy: 0 0 1 1", "'Cy: 0 0 1 1' does not begin with a name of the cast"),
        ("Ada 0 0 1 1", "does not begin with a name"),
        ("Ada @ 0: 0 0 1 1", "frame 0; frames count from 1"),
        ("Ada: 0 0 1", "needs four numbers"),
        ("Ada: a b c d", "needs four numbers"),
        ("Ada: nan 0 1 1", "no box in fractions"),
        ("Ada: 0.5 0 0.5 1", "no box in fractions"),
        ("Ada: 100 50 400 300", "divide pixels by the video's width and height"),
        ("Ada: 0 0 1 1\nAda @ 1: 0 0 1 1", "gives frame 1 of subject 'Ada' a second box"),
        ("Ada: none", "track of subject 'Ada' has no box"),
    ],
)
def test_lines_that_are_no_boxes(text, message):
    with pytest.raises(ValueError, match=message):
        parse_tracks(text, cast_of("Ada", "Bo"))


# Tracks of a scorecard ------------------------------------------------------------------------------------------------


def test_a_face_stands_for_the_person_below_it():
    """A face of 16x8 px at 32, 16 in a frame of 128x64 px: a face's width to each side, and all that is below."""
    track = FaceTrack(((0, (32.0, 16.0, 48.0, 24.0)),)).track(rows=8, columns=16)
    assert track.box(0) == pytest.approx((16 / 128, 10 / 64, 64 / 128, 1.0))
    tokens = grid(token_regions([FaceTrack(((0, (32.0, 16.0, 48.0, 24.0)),))], [0], 8, 16, (2, 2))[0], 1, 4, 8)
    expected = torch.zeros((1, 4, 8), dtype=torch.bool)
    expected[:, :, 1:4] = True  # 10 px from the top is still in the first row of 16 px
    assert torch.equal(tokens, expected)


def test_where_the_best_take_has_the_subjects():
    """Take 1 is the better one; Bo is never found in it, and Ada goes to the right in its third frame."""
    report = make_report(["Ada", "Bo"], [(0.3, 0.3), (0.9, None)], swap_at=2)
    assert report["best"] == 1
    tracks = tracks_from_report(report, cast_of("Bo", "Ada"))
    assert tracks == {
        1: FaceTrack(tuple((t, (4.0 + 24 * (t >= 2), 12.0, 20.0 + 24 * (t >= 2), 28.0)) for t in range(4)))
    }
    with pytest.raises(ValueError, match=r"nobody of this cast \(Cy\)"):
        tracks_from_report(report, cast_of("Cy"))


def test_between_scored_frames_a_face_moves_straight():
    track = FaceTrack(((0, (0.0, 8.0, 16.0, 24.0)), (4, (64.0, 8.0, 80.0, 24.0)))).track(8, 16)
    assert track.box(2) == pytest.approx((16 / 128, -4 / 64, 64 / 128, 1.0))


# Regions that do not fit a video --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (MaskRegion(torch.ones((4, 2, 2), dtype=torch.bool)), "'Ada' has 4 frames, the video has 9; connect one mask"),
        (Track(((0, (-0.5, 0.0, 0.0, 1.0)),)), "'Ada' lies outside of the whole video"),
        (Track(((20, None), (30, (0.0, 0.0, 1.0, 1.0)))), "'Ada' lies outside of the whole video"),
        (FaceTrack(((9, (0.0, 0.0, 8.0, 8.0)),)), r"in frame 10 at 0, 0 px, .* \(64x48 px, 9 frames\)"),
        (FaceTrack(((0, (60.0, 0.0, 76.0, 16.0)),)), "in frame 1 at 60, 0 px, .* same size"),
        (FaceTrack(((0, (0.0, 44.0, 8.0, 56.0)),)), "in frame 1 at 0, 44 px"),
    ],
)
def test_regions_that_do_not_fit(region, message):
    with pytest.raises(ValueError, match=message):
        check_region(region, "Ada", frames=3, rows=6, columns=8)


@pytest.mark.parametrize(
    "region",
    [
        MaskRegion(torch.ones((9, 2, 2), dtype=torch.bool)),
        MaskRegion(torch.ones((1, 2, 2), dtype=torch.bool)),
        Track(((0, (-0.9, 0.0, -0.5, 1.0)), (8, (-0.3, 0.0, 0.1, 1.0)))),
        FaceTrack(((8, (56.0, 40.0, 70.0, 52.0)),)),
    ],
)
def test_regions_that_fit(region):
    check_region(region, "Ada", frames=3, rows=6, columns=8)
