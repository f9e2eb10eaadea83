"""A VLM's Yes, from a tiny Qwen2.5-VL of the released layout, against a forward pass on inputs built by hand."""

import json
import shutil

import pytest
import torch
import transformers

from idcrafter.rewards.judge import prepare_photo, to_patches
from support import tiny_judge, tiny_vision

QUESTION = "Is it real?"


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.vlm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vision.write_vlm(tmp_path_factory.mktemp("rewards") / "qwen")


@pytest.fixture(scope="module")
def vlm(loader, folder):
    return loader.load_vlm(folder)


@pytest.fixture(scope="module")
def pictures():
    return list(tiny_judge.clip(2, 56, 84))


def test_the_question_comes_after_the_pictures(vlm, pictures):
    inputs = vlm.inputs(pictures, QUESTION)
    text = tiny_judge.tokenizer().decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)
    picture = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"  # 56 x 84 pixels, 28 a token
    assert text == f"<|im_start|>user\n{picture}{picture}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]] * 2


def test_the_value_is_the_softmax_of_yes_over_all_tokens(vlm, folder, pictures):
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = vlm.inputs(pictures, QUESTION)
    patches = torch.cat([to_patches(prepare_photo(picture, 0)[None])[0] for picture in pictures])
    torch.testing.assert_close(inputs["pixel_values"], patches, atol=1e-4, rtol=0)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    yes = tiny_judge.tokenizer().encode("Yes").ids[0]
    got = vlm.yes_probability(pictures, QUESTION)
    assert got == pytest.approx(float(logits.softmax(-1)[yes]), rel=1e-4)
    assert 0.0 < got < 1.0
    assert vlm.yes_probability(pictures, QUESTION) == got
    assert vlm.yes_probability(pictures[::-1], QUESTION) != got


def test_a_chat_template_of_the_tokenizer_will_do(loader, vlm, pictures, tmp_path):
    other = loader.load_vlm(tiny_vision.write_vlm(tmp_path / "qwen", chat="tokenizer_config.json"))
    assert other.yes_probability(pictures, QUESTION) == vlm.yes_probability(pictures, QUESTION)


def test_facts(vlm):
    assert vlm.describe() == {"name": "qwen", "licence": "qwen-research"}


def test_what_cannot_be_asked(vlm, pictures):
    with pytest.raises(ValueError, match="at least one picture and a question"):
        vlm.yes_probability([], QUESTION)
    with pytest.raises(ValueError, match="at least one picture and a question"):
        vlm.yes_probability(pictures, " ")
    bad = pictures[1].clone()
    bad[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="Picture 2 holds NaN or infinite"):
        vlm.yes_probability([pictures[0], bad], QUESTION)


def test_folders_that_cannot_be_asked(loader, folder, tmp_path):
    with pytest.raises(ValueError, match="'dino' is a vit, not a model that answers about pictures"):
        loader.load_vlm(tiny_vision.write_dino(tmp_path / "dino"))
    with pytest.raises(ValueError, match="'base' has no chat template"):
        loader.load_vlm(tiny_vision.write_vlm(tmp_path / "base", chat=None))
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="processor in .*bare' could not be loaded"):
        loader.load_vlm(bare)
    short = shutil.copytree(folder, tmp_path / "short")
    index = json.loads((short / "model.safetensors.index.json").read_text())
    (short / sorted(set(index["weight_map"].values()))[1]).unlink()
    with pytest.raises(ValueError, match="'.*short' could not be loaded"):
        loader.load_vlm(short)
