"""Cast to Video as a node, with real photographs through core's own Load Image."""

import logging

import folder_paths
import pytest
import skimage.data
import torch
from PIL import Image


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The same astronaut, as users bring her: plain, on her side with an EXIF flag, 12 MP, greyscale, cut out."""
    folder = tmp_path_factory.mktemp("input")
    photo = Image.fromarray(skimage.data.astronaut())
    photo.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; viewers rotate by 90 degrees
    photo.crop((0, 0, 400, 512)).rotate(90, expand=True).save(folder / "exif.jpg", exif=exif, quality=95)
    photo.resize((4000, 3000), Image.Resampling.LANCZOS).save(folder / "12mp.jpg", quality=90)
    photo.convert("L").save(folder / "grey.png")
    cut = photo.convert("RGBA")
    alpha = Image.new("L", photo.size, 0)
    alpha.paste(255, (120, 0, 340, 300))
    cut.putalpha(alpha)
    cut.save(folder / "alpha.png")
    return folder


@pytest.fixture
def reference(pack, photographs, stack, monkeypatch):
    """The reference that Cast to Video makes of one photograph, [H, W, 3], and the conditioning."""
    monkeypatch.setattr(folder_paths, "input_directory", str(photographs))

    def reference(name, width=192, height=128):
        image, mask = pack.execute("LoadImage", image=name)
        if name == "alpha.png":
            mask = pack.execute("InvertMask", mask=mask)[0]
        subject = pack.execute("IDCrafterSubject", name="Ada", kind="person", description="", images=image, mask=mask)[
            0
        ]
        cast = pack.execute("IDCrafterCast", subjects={"subject0": subject})[0]
        out = pack.execute(
            "IDCrafterCastToVideo", positive=stack.encode("a"), negative=stack.encode(""), vae=stack.vae,
            cast=cast, width=width, height=height, length=5, rule="auto",
        )  # fmt: skip
        assert out[0][0][1]["time_dim_concat"].shape == (1, 16, 1, height // 8, width // 8)
        assert out[3]["samples"].shape == (1, 16, 2, height // 8, width // 8)
        return out[4][0]

    return reference


def borders(frame):
    """Columns of white at the left and at the right."""
    white = (frame > 0.995).all(dim=2).all(dim=0).tolist()
    return white.index(False), white[::-1].index(False)


def test_a_square_photograph_is_centred_on_white(reference):
    frame = reference("plain.png")
    assert frame.shape == (128, 192, 3) and borders(frame) == (32, 32)
    photo = torch.from_numpy(skimage.data.astronaut()).float() / 255
    # Each pixel is the mean of about 4x4; the face is where it was, neither squeezed nor cropped.
    blocks = photo.reshape(128, 4, 128, 4, 3).mean(dim=(1, 3))
    assert (frame[:, 32:160] - blocks).abs().mean() < 0.02


def test_an_exif_rotated_photograph_stands_upright(reference):
    frame = reference("exif.jpg")
    assert borders(frame) == (46, 46)  # 400x512 -> 100x128
    plain = reference("plain.png")
    assert (frame[:, 46:146] - plain[:, 32:132]).abs().mean() < 0.02


def test_twelve_megapixels(reference):
    frame = reference("12mp.jpg")
    assert borders(frame) == (10, 11)  # 4:3 -> 171x128
    plain = torch.nn.functional.interpolate(
        reference("plain.png")[:, 32:160].movedim(-1, 0)[None], size=(128, 171), mode="bilinear"
    )[0].movedim(0, -1)
    assert (frame[:, 10:181] - plain).abs().mean() < 0.03


def test_greyscale(reference):
    frame = reference("grey.png")
    assert torch.equal(frame[..., 0], frame[..., 2])
    assert frame[:, 32:160].std() > 0.2


def test_a_cut_out_subject_fills_the_frame(reference):
    frame = reference("alpha.png")
    # 220x300 px plus a margin of 18 px on the three sides where there is room: 256x318 -> 103x128.
    left, right = borders(frame)
    assert 48 <= left <= 54 and 48 <= right <= 54
    assert (frame[-4:] > 0.99).all() and (frame[2, 80:110] < 0.99).any()


def test_what_is_left_out_is_said(pack, stack, caplog):
    # The fourth photo is almost the first one.
    images = torch.rand((5, 32, 32, 3))
    images[3] = images[0] * 0.99
    subject = pack.execute("IDCrafterSubject", name="Ada", kind="person", description="", images=images)[0]
    cast = pack.execute("IDCrafterCast", subjects={"subject0": subject})[0]
    with caplog.at_level(logging.INFO):
        out = pack.execute(
            "IDCrafterCastToVideo", positive=stack.encode("a"), negative=stack.encode(""), vae=stack.vae,
            cast=cast, width=32, height=32, length=1, rule="phantom",
        )  # fmt: skip
    assert out[4].shape[0] == 4
    assert "References by the Phantom rule: photo 1 of subject 'Ada', photo 2" in caplog.text
    assert "takes 4 references; left out: photo 4 of subject 'Ada'" in caplog.text


def condition(pack, stack, cast, **inputs):
    return pack.execute(
        "IDCrafterCastToVideo", positive=stack.encode("a"), negative=stack.encode(""), vae=stack.vae, cast=cast,
        width=32, height=32, length=5, **inputs,
    )  # fmt: skip


def test_without_a_model_none_comes_out(pack, stack, cast):
    """Whoever is wired to that output hears why; the other outputs are there."""
    from comfy_execution.graph_utils import ExecutionBlocker

    out = condition(pack, stack, cast)
    assert isinstance(out[6], ExecutionBlocker) and "Connect a MODEL" in out[6].message
    assert out[5] == 0 and out[0][0][1]["time_dim_concat"].shape[2] == 2


def test_the_model_chooses_the_rule_and_comes_out(pack, stack, cast):
    out = condition(pack, stack, cast, model=stack.model)
    assert out[6] is stack.model and "time_dim_concat" in out[0][0][1]
    out = condition(pack, stack, cast, model=stack.model, rule="refalign")
    assert (
        out[6] is not stack.model
        and ("double_block", 0) in (out[6].model_options["transformer_options"]["patches_replace"]["dit"])
    )


def test_masks_can_be_left_alone(pack, stack):
    image, mask = torch.zeros((1, 32, 32, 3)), torch.zeros((1, 32, 32))
    mask[:, 8:24, 8:24] = 1.0
    subject = pack.execute("IDCrafterSubject", name="Ada", kind="person", description="", images=image, mask=mask)[0]
    cast = pack.execute("IDCrafterCast", subjects={"subject0": subject})[0]
    assert condition(pack, stack, cast)[4][0, 0].min() > 0.99
    assert not condition(pack, stack, cast, cut_out=False)[4].any()


def test_photos_and_framing_reach_the_references(pack, stack):
    subject = pack.execute(
        "IDCrafterSubject", name="Ada", kind="person", description="", images=torch.rand((3, 32, 32, 3))
    )[0]
    cast = pack.execute("IDCrafterCast", subjects={"subject0": subject})[0]
    assert condition(pack, stack, cast)[4].shape[0] == 3
    assert condition(pack, stack, cast, photos=2)[4].shape[0] == 2
    with pytest.raises(ValueError, match="Extract Faces"):
        condition(pack, stack, cast, framing="faces")
