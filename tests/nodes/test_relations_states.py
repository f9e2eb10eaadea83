"""Load Aligner and Encode Relations as a user wires them: a cast, a VLM, a tiny video model."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from support import tiny_aligners, tiny_judge, tiny_qwen, tiny_vision
from support.composition import noise

PROMPT = "The one with the hat hugs the other."
RELATED = {"pictures": "relate", "answer": 4}
STATES, TEXT = 32, 32  # widths of the tiny VLM's states and of the tiny video model's text


@pytest.fixture(scope="module")
def folders(pack, tmp_path_factory):
    """Model folders with aligners of this pack and a download of BindWeave."""
    import folder_paths

    root = tmp_path_factory.mktemp("aligners")
    reading = {"instruction": "Look: {prompt}", "use": "append", "layer": -2}
    own = root / "own"
    tiny_aligners.write_own(own / "tiny.safetensors", tiny_aligners.config(STATES, TEXT, reading=reading), 2,
                            licence="MIT", vlm="qwen2.5")  # fmt: skip
    tiny_aligners.write_own(own / "wide.safetensors", tiny_aligners.config(STATES, 48), vlm="Another-VL")
    tiny_aligners.write_own(own / "related.safetensors", tiny_aligners.config(STATES, TEXT, reading=RELATED), 2)
    tiny_aligners.write_own(own / "core.safetensors", tiny_aligners.config(tiny_qwen.WIDTH, TEXT))
    tiny_aligners.write_bindweave(root / "dit" / "BindWeave", STATES, TEXT)
    tiny_aligners.write_bindweave(root / "dit" / "other", STATES, TEXT, "repackage")
    with pytest.MonkeyPatch.context() as patch:
        for name, path in (("idcrafter_adapters", "own"), ("diffusion_models", "dit")):
            patch.setitem(folder_paths.folder_names_and_paths, name, ([str(root / path)], {".safetensors"}))
        folder_paths.filename_list_cache.clear()
        yield SimpleNamespace(root=root)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def people(pack):
    """Two people, of whom the first has two photos, and a photo with a mask."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    clip = tiny_judge.clip(3, 56, 84)
    mask = torch.zeros(1, 56, 84)
    mask[:, 10:40, 20:60] = 1
    ada = subjects.make_subject("Ada", "person", "", clip[:2])
    bo = subjects.make_subject("Bo", "person", "", clip[2:].flip(1), mask)
    return subjects.make_cast([ada, bo])


@pytest.fixture(scope="module")
def vlm(pack, tmp_path_factory):
    folder = tiny_vision.write_vlm(tmp_path_factory.mktemp("rewards") / "qwen2.5")
    return pack.submodule("model_loaders.vlm").load_vlm(folder)


@pytest.fixture
def load(pack, folders):
    return lambda name: pack.execute("IDCrafterLoadAligner", aligner_name=name)[0]


@pytest.fixture
def text(stack):
    with torch.inference_mode():
        return stack.encode("The first waves.")


@pytest.fixture
def encode(pack, people, text):
    def encode(**inputs):
        inputs = {"conditioning": text, "cast": people, "prompt": PROMPT, **inputs}
        return pack.execute("IDCrafterEncodeRelations", **inputs)

    return encode


def sample(pack, stack, positive, text):
    return pack.execute(
        "KSampler", model=stack.model, seed=5, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple",
        positive=positive, negative=text, latent_image={"samples": torch.zeros(1, 16, 3, 6, 8)}, denoise=1.0,
    )[0]["samples"]  # fmt: skip


def shown_of(pack, people):
    """Everybody's first photo; the second subject's has a mask."""
    ada, bo = people.subjects
    cut_out = pack.submodule("idcrafter.subjects.references").cut_out
    return [ada.photos[0], cut_out(bo.photos[0], bo.masks[0], 1.0)]


def states(pack, vlm, photos, said, layer):
    lib = pack.submodule("model_loaders.vlm_states")
    reading = pack.submodule("idcrafter.modules.aligner").Reading(layer, "{prompt}", "before")
    return lib.states_of_vlm(vlm, photos, said, reading)


def test_the_list_and_the_summary(pack, folders):
    options = pack.nodes["IDCrafterLoadAligner"].INPUT_TYPES()["required"]["aligner_name"]
    names = options[1].get("options", options[0])
    ours = {"tiny.safetensors", "wide.safetensors", "core.safetensors", "related.safetensors"}
    assert set(names) == ours | {"diffusion_models/BindWeave", "diffusion_models/other/bindweave.safetensors"}
    aligner, summary = pack.execute("IDCrafterLoadAligner", aligner_name="tiny.safetensors")
    assert summary.startswith("tiny.safetensors: hidden states of width 32 to 5 tokens of width 32, layer -2")
    assert aligner.reading.use == "append"
    released = pack.execute("IDCrafterLoadAligner", aligner_name="diffusion_models/BindWeave")
    assert "as many tokens of width 32, last layer, use: prepend" in released[1]


def test_without_a_vlm_nothing_changes(encode, load, text):
    told, report = encode(aligner=load("tiny.safetensors"))
    assert told is text and report == "Neither a VLM nor a CLIP is connected: the conditioning is unchanged."


@pytest.mark.parametrize("use", ["auto", "replace", "append", "prepend"])
def test_the_video_model_reads_what_the_vlm_saw(pack, stack, encode, load, people, vlm, text, use):
    aligner = load("tiny.safetensors")
    told, report = encode(aligner=aligner, vlm=vlm, use=use)
    found = states(pack, vlm, shown_of(pack, people), f"Look: {PROMPT}", -2)
    tokens, _ = aligner.tokens(found.states, found.keys)
    own = text[0][0]
    wanted = {"replace": [tokens], "prepend": [tokens, own]}.get(use, [own, tokens])
    torch.testing.assert_close(told[0][0], torch.cat(wanted, dim=1))
    used = "append" if use == "auto" else use
    length = found.states.shape[1]
    assert report == (
        f"qwen2.5 has seen 2 photos; layer 1 of 2: {length} states of width 32 to 5 tokens of width 32, use: {used}."
    )
    video = sample(pack, stack, told, text)
    assert video.isfinite().all() and not torch.allclose(video, sample(pack, stack, text, text), atol=1e-5)


def test_bindweaves_tokens_come_before_the_text(pack, stack, encode, load, people, vlm, text):
    told, report = encode(aligner=load("diffusion_models/BindWeave"), vlm=vlm)
    own = text[0][0]
    count = told[0][0].shape[1] - own.shape[1]
    assert torch.equal(told[0][0][:, count:], own) and told[0][0][:, :count].abs().amax(-1).all()
    assert report.startswith(
        "The aligner was trained with Qwen2.5-VL-7B-Instruct; what it makes of qwen2.5 may be noise."
    )
    assert sample(pack, stack, told, text).isfinite().all()


def test_bare_states_go_to_the_hierarchy(pack, stack, encode, vlm, text):
    told, report = encode(vlm=vlm)
    relations = pack.submodule("idcrafter.backbones.relations")
    tokens, keys = told[0][1]["model_conds"][relations.KEY].cond
    assert torch.equal(told[0][0], text[0][0]) and tokens.shape[-1] == STATES and keys.all()
    assert report.endswith("use: hierarchy.")
    torch.testing.assert_close(sample(pack, stack, told, text), sample(pack, stack, text, text))


def test_more_photos_and_another_layer(encode, load, vlm, caplog):
    one, _ = encode(aligner=load("tiny.safetensors"), vlm=vlm)
    with caplog.at_level(logging.WARNING):
        two, report = encode(aligner=load("tiny.safetensors"), vlm=vlm, photos=2, layer=2)
    assert "has seen 3 photos; layer 2 of 2" in report
    warning = "The aligner was trained on layer -2; what it makes of layer 2 may be noise."
    assert report.startswith(warning) and warning in caplog.text
    assert not torch.allclose(one[0][0], two[0][0], atol=1e-4)


def test_an_aligner_that_was_trained_on_relates_request(pack, encode, load, people, vlm):
    aligner = load("related.safetensors")
    lib, subjects = pack.submodule("model_loaders.vlm_states"), pack.submodule("idcrafter.subjects.subject")
    shown = []
    for count in (1, 2):
        told, report = encode(aligner=aligner, vlm=vlm, photos=count)
        ada, bo = people.subjects
        fewer = [replace(who, photos=who.photos[:count], masks=who.masks[:count]) for who in (ada, bo)]
        found = lib.states_of_vlm(vlm, subjects.make_cast(fewer), PROMPT, aligner.reading)
        torch.testing.assert_close(told[0][0], aligner.tokens(found.states, found.keys)[0])
        assert f"has seen {1 + count} photos" in report
        shown.append(found.states.shape[1])
    assert shown[0] < shown[1]


@pytest.mark.parametrize("kind", ["qwen25_7b", "qwen3vl_4b"])
def test_a_clip_of_comfyui_in_the_place_of_a_vlm(pack, encode, load, people, kind):
    with pytest.MonkeyPatch.context() as patch:
        clip, _ = tiny_qwen.core_clip(kind, patch)
    aligner = load("core.safetensors")
    told, report = encode(aligner=aligner, clip=clip)
    found = pack.submodule("model_loaders.vlm_states").states_of_clip(
        clip, shown_of(pack, people), PROMPT, aligner.reading
    )
    assert found.states.shape[1] > 20
    torch.testing.assert_close(told[0][0], aligner.tokens(found.states, found.keys)[0])
    assert f"{kind} has seen 2 photos; layer 4 of 4" in report


def test_what_cannot_work_says_what_to_do(encode, load, vlm):
    with pytest.raises(ValueError, match="A vlm and a clip are connected; disconnect"):
        encode(aligner=load("tiny.safetensors"), vlm=vlm, clip=object())
    with pytest.raises(
        ValueError, match="'replace' puts the VLM's tokens among those of the text, which takes an aligner"
    ):
        encode(vlm=vlm, use="replace")
    with pytest.raises(ValueError, match="tokens of width 48, but the backbone's text has the width 32; connect"):
        encode(aligner=load("wide.safetensors"), vlm=vlm)
    with pytest.raises(ValueError, match="reads hidden states of width 128, but the VLM's are 32 wide"):
        encode(aligner=load("core.safetensors"), vlm=vlm)
    with pytest.raises(ValueError, match="Layer 9 was asked for, but the VLM has 2"):
        encode(aligner=load("tiny.safetensors"), vlm=vlm, layer=9)
    narrow = [[noise(1, 3, 24), {}]]
    with pytest.raises(ValueError, match="backbone's text has the width 24"):
        encode(aligner=load("tiny.safetensors"), vlm=vlm, conditioning=narrow)
