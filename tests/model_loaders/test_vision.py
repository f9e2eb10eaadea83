"""Image encoders and the aesthetic predictor from tiny folders of the released layout, against plain forward passes."""

import json

import numpy as np
import pytest
import torch
import transformers

from idcrafter.rewards.aesthetic import normalise
from support import tiny_vision


@pytest.fixture(scope="module")
def vision(pack):
    return pack.submodule("model_loaders.vision")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    tiny_vision.write_dino(root / "dino")
    tiny_vision.write_dinov2(root / "dinov2")
    tiny_vision.write_clip(root / "clip")
    tiny_vision.write_head(root / "head.pth")
    return root


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(height, width, 3, generator=generator) for height, width in ((40, 64), (90, 50), (32, 32))]


def normalised(pixels, mean, std):
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize(("name", "kind"), [("dino", "ViTModel"), ("dinov2", "Dinov2Model")])
def test_embeddings_are_the_unit_class_tokens(vision, root, pictures, name, kind):
    encoder = vision.load_image_encoder(root / name)
    got = encoder.embed(pictures)
    processor = transformers.ViTImageProcessorPil(
        size={"shortest_edge": round(tiny_vision.SIDE * 256 / 224)}, resample=3, do_normalize=False
    )
    model = getattr(transformers, kind).from_pretrained(root / name).eval()
    for picture, embedding in zip(pictures, got, strict=True):
        image = (picture * 255).round().byte().numpy()
        resized = processor(image, return_tensors="pt")["pixel_values"][0]
        top, left = ((side - tiny_vision.SIDE) // 2 for side in resized.shape[1:])
        middle = resized[:, top : top + tiny_vision.SIDE, left : left + tiny_vision.SIDE]
        pixels = normalised(middle, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with torch.inference_mode():
            token = model(pixel_values=pixels[None]).last_hidden_state[0, 0]
        np.testing.assert_allclose(embedding, (token / token.norm()).numpy(), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    assert encoder.describe() == {"name": name, "licence": "apache-2.0"}


def test_one_picture_or_many_is_the_same(vision, root, pictures):
    encoder = vision.load_image_encoder(root / "dino")
    alone = np.concatenate([encoder.embed([picture]) for picture in pictures])
    np.testing.assert_allclose(encoder.embed(pictures), alone, atol=1e-5)


@pytest.mark.parametrize("safe", [False, True])
def test_ratings_are_clip_and_then_the_head(vision, root, pictures, safe):
    from safetensors.torch import save_file

    head = root / ("head.safetensors" if safe else "head.pth")
    if safe:
        save_file(tiny_vision.head_weights(), head)
    predictor = vision.load_aesthetic_predictor(root / "clip", head)
    got = predictor.rate(pictures)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": tiny_vision.SIDE}, crop_size={"height": tiny_vision.SIDE, "width": tiny_vision.SIDE}
    )
    model = transformers.CLIPModel.from_pretrained(root / "clip").eval()
    images = [(picture * 255).round().byte().numpy() for picture in pictures]
    with torch.inference_mode():
        pooled = model.vision_model(**processor(images, return_tensors="pt")).pooler_output
        x = model.visual_projection(pooled)
        x = x / x.norm(dim=-1, keepdim=True)
        for weight, bias in zip(*[iter(tiny_vision.head_weights().values())] * 2, strict=True):
            x = x @ weight.T + bias
    np.testing.assert_allclose(got, x[:, 0].numpy(), atol=2e-3)
    assert predictor.describe() == {"name": "clip", "licence": "mit", "head": head.name}
    assert np.all((normalise(got) >= 0) & (normalise(got) <= 1))


def test_nan_pixels_name_the_picture(vision, root, pictures):
    bad = pictures[1].clone()
    bad[0, 0, 0] = float("nan")
    for loaded in (vision.load_image_encoder(root / "dino").embed,
                   vision.load_aesthetic_predictor(root / "clip", root / "head.pth").rate):  # fmt: skip
        with pytest.raises(ValueError, match="Picture 2 holds NaN"):
            loaded([pictures[0], bad])


def test_folders_that_are_something_else(vision, root, tmp_path):
    with pytest.raises(ValueError, match="'clip' is a clip, but subject crops need DINO"):
        vision.load_image_encoder(root / "clip")
    with pytest.raises(ValueError, match="'dino' is a vit, but the aesthetic predictor needs openai/clip"):
        vision.load_aesthetic_predictor(root / "dino", root / "head.pth")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        vision.load_image_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        vision.load_image_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no model_type"):
        vision.load_image_encoder(tmp_path)


def test_weights_that_are_missing_or_not_there(vision, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_vision.write_dino(tmp_path / "dino")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights.pop("embeddings.cls_token")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors of a vit \(first: embeddings.cls_token\)"):
        vision.load_image_encoder(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="could not be loaded .* download it again"):
        vision.load_image_encoder(folder)


def test_code_in_a_folder_is_not_run(vision, tmp_path):
    folder = tiny_vision.write_dino(tmp_path / "dino")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit")
    assert vision.load_image_encoder(folder).embed([torch.zeros(8, 8, 3)]).shape == (1, tiny_vision.WIDTH)


def test_a_head_that_does_not_fit(vision, root, tmp_path):
    wide = tiny_vision.write_head(tmp_path / "wide.pth", 768)
    with pytest.raises(ValueError, match="'wide.pth' rates embeddings of 768 numbers, but 'clip' makes 24"):
        vision.load_aesthetic_predictor(root / "clip", wide)
    weights = tiny_vision.head_weights()
    weights.pop("layers.7.bias")
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="layers.7.bias"):
        vision.load_aesthetic_predictor(root / "clip", tmp_path / "short.pth")
