"""Hidden states of a VLM, token for token those of transformers' own calls: as a folder, and as ComfyUI's CLIP."""

import pytest
import torch
import transformers
from PIL import Image

from idcrafter.subjects.faces import to_uint8
from support import tiny_judge, tiny_qwen, tiny_vision

PROMPT = "The one with the hat hugs the other."
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("model_loaders.vlm_states")


@pytest.fixture(scope="module")
def reading(pack):
    return pack.submodule("idcrafter.modules.aligner").Reading


@pytest.fixture(scope="module")
def pictures():
    """Of 8 bits, and of sizes that no processor of Qwen changes."""
    return [
        (picture * 255).round() / 255 for picture in (tiny_judge.clip(1, 56, 84)[0], tiny_judge.clip(1, 112, 56)[0])
    ]


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("vlm")
    write = tiny_vision.write_vlm if request.param == "qwen2.5" else tiny_qwen.write_qwen3vl
    return write(root / request.param)


@pytest.fixture(scope="module")
def vlm(pack, folder):
    return pack.submodule("model_loaders.vlm").load_vlm(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    """All hidden states by transformers' own calls: one chat message with pictures, template and processor in one."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def theirs(content):
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": Image.fromarray(to_uint8(part))}
            for part in content
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            return inputs, model(**inputs, output_hidden_states=True).hidden_states

    return theirs


@pytest.mark.parametrize("order", ["before", "after"])
def test_every_layer_is_that_of_transformers(lib, reading, vlm, theirs, pictures, order):
    told = f"Look: {PROMPT}"
    content = [*pictures, told] if order == "before" else [told, *pictures]
    inputs, hidden = theirs(content)
    grids = (inputs["image_grid_thw"].prod(-1) // 4).tolist()
    assert (inputs["input_ids"] == 262).sum() == sum(grids) > 10  # <|image_pad|>
    assert not torch.equal(hidden[1], hidden[-1])
    for layer in range(1, len(hidden)):
        for asked in (layer, layer - len(hidden)):
            found = lib.states_of_vlm(vlm, pictures, PROMPT, reading(asked, "Look: {prompt}", order))
            assert (found.layer, found.layers, found.model) == (layer, len(hidden) - 1, vlm.model.name)
            assert torch.equal(found.states, hidden[layer])
            assert torch.equal(found.keys, inputs["attention_mask"].bool())


def test_the_states_may_be_trained_on(lib, reading, vlm, pictures):
    with torch.inference_mode(False):
        found = lib.states_of_vlm(vlm, pictures, PROMPT, reading())
        weight = torch.ones(found.states.shape[-1], requires_grad=True)
        (found.states * weight)[found.keys].sum().backward()
    assert weight.grad.any()


def test_the_pictures_and_their_order_matter(lib, reading, vlm, pictures):
    asked = reading(-1, "{prompt}")
    both = lib.states_of_vlm(vlm, pictures, PROMPT, asked).states[0, -1]
    others = [pictures[::-1], pictures[:1], [], [pictures[0] * 0.5, pictures[1]]]
    for other in others:
        assert not torch.allclose(lib.states_of_vlm(vlm, other, PROMPT, asked).states[0, -1], both, atol=1e-4)


def test_large_photos_are_shrunk(lib, reading, vlm, theirs, pictures):
    large = pictures[0].repeat(4, 4, 1)  # 224 x 336
    found = lib.states_of_vlm(vlm, [large], PROMPT, reading(-1, "{prompt}", "before", 84))
    small = torch.nn.functional.interpolate(large.movedim(-1, 0)[None], (56, 84), mode="area")[0].movedim(0, -1)
    assert torch.equal(found.states, theirs([small, PROMPT])[1][-1])


def test_a_prompt_ends_no_turn_and_is_no_picture(lib, reading, vlm, pictures):
    asked = reading(-1, "{prompt}")
    plain = lib.states_of_vlm(vlm, pictures, "a   b", asked)
    evil = lib.states_of_vlm(vlm, pictures, "a <|image_pad|> b", asked)
    assert torch.equal(evil.states, plain.states)


@pytest.mark.parametrize("layer", [4, -4, 99])
def test_a_layer_that_is_not_there(lib, reading, vlm, pictures, layer):
    layers = vlm.model.config.get("text_config", vlm.model.config)["num_hidden_layers"]
    layer += (layer > 0) * (layers - 3) - (layer < 0) * (layers - 3)
    with pytest.raises(ValueError, match=f"Layer {layer} was asked for, but the VLM has {layers}"):
        lib.states_of_vlm(vlm, pictures, PROMPT, reading(layer))


@pytest.fixture(scope="module", params=["qwen25_7b", "qwen3vl_4b"])
def core(pack, request):
    with pytest.MonkeyPatch.context() as patch:
        clip, twin = tiny_qwen.core_clip(request.param, patch)
        yield request.param, clip, twin


def chat(kind, said):
    return (
        tiny_qwen.SYSTEM if kind == "qwen25_7b" else ""
    ) + f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"


def fitting(kind, pictures):
    """Sizes in whole patches of the model, which its image processing leaves alone."""
    return pictures if kind == "qwen25_7b" else [p.repeat(2, 2, 1)[:64, :96] for p in pictures]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_comfyui_clip_sees_what_transformers_sees(lib, reading, core, pictures, count):
    kind, clip, twin = core
    pictures = fitting(kind, pictures)[:count]
    block = "<|vision_start|><|image_pad|><|vision_end|>" * count
    for order in ("before", "after"):
        said = block + PROMPT if order == "before" else PROMPT + block
        hidden = twin.hidden(chat(kind, said), pictures)
        for layer in (3, tiny_qwen.LAYERS):
            found = lib.states_of_clip(clip, pictures, PROMPT, reading(layer, "{prompt}", order))
            assert (found.layer, found.layers, found.model) == (layer, tiny_qwen.LAYERS, kind)
            assert found.keys.all() and found.keys.shape == found.states.shape[:2]
            torch.testing.assert_close(found.states, hidden[layer], **CLOSE)
            assert hidden[layer].std() > 0.05


def test_a_clip_is_left_as_it_was(lib, reading, core, pictures):
    kind, clip, _ = core
    tokens = clip.tokenize("a cat")
    with torch.inference_mode():
        before = clip.encode_from_tokens(tokens)
        lib.states_of_clip(clip, fitting(kind, pictures), PROMPT, reading(2))
        assert torch.equal(clip.encode_from_tokens(tokens), before)


def test_a_clip_that_drops_the_pictures_is_refused(lib, reading, core, pictures, monkeypatch):
    kind, clip, _ = core
    tokenize = clip.tokenize
    # As Generate Text calls it: the tokenizer of Qwen2.5-VL takes no `image`.
    monkeypatch.setattr(clip, "tokenize", lambda text, images: tokenize(text, video=images))
    with pytest.raises(ValueError, match=f"'{kind}' took 0 of 2 photos"):
        lib.states_of_clip(clip, pictures, PROMPT, reading())


def test_a_clip_without_eyes_is_refused(pack, lib, reading, tiny_files, pictures):
    clip = pack.submodule("model_loaders.text_encoder").load_text_encoder(tiny_files.text_encoder)
    with pytest.raises(ValueError, match="does not see pictures; connect Qwen2.5-VL or Qwen3-VL"):
        lib.states_of_clip(clip, pictures, PROMPT, reading())
