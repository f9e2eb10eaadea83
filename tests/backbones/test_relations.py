"""A VLM's tokens in a CONDITIONING, on ComfyUI's own samplers: among the prompt's, or beside them for the hierarchy."""

import pytest
import torch

from support import tiny_adapters, tiny_families
from support.composition import Shot, noise

CLOSE = {"rtol": 1e-4, "atol": 5e-4}
KEYS = torch.tensor([[True, True, True, False]])


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.backbones.relations")


@pytest.fixture(scope="module")
def models(pack, tmp_path_factory):
    root, load = tmp_path_factory.mktemp("relations"), pack.submodule("model_loaders.video_dit").load_video_dit
    with torch.inference_mode():
        return {f: load(tiny_families.write(root / f / f"{f}.safetensors", f)) for f in ("wan-t2v", "cogvideox")}


@pytest.fixture(scope="module")
def injected(pack, models, tmp_path_factory):
    """family -> (MODEL with an adapter of a two-round hierarchy over tokens 32 wide, its Shot with two people)."""
    made = {}

    def injected(family):
        if family not in made:
            path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
            made[family] = tiny_adapters.injection(pack, models[family], path, louder)(models[family])
        return made[family], tiny_adapters.with_people(pack, Shot(pack, family))

    return injected


def louder(weights):
    """What the hierarchy heard must show in a video far above what batching rounds."""
    for name, tensor in weights.items():
        if name.startswith("perceiver") and name.endswith("to_out.weight") or "cross_modal.to_out" in name:
            tensor.mul_(100)


@pytest.fixture
def tokens():
    return noise(1, 4, 32, seed=9)


@pytest.mark.parametrize("family", ["wan-t2v", "cogvideox"])
@pytest.mark.parametrize("use", ["replace", "append", "prepend"])
def test_tokens_among_the_prompts_are_read_by_the_video_model(lib, pack, models, tokens, family, use):
    model, shot = models[family], Shot(pack, family)
    plain = shot.ksampler(model)
    text = shot.positive[0][0]
    silent = tokens * KEYS[..., None]
    wanted = {"replace": [silent], "append": [text, silent], "prepend": [silent, text]}[use]
    told = lib.combine(shot.positive, tokens, KEYS, use)
    assert torch.equal(told[0][0], torch.cat(wanted, dim=1)) and shot.positive[0][0] is text
    shot.positive = told
    video = shot.ksampler(model)
    assert video.isfinite().all() and not torch.allclose(video, plain, **CLOSE)
    # What stands behind a False key does not matter.
    shot.positive = [[text, {}]]
    shot.positive = lib.combine(shot.positive, tokens + 99 * ~KEYS[..., None], KEYS, use)
    assert torch.equal(shot.ksampler(model), video)


def test_a_wan_models_text_has_no_order(lib, pack, models, tokens):
    shot = Shot(pack, "wan-t2v")
    text = shot.positive
    shot.positive = lib.combine(text, tokens, KEYS, "append")
    behind = shot.ksampler(models["wan-t2v"])
    shot.positive = lib.combine(text, tokens, KEYS, "prepend")
    torch.testing.assert_close(shot.ksampler(models["wan-t2v"]), behind, **CLOSE)


def test_combine_serves_every_entry_and_row_and_keeps_what_rides_along(lib, tokens):
    text = noise(2, 3, 32)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    told = lib.combine([[text, {"attention_mask": mask, "pooled_output": None, "strength": 0.5}], [text[:1], {}]],
                       tokens, KEYS, "prepend")  # fmt: skip
    assert told[0][0].shape == (2, 7, 32) and told[1][0].shape == (1, 7, 32)
    assert torch.equal(told[0][0][1, :3], tokens[0, :3]) and torch.equal(told[0][0][:, 4:], text)
    assert told[0][1]["attention_mask"].tolist() == [[1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 1, 0, 0]]
    assert told[0][1]["strength"] == 0.5 and told[1][1] == {}


def test_tokens_of_another_width_are_refused(lib, pack, tokens):
    shot = Shot(pack, "wan-t2v")
    for use in ("replace", "append", "prepend"):
        with pytest.raises(ValueError, match="tokens of width 24, but the backbone's text has the width 32; connect"):
            lib.combine(shot.positive, noise(1, 4, 24), KEYS, use)


@pytest.mark.parametrize("family", ["wan-t2v", "cogvideox"])
def test_beside_the_prompt_only_the_hierarchy_reads_them(lib, models, injected, tokens, family):
    model, shot = injected(family)
    text = shot.positive
    with_people = shot.ksampler(model)
    shot.positive = lib.attach_relations(text, tokens, KEYS)
    told = shot.ksampler(model)
    assert told.isfinite().all() and not torch.allclose(told, with_people, **CLOSE)
    # A video model without an adapter leaves them alone, exactly when guidance stays one call.
    without = shot.ksampler(models[family])
    negative = shot.negative
    shot.negative = lib.attach_relations(negative, tokens, torch.zeros_like(KEYS))
    batched = shot.ksampler(models[family])
    shot.positive, shot.negative = text, negative
    plain = shot.ksampler(models[family])
    assert torch.equal(batched, plain)
    torch.testing.assert_close(without, plain, **CLOSE)
    # None of them exist: as if there were none.
    shot.positive = lib.attach_relations(text, tokens, torch.zeros_like(KEYS))
    torch.testing.assert_close(shot.ksampler(model), with_people, **CLOSE)
    shot.positive = lib.attach_relations(text, tokens + 99 * ~KEYS[..., None], KEYS)
    torch.testing.assert_close(shot.ksampler(model), told, **CLOSE)


def test_they_are_further_context_of_the_cross_modal_level(lib, injected, tokens, monkeypatch):
    model, shot = injected("wan-t2v")
    adapter = model.additional_models["idcrafter_identity_0"][0].model
    seen = []
    identities = type(adapter).identities
    monkeypatch.setattr(
        type(adapter),
        "identities",
        lambda self, *args: seen.append((args[0].shape[0], *args[2:4])) or identities(self, *args),
    )
    plain = shot.positive
    shot.positive = lib.attach_relations(plain, tokens, KEYS)
    shot.negative = lib.attach_relations(shot.negative, noise(1, 6, 32, seed=4), torch.ones(1, 6, dtype=torch.bool))
    shot.ksampler(model, steps=2)
    (rows, context, words), *more = seen
    assert not more and rows == 2  # one batched call with guidance, once a run
    positive = next(i for i in range(2) if torch.equal(context[i, :7], plain[0][0][0]))
    assert torch.equal(context[positive, 7:10], tokens[0, :3]) and context.shape[1] == 13
    assert words[positive].tolist() == [True] * 10 + [False] * 3 and words[1 - positive].all()


def test_a_hierarchy_of_bare_states_reads_no_prompt(lib):
    text, states = noise(2, 5, 32), noise(2, 4, 24, seed=1)
    text[0, 3:] = 0
    context, words = lib.readable(text, None, 32)
    assert torch.equal(context, text) and words.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    context, words = lib.readable(text, [states, KEYS.float().expand(2, -1)], 24)
    assert torch.equal(context, states) and words.tolist() == KEYS.tolist() * 2
    with pytest.raises(ValueError, match="VLM's tokens have the width 24, but the adapter's hierarchy reads .* 32"):
        lib.readable(text, [states, KEYS.float()], 32)
    with pytest.raises(ValueError, match="prompt's tokens have the width 32, .* width 24: it was trained on a VLM's"):
        lib.readable(text, None, 24)


def test_an_adapter_that_reads_another_width_says_both(lib, injected):
    model, shot = injected("wan-t2v")
    shot.positive = lib.attach_relations(shot.positive, noise(1, 4, 24), KEYS)
    with pytest.raises(ValueError, match="VLM's tokens have the width 24, but the adapter's hierarchy reads .* 32"):
        shot.ksampler(model)
