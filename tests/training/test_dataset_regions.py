"""Whose a token is: exact shares of cells, and labels that do not depend on the order of subjects."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.training.dataset import NOBODY, TrainingClip, TrainingSubject, token_owners
from idcrafter.training.dataset.mask_files import save_masks
from idcrafter.training.dataset.regions import box_cover, owners, person_cover, subject_cover, view

FRAMES = 9
WIDTH, HEIGHT = 96, 64


def clip_of(*subjects, width=WIDTH, height=HEIGHT, length=FRAMES):
    made = tuple(TrainingSubject(f"S{i}", (), **where) for i, where in enumerate(subjects))
    return TrainingClip(1, Path("clip.mp4"), "", made, length, width, height, 8.0, "none")


def boxes(count=FRAMES):
    """Boxes of `count` frames, some None, in fractions of the frame and a little beyond it."""
    low, size = st.floats(-0.2, 0.9), st.floats(0.05, 0.8)
    box = st.tuples(low, low, size, size).map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]))
    return st.lists(st.none() | box, min_size=count, max_size=count).map(tuple)


@settings(max_examples=25, deadline=None)
@given(box=boxes(1).filter(lambda b: b[0] is not None), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_shares_are_the_means_of_a_finely_drawn_region(box, rows, columns):
    """A grid of 40 x 40 times as many cells, averaged: what is left is the error of the fine grid's own cells."""
    for cover in (box_cover, person_cover):
        shares = cover(box[0], rows, columns)
        fine = cover(box[0], 40 * rows, 40 * columns)
        assert np.allclose(shares, fine.reshape(rows, 40, columns, 40).mean((1, 3)), atol=1e-9)
        assert shares.min() >= -1e-12 and shares.max() <= 1 + 1e-9
    # and the fine grid is the box itself, drawn by its cells' middles
    left, top, right, bottom = box[0]
    x, y = (np.arange(40 * columns) + 0.5) / (40 * columns), (np.arange(40 * rows) + 0.5) / (40 * rows)
    drawn = np.outer((top < y) & (y < bottom), (left < x) & (x < right))
    assert np.abs(box_cover(box[0], 40 * rows, 40 * columns) - drawn).mean() < 0.06


def test_a_person_is_a_head_and_a_wider_body_below_it():
    face = (0.4, 0.2, 0.6, 0.4)
    cover = person_cover(face, 100, 100)
    assert cover[30, 50] == pytest.approx(1.0) and cover[60, 50] == pytest.approx(1.0)  # face, body
    assert cover[60, 32] == pytest.approx(1.0) and cover[30, 32] == pytest.approx(0.0)  # shoulders are wider
    assert cover[40, 50] == pytest.approx(1.0)  # no gap at the chin
    assert cover[95, 50] == 0 and cover[8, 50] == 0  # far below and above
    edge = cover[60, 20:40]
    assert (np.diff(edge) >= -1e-9).all() and ((edge > 0.1) & (edge < 0.9)).any()  # soft


@settings(max_examples=25, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_subjects_only_renumbers_labels(tracks, random, faces):
    key = "faces" if faces else "track"
    labels = token_owners(clip_of(*({key: track} for track in tracks)), WIDTH, HEIGHT)
    assert labels.shape == (3, 4, 6) and labels.dtype == torch.int64
    assert labels.min() >= NOBODY and labels.max() < len(tracks)
    order = list(range(len(tracks)))
    random.shuffle(order)
    shuffled = token_owners(clip_of(*({key: tracks[i]} for i in order)), WIDTH, HEIGHT)
    back = torch.tensor([*order, NOBODY])
    assert torch.equal(back[shuffled], labels)


@settings(max_examples=25, deadline=None)
@given(track=boxes())
def test_one_more_subject_takes_nobody_elses_token(track):
    """Somebody who comes may make tokens nobody's, and never gives a token to a third."""
    still = ((0.1, 0.1, 0.45, 0.9),) * FRAMES
    alone = token_owners(clip_of({"track": still}), WIDTH, HEIGHT)
    both = token_owners(clip_of({"track": still}, {"track": track}), WIDTH, HEIGHT)
    assert set(both[alone == 0].tolist()) <= {0, NOBODY}
    assert (alone[both == 0] == 0).all()
    twins = token_owners(clip_of({"track": track}, {"track": track}), WIDTH, HEIGHT)
    assert (twins == NOBODY).all()


def test_a_token_belongs_to_who_covers_more_than_half_of_it():
    left = ((0.0, 0.0, 0.75 * 16 / WIDTH, 1.0),) * FRAMES  # three quarters of the first token, nothing of the next
    right = ((0.75 * 16 / WIDTH, 0.0, 1.0, 1.0),) * FRAMES
    labels = token_owners(clip_of({"track": left}, {"track": right}), WIDTH, HEIGHT)
    assert (labels[..., 0] == 0).all() and (labels[..., 1:] == 1).all()
    half = ((0.0, 0.0, 0.5 * 16 / WIDTH, 1.0),) * FRAMES
    assert (token_owners(clip_of({"track": half}), WIDTH, HEIGHT) == NOBODY).all()


def test_a_latent_frame_is_the_mean_of_its_frames():
    """Latent frame 0 is frame 0 alone, 1 is frames 1 to 4, 2 is frames 5 to 8."""
    whole = (0.0, 0.0, 1.0, 1.0)
    for seen, latents in (((0,), [0]), ((1, 2, 3), [1]), ((1, 2), []), ((4, 5, 6, 7), [2]), ((5, 6, 8), [2])):
        track = tuple(whole if t in seen else None for t in range(FRAMES))
        labels = token_owners(clip_of({"track": track}), WIDTH, HEIGHT)
        assert [t for t in range(3) if (labels[t] == 0).all()] == latents, seen
    part = tuple(whole if t >= 4 else None for t in range(FRAMES))
    assert (token_owners(clip_of({"track": part}), WIDTH, HEIGHT, 4, 5) == 0).all()


def test_masks_come_before_tracks_and_tracks_before_faces(tmp_path):
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    masks[:, :, 48:] = 255
    save_masks(tmp_path / "masks.npz", masks)
    left, right = ((0.0, 0.0, 0.5, 1.0),) * FRAMES, ((0.5, 0.0, 1.0, 1.0),) * FRAMES
    by_mask = token_owners(clip_of({"masks": tmp_path / "masks.npz", "track": left, "faces": left}), WIDTH, HEIGHT)
    assert torch.equal(by_mask, token_owners(clip_of({"track": right, "faces": left}), WIDTH, HEIGHT))
    assert (by_mask[..., 3:] == 0).all() and (by_mask[..., :3] == NOBODY).all()


def test_labels_follow_the_cut_of_a_frame_with_another_aspect(tmp_path):
    """A wide clip is cut at both sides, so its left third is outside and its middle fills the picture."""
    thirds = [((k / 3, 0.0, (k + 1) / 3, 1.0),) * FRAMES for k in range(3)]
    wide = clip_of(*({"track": track} for track in thirds), width=288, height=96)
    labels = token_owners(wide, 96, 96)
    assert view(288, 96, 96, 96) == (96, 0, 192, 96)
    assert (labels == 1).all()
    masks = np.zeros((FRAMES, 96, 288), np.uint8)
    masks[:, :48, 96:192] = 255
    save_masks(tmp_path / "m.npz", masks)
    labels = token_owners(clip_of({"masks": tmp_path / "m.npz"}, width=288, height=96), 96, 96)
    assert (labels[:, :3] == 0).all() and (labels[:, 3:] == NOBODY).all()


def test_patches_at_an_edge_that_are_not_whole():
    labels = token_owners(clip_of({"track": ((0.0, 0.0, 1.0, 1.0),) * FRAMES}, width=104, height=72), 104, 72)
    assert labels.shape == (3, 5, 7) and (labels == 0).all()


def test_a_clip_without_places_has_no_labels():
    track = ((0.0, 0.0, 1.0, 1.0),) * FRAMES
    labels = token_owners(clip_of({"track": track}, {}), WIDTH, HEIGHT)
    assert labels.shape == (3, 4, 6) and (labels == NOBODY).all()


@pytest.mark.parametrize("start, frames", [(0, 8), (1, 9), (-1, 5), (0, 0), (9, None)])
def test_parts_that_cannot_be_encoded_are_refused(start, frames):
    with pytest.raises(ValueError, match=r"take 4 n \+ 1 frames"):
        token_owners(clip_of({"track": ((0, 0, 1, 1),) * FRAMES}), WIDTH, HEIGHT, start, frames)


def test_owners_of_shares():
    cover = torch.tensor([[0.6, 0.4, 0.6, 0.0], [0.3, 0.5, 0.7, 0.9]])
    assert owners(cover).tolist() == [0, NOBODY, NOBODY, 1]


def test_cover_of_chosen_frames():
    track = tuple((0.0, 0.0, 1.0, 1.0) if t % 2 else None for t in range(FRAMES))
    cover = subject_cover(clip_of({"track": track}), WIDTH, HEIGHT, 2, 3, [1, 2, 7])
    assert cover[0].mean((1, 2)).tolist() == [1.0, 0.0, 1.0]
