"""Which face of a photo belongs to the subject, and what looks wrong with a cast."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.subjects.faces import (
    ALIKE_COSINE,
    ARCFACE_TEMPLATE,
    DISAGREE_COSINE,
    aligned_crop,
    extract_faces,
    is_finite,
    similarity_transform,
    to_uint8,
)
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


def photo(*faces, **kwargs):
    image = blank()
    for face in faces:
        paint(image, *face, **kwargs)
    return image


def subject(name, *photos, kind="person", mask=None):
    return make_subject(name, kind, "", torch.stack(photos), mask)


def extract(*subjects, no_face="error", several="error", **kwargs):
    return extract_faces(make_cast(subjects), PaintedFaceAnalyzer(), no_face, several, **kwargs)


def test_one_face_a_photo_and_their_unit_mean():
    faces = extract(subject("Ada", photo((1, 10)), photo((1, 40, 0.6))), subject("Bo", photo((2, 10))))
    ada, bo = faces.subjects
    assert [face.box.tolist() for face in ada.faces] == [[10, 12, 26, 28], [40, 12, 56, 28]]
    assert np.linalg.norm(ada.mean) == pytest.approx(1.0, abs=1e-6)
    # The mean lies between the photos: nearer to both than they are to each other.
    cosines = [float(ada.mean @ face.embedding) for face in ada.faces]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-6) and cosines[0] > 0.6
    assert float(ada.mean @ bo.mean) == 0.0
    assert faces.warnings == ()


def test_no_face_names_photo_and_subject():
    with pytest.raises(ValueError, match=r"photo 2 of subject 'Ada': no face found\. .* set no_face to skip"):
        extract(subject("Ada", photo((1, 10)), photo()))


def test_no_face_skipped():
    faces = extract(subject("Ada", photo((1, 10)), photo()), no_face="skip")
    assert faces.subjects[0].faces[1] is None
    assert faces.warnings == ("photo 2 of subject 'Ada': no face found, photo left out.",)


def test_person_without_any_face_is_not_scored():
    faces = extract(subject("Ada", photo()), subject("Bo", photo((2, 10))), no_face="skip")
    assert faces.subjects[0] is None and faces.subjects[1] is not None
    assert "person 'Ada' has no usable face" in faces.warnings[-1]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_animals_need_no_face_and_objects_are_not_looked_at(policy):
    analyzer = PaintedFaceAnalyzer()
    cast = make_cast([subject("Rex", photo(), kind="animal"), subject("lamp", photo((1, 5)), kind="object")])
    faces = extract_faces(cast, analyzer, policy, "error")
    assert faces.subjects == (None, None) and analyzer.calls == 1
    assert len(faces.warnings) == 1 and "animal 'Rex'" in faces.warnings[0]


def test_animal_with_a_face_is_used():
    assert extract(subject("Rex", photo((3, 10)), kind="animal")).subjects[0] is not None


def test_several_faces_is_an_error():
    with pytest.raises(ValueError, match=r"photo 1 of subject 'Ada': 2 faces found\. Crop .* largest or skip"):
        extract(subject("Ada", photo((1, 10), (2, 50))))


def test_several_faces_largest():
    image = paint(paint(blank(), 1, 5, size=12), 2, 50, size=20)
    faces = extract(subject("Ada", image), several="largest")
    assert faces.subjects[0].faces[0].box.tolist() == [50, 12, 70, 32]
    assert faces.warnings == ("photo 1 of subject 'Ada': 2 faces found, the largest one is used.",)


def test_several_faces_skip():
    faces = extract(subject("Ada", photo((1, 10), (2, 50)), photo((1, 10))), several="skip")
    assert faces.subjects[0].faces[0] is None and faces.subjects[0].faces[1] is not None
    assert faces.warnings == ("photo 1 of subject 'Ada': 2 faces found, photo left out.",)


def test_mask_chooses_the_face():
    mask = torch.zeros(48, 96)
    mask[:, 48:] = 1.0
    (ada,) = extract(subject("Ada", photo((1, 10), (2, 60)), mask=mask)).subjects
    assert ada.faces[0].box[0] == 60


def test_mask_without_a_face():
    mask = torch.zeros(48, 96)
    mask[:, 40:50] = 1.0
    with pytest.raises(ValueError, match="photo 1 of subject 'Ada': no face found inside its mask"):
        extract(subject("Ada", photo((1, 10)), mask=mask))


def test_lookalikes_are_named():
    near = extract(subject("Ada", photo((1, 10, 1.0))), subject("Bo", photo((1, 10, 0.4)))).warnings
    assert len(near) == 1 and "subjects 'Ada' and 'Bo' look alike (similarity 0.40" in near[0]
    far = ALIKE_COSINE - 0.01
    assert extract(subject("Ada", photo((1, 10, 1.0))), subject("Bo", photo((1, 10, far)))).warnings == ()


def test_the_odd_photo_out_is_named():
    faces = extract(subject("Ada", photo((1, 10)), photo((2, 10)), photo((1, 10, 0.9))))
    assert len(faces.warnings) == 1
    assert "photo 2 of subject 'Ada' does not resemble the other photos" in faces.warnings[0]


def test_photos_that_all_disagree():
    low = DISAGREE_COSINE - 0.01
    (warning,) = extract(subject("Ada", photo((1, 10)), photo((1, 10, low)))).warnings
    assert "the photos of subject 'Ada' do not resemble each other (best similarity 0.27" in warning
    assert extract(subject("Ada", photo((1, 10)), photo((1, 10, low + 0.02)))).warnings == ()


def test_unknown_policy():
    with pytest.raises(ValueError, match="no_face is one of error, skip"):
        extract(subject("Ada", photo((1, 10))), no_face="ignore")


def test_progress_is_told_of_every_photo():
    told = []
    extract(
        subject("Ada", photo((1, 10)), photo()),
        subject("lamp", photo(), kind="object"),
        no_face="skip",
        on_photo=lambda: told.append(1),
    )
    assert len(told) == 2


@settings(deadline=None)
@given(
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.05, 20),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_similarity_transform_recovers_a_known_one(angle, scale, shift):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    known = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    moved = ARCFACE_TEMPLATE @ known[:, :2].T + known[:, 2]
    found = similarity_transform(ARCFACE_TEMPLATE, moved)
    np.testing.assert_allclose(found, known, atol=1e-3 * max(scale, 1))


def test_similarity_transform_equals_scikit_image():
    from skimage.transform import SimilarityTransform

    marks = np.array([[172, 112], [245, 118], [220, 138], [205, 160], [242, 158]], np.float32)
    theirs = SimilarityTransform.from_estimate(marks, ARCFACE_TEMPLATE).params[:2]
    np.testing.assert_allclose(similarity_transform(marks, ARCFACE_TEMPLATE), theirs, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 7.3])
def test_aligned_crop_puts_the_landmarks_on_the_template(scale):
    # A soft dot at each landmark must end up at the template's points, whatever the photo's size.
    marks = ARCFACE_TEMPLATE * scale + 20
    side = int(112 * scale) + 40
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.zeros(side, side, 3)
    for x, y in marks:
        distance = (columns - float(x)) ** 2 + (rows - float(y)) ** 2
        image += torch.exp(-distance / (2 * (2.5 * scale) ** 2)).unsqueeze(-1)
    crop = aligned_crop(image, marks)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
    for x, y in ARCFACE_TEMPLATE:
        x1, y1 = round(float(x)) - 8, round(float(y)) - 8
        window = crop[y1 : y1 + 17, x1 : x1 + 17, 0].astype(float)
        mass = window.sum()
        centre = [(window.sum(axis) * np.arange(17)).sum() / mass for axis in (0, 1)]
        np.testing.assert_allclose(centre, [float(x) - x1, float(y) - y1], atol=0.35)


def test_aligned_crop_equals_insightface():
    import cv2

    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (160, 160, 3)).astype(np.uint8), (0, 0), 3)
    marks = (ARCFACE_TEMPLATE @ np.array([[0.9, 0.2], [-0.2, 0.9]]) + 25).astype(np.float32)
    matrix = similarity_transform(marks, ARCFACE_TEMPLATE)
    theirs = cv2.warpAffine(noise, matrix, (112, 112), borderValue=0.0)
    ours = aligned_crop(torch.from_numpy(noise.astype(np.float32) / 255), marks)
    assert np.abs(ours[4:-4, 4:-4].astype(int) - theirs[4:-4, 4:-4]).max() <= 3


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-0.5, 1.5, width=32), min_size=3, max_size=48))
def test_to_uint8_rounds_and_clips_as_torch_does(values):
    image = torch.tensor(values[: len(values) // 3 * 3]).reshape(1, -1, 3)
    kept = image.clone()
    expected = image.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(to_uint8(image), expected)
    assert torch.equal(image, kept)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_to_uint8_of_other_numbers(kind):
    assert to_uint8(torch.full((2, 2, 3), 0.5, dtype=kind, requires_grad=True)).tolist() == [[[128] * 3] * 2] * 2


@pytest.mark.filterwarnings("error")
def test_is_finite():
    image = torch.full((4, 5, 3), 3e38)
    assert is_finite(image)  # though the sum is not
    assert is_finite(torch.zeros(1, 1, 3))
    for bad in (float("nan"), float("inf"), float("-inf")):
        image[2, 3, 1] = bad
        assert not is_finite(image)
    image[0, 0, 0] = float("inf")
    assert not is_finite(image)
