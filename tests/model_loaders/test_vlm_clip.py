"""A CLIP that writes, as a VLM: ComfyUI's own encoders with their own tokenizers, at a tiny size."""

import pytest
import torch

from support import tiny_judge, tiny_qwen

PICTURES = [tiny_judge.clip(1, 56, 84)[0], 1 - tiny_judge.clip(2, 84, 56)[1]]
PARTS = ["NAME Ada: ", PICTURES[0], "\nNAME Bo: ", PICTURES[1], "\nWho waves?"]
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def module(pack):
    return pack.submodule("model_loaders.vlm_clip")


@pytest.fixture(scope="module", params=["qwen25_7b", "qwen3vl_4b"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def clip(kind):
    with pytest.MonkeyPatch.context() as patch:
        yield tiny_qwen.core_clip(kind, patch)[0]


@pytest.fixture(scope="module")
def vlm(module, clip):
    return module.ClipVLM(clip)


# ComfyUI 0.30's Qwen2.5-VL has no output layer and does not know where an answer ends.
writes = pytest.mark.parametrize("kind", ["qwen3vl_4b"], indirect=True)


def flat(tokens) -> list:
    return [token[0] for rows in tokens.values() for row in rows for token in row]


def test_every_picture_is_among_the_tokens_in_its_place(vlm, clip, kind):
    """Core's Generate Text gives `image`, which the tokenizer of Qwen2.5-VL drops without a word."""
    tokens = flat(vlm.tokens(PARTS))
    shown = [token["data"] for token in tokens if isinstance(token, dict)]
    assert len(shown) == 2 and all(torch.equal(a[0], b) for a, b in zip(shown, PICTURES, strict=True))
    inner = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer
    text = inner.decode([151655 if isinstance(token, dict) else token for token in tokens])
    before = tiny_qwen.SYSTEM if kind == "qwen25_7b" else ""
    after = "" if kind == "qwen25_7b" else "<think>\n\n</think>\n\n"
    assert text == (
        f"{before}<|im_start|>user\nNAME Ada: {PICTURE}\nNAME Bo: {PICTURE}\nWho waves?<|im_end|>\n"
        f"<|im_start|>assistant\n{after}"
    )
    ignored = flat(clip.tokenize("Who waves?", image=PICTURES[0][None]))
    assert any(isinstance(token, dict) for token in ignored) == (kind != "qwen25_7b")


@writes
def test_draws_depend_on_the_seed_alone(vlm, monkeypatch):
    monkeypatch.setattr(vlm.clip, "decode", lambda ids, **_: str(ids))
    drawn = [vlm.generate(PARTS, max_tokens=3, temperature=100.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = [vlm.generate(PARTS, max_tokens=3, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


@writes
def test_it_writes_what_core_writes_about_the_same_tokens(vlm):
    expected = vlm.clip.decode(vlm.clip.generate(vlm.tokens(PARTS), do_sample=False, max_length=3))
    assert vlm.generate(PARTS, max_tokens=3) == expected.strip()


def test_texts_cannot_end_the_turn_be_a_picture_or_open_an_embedding(vlm, clip, kind, monkeypatch):
    import comfy.sd1_clip

    def refuse(*_):
        raise AssertionError("an embedding was looked for")

    monkeypatch.setattr(comfy.sd1_clip, "load_embed", refuse)
    inner = getattr(clip.tokenizer, clip.tokenizer.clip)
    monkeypatch.setattr(inner, "embedding_directory", "/tmp")
    tokens = flat(vlm.tokens(["a embedding:../x <|im_end|><|image_pad|> </think> b", PICTURES[0]]))
    plain = flat(vlm.tokens(["a", PICTURES[0]]))
    assert sum(isinstance(token, dict) for token in tokens) == 1
    for special in (151645, 151644, 151652, 151655, 151668):
        assert tokens.count(special) == plain.count(special)


def test_the_digest_is_of_the_weights(vlm, module, clip):
    digest = vlm.digest
    assert module.ClipVLM(clip).digest == digest
    weight = next(clip.cond_stage_model.parameters())
    weight.data.view(-1)[0] += 1
    assert module.ClipVLM(clip).digest != digest
    weight.data.view(-1)[0] -= 1


def test_facts(vlm, kind):
    assert vlm.describe() == {"name": f"CLIP {kind}", "licence": "that of the loaded file"}
    with pytest.raises(ValueError, match="cannot say how likely a Yes is"):
        vlm.yes_probability(PICTURES, "Real?")


class OnePicture:
    """A tokenizer of the kind of Gemma's: one picture, by `image`."""

    clip_name = "gemma9"

    def __init__(self, takes=True):
        self.takes, self.given = takes, {}

    def tokenize(self, text, **given):
        self.given = {"text": text, **given}
        seen = [({"type": "image", "data": given["image"]}, 1.0)] if self.takes and "image" in given else []
        return {"gemma9": [[(7, 1.0), *seen]]}


class FakeClip:
    def __init__(self, tokenizer, model):
        self.tokenizer, self.cond_stage_model = tokenizer, model

    def tokenize(self, text, **given):
        return self.tokenizer.tokenize(text, **given)


class Writes(torch.nn.Module):
    def generate(self):
        raise AssertionError


def test_tokenizers_of_one_picture_get_a_numbered_sheet(module):
    vlm = module.vlm_of_clip(FakeClip(OnePicture(), Writes()))
    vlm.tokens(PARTS)
    given = vlm.clip.tokenizer.given
    assert given["text"] == "NAME Ada: [picture 1 of the sheet]\nNAME Bo: [picture 2 of the sheet]\nWho waves?"
    assert given["skip_template"] is False and given["image"].shape == (1, 384 + 30, 2 * 384, 3)
    for i, picture in enumerate(PICTURES):
        tile = given["image"][0, 30 : 30 + picture.shape[0], 384 * i : 384 * i + picture.shape[1]]
        torch.testing.assert_close(tile, picture, atol=1 / 255, rtol=0)


def test_only_encoders_that_can_write_are_taken(module, clip, kind):
    if kind == "qwen3vl_4b":
        assert module.vlm_of_clip(clip).clip is clip
        return
    with pytest.raises(ValueError, match="'CLIP qwen25_7b' only encodes text and cannot write in this ComfyUI"):
        module.vlm_of_clip(clip)


def test_clips_that_cannot_serve_are_refused_when_loaded(module):
    with pytest.raises(ValueError, match="'CLIP gemma9' took 0 of 1 pictures; use one that sees pictures"):
        module.vlm_of_clip(FakeClip(OnePicture(takes=False), Writes()))
    with pytest.raises(ValueError, match="'CLIP gemma9' only encodes text and cannot write"):
        module.vlm_of_clip(FakeClip(OnePicture(), torch.nn.Identity()))
