"""The crop, the embedding and the hidden maps that an identity adapter gets of a face."""

import cv2
import numpy as np
import pytest
import torch

from idcrafter.subjects import face_features as lib
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.tiny_adapters import TinyAnalyzer, TinyRecogniser


def picture(height=96, width=80, seed=0):
    """Smooth, so that interpolation says little."""
    rows = np.linspace(0, 3, height)[:, None] + seed
    columns = np.linspace(0, 4, width)[None]
    planes = [np.sin(rows + columns * k) * 0.5 + 0.5 for k in (0.5, 1.0, -0.7)]
    return torch.from_numpy(np.stack(planes, -1).astype(np.float32))


def test_the_landmarks_come_to_the_template():
    marks = (lib.CROP_TEMPLATE - 256) @ np.array([[0, 1], [-1, 0]]) * 0.1 + (40, 48)
    image = torch.zeros(96, 80, 3)
    for number, (x, y) in enumerate(marks):
        image[round(float(y)) - 1 : round(float(y)) + 2, round(float(x)) - 1 : round(float(x)) + 2] = (number + 1) / 5
    crop = lib.align_face(image, marks)
    assert crop.shape == (512, 512, 3) and crop.dtype == np.uint8
    for number, (x, y) in enumerate(lib.CROP_TEMPLATE):
        assert abs(int(crop[round(float(y)), round(float(x)), 0]) - 51 * (number + 1)) <= 26


def test_equals_the_reference_formula():
    """facexlib: a robust similarity to its template, bilinear, grey where the photo ends."""
    photo = picture()
    marks = lib.CROP_TEMPLATE * 0.2 - (30, 20) + np.array([[1, 0], [0, 2], [-1, 0], [0, 0], [1, 1]])
    matrix = cv2.estimateAffinePartial2D(marks.astype(np.float32), lib.CROP_TEMPLATE, method=cv2.LMEDS)[0]
    bgr = (photo.numpy()[..., ::-1] * 255).round().astype(np.uint8)
    grey = (135, 133, 132)
    expected = cv2.warpAffine(bgr, matrix, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=grey)
    crop = lib.align_face(photo, marks)
    assert np.array_equal(crop, expected[..., ::-1])
    assert (crop[0, 0] == grey[::-1]).all()


def test_large_photos_are_made_smaller_first():
    small, large = picture(256, 192), picture(2048, 1536)
    marks = lib.CROP_TEMPLATE * 0.3 + (20, 40)
    difference = np.abs(lib.align_face(small, marks).astype(int) - lib.align_face(large, marks * 8 + 3.5))
    assert difference.mean() < 1.5


def test_landmarks_in_one_place_are_refused():
    with pytest.raises(ValueError, match="lie in one place"):
        lib.align_face(picture(), np.full((5, 2), 7.0))


def test_the_embedding_is_of_the_crop_and_not_normalised():
    crop = lib.align_face(picture(), lib.CROP_TEMPLATE * 0.15)
    recogniser = TinyRecogniser()
    found = lib.recogniser_embeddings([crop, crop], recogniser)
    assert np.array_equal(recogniser.seen[0], cv2.resize(crop, (16, 16))[..., ::-1])  # BGR
    assert torch.equal(found[0], found[1]) and abs(float(found[0].norm()) - 1) > 0.1


def test_clip_pixels():
    white, black = np.full((512, 512, 3), 255, np.uint8), np.zeros((512, 512, 3), np.uint8)
    pixels = lib.clip_pixels([white, black], 336)
    assert pixels.shape == (2, 3, 336, 336)
    for channel, (mean, std) in enumerate(zip(lib.CLIP_MEAN, lib.CLIP_STD, strict=True)):
        torch.testing.assert_close(pixels[0, channel], torch.full((336, 336), (1 - mean) / std))
        torch.testing.assert_close(pixels[1, channel], torch.full((336, 336), -mean / std))


def test_features_through_a_vae():
    crop = lib.align_face(picture(), lib.CROP_TEMPLATE * 0.15)

    def encode(pixels):
        assert pixels.shape == (1, 32, 32, 3) and 0 <= pixels.min() and pixels.max() <= 1
        patches = pixels.unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4))
        return patches.movedim(-1, 1).unsqueeze(2)

    features = lib.face_features([crop, crop[:, ::-1].copy()], TinyRecogniser(), lib.vae_look(encode, 32))
    assert features.identity.shape == (2, 12) and features.maps[0].shape == (2, 16, 3)
    assert torch.equal(features.maps[0][0], encode(torch.from_numpy(
        cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA))[None] / 255).flatten(2)[0].T)  # fmt: skip
    assert not torch.allclose(features.maps[0][0], features.maps[0][1])


def cast_of(photos, objects=()):
    return make_cast(
        [
            make_subject(
                f"S{i}",
                "object" if i in objects else "person",
                "",
                torch.stack([picture(seed=i + k / 3) for k in range(count)]),
            )  # fmt: skip
            for i, count in enumerate(photos)
        ]
    )


def test_crops_of_a_cast_and_their_owners():
    cast = cast_of((2, 1, 1), objects=(1,))
    with pytest.raises(ValueError, match="no faces yet"):
        lib.cast_crops(cast)
    cast = cast.with_faces(extract_faces(cast, TinyAnalyzer(), "error", "error"))
    seen = []
    crops, owners = lib.cast_crops(cast, on_photo=lambda: seen.append(1))
    assert owners == [0, 0, 2] and len(seen) == 3
    face = cast.faces.subjects[2].faces[0]
    assert np.array_equal(crops[2], lib.align_face(cast.subjects[2].photos[0], face.landmarks))
    nobody = cast_of((1,), objects=(0,))
    with pytest.raises(ValueError, match="No subject of the cast has a usable face"):
        lib.cast_crops(nobody.with_faces(extract_faces(nobody, TinyAnalyzer(), "error", "error")))


def test_values_by_subject():
    values = torch.arange(1, 5).float()[:, None].repeat(1, 3)
    out, exist = lib.by_subject(values, [2, 0, 2, 2], 4)
    assert exist.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert out[..., 0].tolist() == [[2, 0, 0], [0, 0, 0], [1, 3, 4], [0, 0, 0]] and out.shape == (4, 3, 3)
