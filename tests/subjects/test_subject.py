"""Subject and Cast: what they accept, what they refuse, and how they say it."""

import unicodedata

import pytest
import torch

from idcrafter.subjects.subject import MAX_NAME, make_cast, make_subject

PHOTO = torch.rand((1, 32, 24, 3), generator=torch.Generator().manual_seed(0))


def subject(name="Ada", kind="person", description="", images=PHOTO, mask=None):
    return make_subject(name, kind, description, images, mask)


def test_every_batch_row_is_a_photo():
    made = subject(images=torch.cat([PHOTO, PHOTO.flip(2)]))
    assert [tuple(photo.shape) for photo in made.photos] == [(32, 24, 3)] * 2
    assert torch.equal(made.photos[1], PHOTO[0].flip(1))
    assert made.masks == (None, None)


def test_inputs_are_not_changed_and_not_shared():
    images = (PHOTO * 3).clone()
    before = images.clone()
    made = subject(images=images)
    assert torch.equal(images, before)
    images.zero_()
    assert made.photos[0].max() == 1.0
    # A view would keep a whole batch of video frames alive for one photo.
    batch = PHOTO.repeat(8, 1, 1, 1)
    assert subject(images=batch).photos[0].untyped_storage().nbytes() == 32 * 24 * 3 * 4


def test_greyscale_becomes_rgb():
    made = subject(images=PHOTO[..., :1])
    assert made.photos[0].shape == (32, 24, 3)
    assert torch.equal(made.photos[0][..., 0], made.photos[0][..., 2])


def test_alpha_is_composited_on_white_and_becomes_the_mask():
    alpha = torch.zeros((1, 32, 24, 1))
    alpha[:, 8:24, 6:18] = 1.0
    made = subject(images=torch.cat([PHOTO, alpha], dim=-1))
    assert torch.equal(made.photos[0][0, 0], torch.ones(3))
    assert torch.equal(made.photos[0][16, 12], PHOTO[0, 16, 12])
    assert torch.equal(made.masks[0], alpha[0, ..., 0])


def test_a_given_mask_wins_over_alpha_and_an_opaque_alpha_is_no_mask():
    opaque = torch.cat([PHOTO, torch.ones((1, 32, 24, 1))], dim=-1)
    assert subject(images=opaque).masks == (None,)
    mask = torch.zeros((1, 32, 24))
    mask[:, :16] = 1.0
    half = opaque.clone()
    half[..., 3] = 0.6
    assert torch.equal(subject(images=half, mask=mask).masks[0], mask[0])


def test_one_mask_serves_all_photos():
    mask = torch.ones((32, 24))
    made = subject(images=torch.cat([PHOTO, PHOTO]), mask=mask)
    assert all(torch.equal(m, mask) for m in made.masks)


def test_the_black_stub_of_load_image_is_no_mask():
    assert subject(mask=torch.zeros((1, 64, 64))).masks == (None,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.empty((0, 32, 24, 3))}, "'Ada' got an empty image batch"),
        ({"images": torch.rand((1, 1, 1, 3))}, "Photo 1 of subject 'Ada' is 1x1 px; each side must have at least 16"),
        ({"images": torch.empty(1).expand(1, 16384, 16384, 3)}, "16384x16384 px; resize it to at most 8192"),
        ({"images": torch.cat([PHOTO, PHOTO * float("nan")])}, "Photo 2 of subject 'Ada' holds NaN"),
        ({"images": PHOTO / 0.0}, "Photo 1 of subject 'Ada' holds NaN or infinite"),
        ({"images": torch.rand((1, 32, 24, 2))}, "2 channels"),
        ({"images": PHOTO[0]}, "shape"),
        ({"kind": "robot"}, "kind 'robot'; choose one of person, animal, object"),
        ({"name": "  "}, "needs a name"),
        ({"name": "..."}, "needs a name"),
        ({"name": "A" * (MAX_NAME + 1)}, "at most 64"),
        ({"mask": torch.ones((1, 30, 24))}, "24x30 px, its photos are 24x32"),
        ({"mask": torch.ones((3, 32, 24))}, "1 photos but a mask of shape"),
        ({"mask": torch.zeros((1, 32, 24))}, "mask of photo 1 of subject 'Ada' is empty"),
        ({"mask": torch.full((1, 32, 24), float("nan"))}, "mask of subject 'Ada' holds NaN"),
    ],
)
def test_bad_input_is_refused_with_its_place(change, message):
    with pytest.raises(ValueError) as error:
        subject(**change)
    assert message in str(error.value)


def test_names_keep_their_script_and_emoji_in_nfc():
    decomposed = unicodedata.normalize("NFD", "Zo\u00eb \u9673\u5c0f\u660e")
    assert subject(name=f"  {decomposed}\n").name == "Zo\u00eb \u9673\u5c0f\u660e"
    rocket = "\U0001f469\u200d\U0001f680"
    assert subject(name=rocket).name == rocket
    assert subject(name="Bo\tthe  dog").name == "Bo the dog"


def test_a_cast_keeps_the_order():
    names = ["Cy", "Ada", "Bo"]
    assert [s.name for s in make_cast([subject(name=n) for n in names]).subjects] == names


@pytest.mark.parametrize("twin", ["ada", "ADA", " Ada "])
def test_duplicate_names_are_refused_with_both_places(twin):
    with pytest.raises(ValueError, match=rf"Subjects 1 \('Ada'\) and 3 \('{twin.strip()}'\) have the same name"):
        make_cast([subject(), subject(name="Bo"), subject(name=twin)])


def test_duplicate_names_are_found_across_unicode_forms():
    composed, decomposed = "Zo\u00eb", "ZO\u00cb"
    with pytest.raises(ValueError, match="same name"):
        make_cast([subject(name=composed), subject(name=unicodedata.normalize("NFD", decomposed))])


def test_the_size_of_a_cast_is_limited():
    with pytest.raises(ValueError, match="empty"):
        make_cast([])
    make_cast([subject(name=f"S{i}") for i in range(8)])
    with pytest.raises(ValueError, match="9 subjects; at most 8"):
        make_cast([subject(name=f"S{i}") for i in range(9)])


def test_a_cast_with_faces_is_another_cast():
    cast = make_cast([subject()])
    faces = object()
    assert cast.with_faces(faces).faces is faces
    assert cast.faces is None
