"""Ingredients' rule: a white first frame with the faces side by side."""

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_adapters import TinyAnalyzer


@pytest.fixture(scope="module")
def rule(pack):
    return pack.submodule("idcrafter.conditioning.ingredients")


@pytest.fixture
def cast_with_faces(pack, cast_of):
    def cast_with_faces(*photos):
        cast = cast_of(*photos, size=(64, 48))
        extract = pack.submodule("idcrafter.subjects.faces").extract_faces
        return cast.with_faces(extract(cast, TinyAnalyzer(), "error", "error"))

    return cast_with_faces


def crop(seed):
    return np.random.default_rng(seed).integers(0, 200, (512, 512, 3), np.uint8)


def test_two_faces_stand_as_in_the_release(rule):
    """Each 360 px of 720x480, from the left edge, 60 px below the upper one; white elsewhere."""
    crops = [crop(0), crop(1)]
    canvas = rule.white_canvas(crops, 720, 480)
    assert canvas.shape == (1, 480, 720, 3)
    pixels = (canvas[0] * 255).round().byte().numpy()
    for i, each in enumerate(crops):
        expected = np.asarray(Image.fromarray(each).resize((360, 360)))
        assert np.array_equal(pixels[60:420, 360 * i : 360 * (i + 1)], expected)
    assert (pixels[:60] == 255).all() and (pixels[420:] == 255).all()


@pytest.mark.parametrize(("count", "side", "left"), [(1, 360, 180), (3, 240, 0), (7, 102, 3)])
def test_other_numbers_of_faces_stand_in_the_middle(rule, count, side, left):
    pixels = rule.white_canvas([np.zeros((512, 512, 3), np.uint8)] * count, 720, 480)[0, ..., 0]
    rows, columns = torch.nonzero(pixels < 0.5, as_tuple=True)
    top = (480 - side) // 2
    assert (int(rows.min()), int(rows.max())) == (top, top + side - 1)
    assert (int(columns.min()), int(columns.max())) == (left, left + side * count - 1)


def test_the_canvas_is_the_first_frame_of_all_branches(rule, make_shot, cast_with_faces, stack):
    shot = make_shot(cast=cast_with_faces(2, 1))
    out = rule.condition(shot)
    assert out.references.shape == (1, 48, 64, 3) and [tuple(ref) for ref in out.used] == [(0, 0, True), (1, 0, True)]
    expected = stack.vae.encode(out.references)
    assert expected.shape == (1, 16, 1, 6, 8)
    for conditioning in (out.positive, out.negative_text, out.negative_images):
        assert torch.equal(conditioning[0][1]["concat_latent_image"], expected)
    assert out.latent["samples"].shape == (1, 16, 3, 6, 8) and out.trim == 0
    assert "concat_latent_image" not in shot.positive[0][1]


def test_the_network_gets_the_canvas_and_zeros(rule, make_shot, cast_with_faces, model_of):
    """As the release has it: the encoded canvas times the VAE's scale in the first latent frame, zeros behind it."""
    model = model_of("cogvideox-i2v")
    out = rule.condition(make_shot(cast=cast_with_faces(1, 1)))
    latent = out.positive[0][1]["concat_latent_image"].clone()
    got = model.model.concat_cond(
        noise=torch.zeros(1, 16, 3, 6, 8), device=torch.device("cpu"), concat_latent_image=latent.clone()
    )
    assert got.shape == (1, 16, 3, 6, 8) and not got[:, :, 1:].any()
    scale = model.model.latent_format.scale_factor
    torch.testing.assert_close(got[:, :, :1], latent * scale)


def test_everybody_needs_a_face(rule, pack, make_shot, cast_of, cast_with_faces):
    with pytest.raises(ValueError, match="Ingredients rule shows the faces; connect the cast"):
        rule.condition(make_shot(cast=cast_of(1)))
    cast = cast_with_faces(1, 1)
    faces = pack.submodule("idcrafter.subjects.faces").CastFaces(
        cast.faces.analyzer, (cast.faces.subjects[0], None), ()
    )
    with pytest.raises(ValueError, match="Subject 'S1' has no usable face"):
        rule.condition(make_shot(cast=cast.with_faces(faces)))
