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


def cast_of(pack, pictures):
    subjects = pack.submodule("idcrafter.subjects.subject")
    named = zip(("Ada", "Bo"), pictures, strict=True)
    return subjects.make_cast([subjects.make_subject(name, "person", "", photo[None]) for name, photo in named])


def test_a_cast_is_shown_as_relate_shows_it(pack, lib, reading, vlm, theirs, pictures):
    cast = cast_of(pack, pictures)
    parts = pack.submodule("idcrafter.relations.request").request_parts(cast, PROMPT)
    assert sum(torch.is_tensor(part) for part in parts) == 2 and parts[0].startswith('NAME "Ada"')
    found = lib.states_of_vlm(vlm, cast, PROMPT, reading(pictures="relate"))
    assert torch.equal(found.states, theirs(parts)[1][-1])


def test_states_in_spans(lib, reading, vlm, pictures):
    one = lib.states_of_vlm(vlm, pictures, PROMPT, reading(-1, "{prompt}")).states
    three = lib.states_of_vlm(vlm, pictures, PROMPT, reading(-1, "{prompt}", span=3)).states
    own, before, earlier = three.chunk(3, dim=-1)
    assert torch.equal(own, one) and torch.equal(before[:, 1:], one[:, :-1])
    assert torch.equal(earlier[:, 2:], one[:, :-2])
    assert not before[:, 0].any() and not earlier[:, :2].any()


def test_names_of_the_users_change_nothing_where_the_aligner_has_its_own(pack, lib, reading, vlm, pictures):
    subjects = pack.submodule("idcrafter.subjects.subject")
    photos = [photo[None] for photo in pictures]

    def states(called, prompt, **how):
        people = zip(called, photos, strict=True)
        cast = subjects.make_cast([subjects.make_subject(name, "person", "", photo) for name, photo in people])
        return lib.states_of_vlm(vlm, cast, prompt, reading(pictures="relate", **how)).states

    own = states(("Ada", "Bo"), "Ada hugs Bo.")
    named = {"names": ("Ada", "Bo", "Cy")}
    assert torch.equal(states(("Bo", "Ada"), "Bo hugs Ada.", **named), own)
    assert torch.equal(states(("Eva", "subject 2"), "Eva hugs subject 2.", **named), own)
    assert not torch.equal(states(("Eva", "Bo"), "Eva hugs Bo."), own)
    few = states(("Eva", "Bo"), "Eva hugs Bo.", names=("Ada",))
    assert torch.equal(few, states(("Eva", "Bo"), "Eva hugs Bo."))


def test_an_answer_is_written_and_read(pack, lib, reading, vlm, pictures):
    """Its states follow those of the request, which no answer changes."""
    cast, asked = cast_of(pack, pictures), reading(pictures="relate", answer=5)
    parts = pack.submodule("idcrafter.relations.request").request_parts(cast, PROMPT)
    alone = lib.states_of_vlm(vlm, cast, PROMPT, reading(pictures="relate")).states
    own = vlm.generate(parts, 5)
    found = lib.states_of_vlm(vlm, cast, PROMPT, asked)
    assert torch.equal(found.states, lib.states_of_vlm(vlm, cast, PROMPT, asked, own).states)
    given = lib.states_of_vlm(vlm, cast, PROMPT, asked, '{"subjects": []} <|im_end|>')
    plain = lib.states_of_vlm(vlm, cast, PROMPT, asked, '{"subjects": []}  ')
    assert torch.equal(given.states, plain.states) and given.keys.all()
    length = alone.shape[1]
    assert given.states.shape[1] > length + 2
    torch.testing.assert_close(given.states[:, :length], alone, **CLOSE)
    # Without an answer in the reading, a given one is not read.
    assert torch.equal(lib.states_of_vlm(vlm, cast, PROMPT, reading(pictures="relate"), own).states, alone)


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


def test_a_clip_sees_a_cast_and_writes_no_answer(pack, lib, reading, core, pictures):
    kind, clip, _ = core
    cast = cast_of(pack, fitting(kind, pictures))
    found = lib.states_of_clip(clip, cast, PROMPT, reading(2, pictures="relate"))
    bare = lib.states_of_clip(clip, fitting(kind, pictures), PROMPT, reading(2))
    assert found.states.shape[1] > bare.states.shape[1]
    with pytest.raises(ValueError, match="reads an answer that the VLM writes first; connect a model from Load VLM"):
        lib.states_of_clip(clip, cast, PROMPT, reading(2, pictures="relate", answer=9))


def test_a_clip_without_eyes_is_refused(pack, lib, reading, tiny_files, pictures):
    clip = pack.submodule("model_loaders.text_encoder").load_text_encoder(tiny_files.text_encoder)
    with pytest.raises(ValueError, match="does not see pictures; connect Qwen2.5-VL or Qwen3-VL"):
        lib.states_of_clip(clip, pictures, PROMPT, reading())
