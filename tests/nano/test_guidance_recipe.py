"""The nano aligner's training: captions with a place for each word, stories that belong to their clips, steps that
learn. The VLM is a tiny one with random weights."""

from types import SimpleNamespace

import pytest
import torch

from idcrafter.nano import install
from idcrafter.nano.recipes import adapter, data, dit, guidance, guidance_data, text
from idcrafter.nano.world import crowd, identity_split, stories
from idcrafter.relations.compose import WORDINGS
from support import tiny_vision

DIT = install.WEIGHTS / "diffusion_models" / install.FILES["model"][1]
TEXT = install.WEIGHTS / "text_encoders" / install.FILES["text_encoder"][1]
SIZES = {"tokens": text.LENGTH, "latent_width": 16, "width": 16, "heads": 2, "depth": 1}
SHARD = 24  # clips


@pytest.fixture(scope="module")
def reader():
    return text.load(TEXT)


@pytest.fixture(scope="module")
def told():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", SHARD)
        return list(guidance_data.told("train", 1))


@pytest.fixture(scope="module")
def sentences(told, tmp_path_factory):
    """Of a shard of a few clips, as the tiny VLM has read them; made once, loaded once more."""
    folder = tmp_path_factory.mktemp("guidance")
    (folder / "idcrafter_nano_umt5.safetensors").write_bytes(TEXT.read_bytes())
    vlm = tiny_vision.write_vlm(folder / "tiny_vlm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", SHARD)
        patch.setattr(guidance_data, "told", lambda split, shard: [each for each in told if each.row < SHARD + 6])
        made = guidance.Sentences(folder, "train", 1, vlm)
        patch.setattr(guidance_data, "_read", lambda *_: pytest.fail("it is there already"))
        again = guidance.Sentences(folder, "train", 1, vlm)
    assert all(torch.equal(a, b) for a, b in zip(made.states.rows, again.states.rows, strict=True))
    return made


def test_stories_are_of_train_people_and_of_seen_forms(told):
    unseen = {stories.tell(each.story.spec, k, unseen=True).text for each in told for k in range(2)}
    assert len(told) > SHARD / 2 and len({each.row for each in told}) * guidance_data.STORIES == len(told)
    for each in told:
        assert all(identity_split(who.number) == "train" for who in each.story.spec.identities)
        assert each.story.text not in unseen
        assert len(each.photos) == len(each.story.spec.identities)
    named = [each.story.mentions == each.story.names for each in told]
    assert 0 < sum(named) < len(named)


def test_stories_belong_to_their_clips(told):
    specs = [spec for shard in (0, 1) for spec, _ in _small_specs(shard)]
    for each in told:
        assert specs[each.row] == each.story.spec


def _small_specs(shard):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHARD", SHARD)
        return data.specs("train", shard)


def test_a_caption_counts_people_and_fits_its_places(reader):
    tokenizer, _ = reader
    for count in (2, 3, 4):
        for move in crowd.MOVES:
            spec = crowd.sample_crowd_spec(_people(count), 3, move)
            said = guidance_data.caption(spec)
            assert not any(name in said for name in stories.NAMES)
            taken = []
            for at, part in guidance_data.caption_parts(spec):
                taken += range(at, at + len(tokenizer.processor.encode(part)))
            assert len(set(taken)) == len(taken) and max(taken) < guidance_data._END < text.LENGTH
            # What the places make of it is what the text encoder reads in plain order.
            ids = [i for _, part in guidance_data.caption_parts(spec) for i in tokenizer.processor.encode(part)]
            assert ids == tokenizer.processor.encode(said) and "ordinals" in WORDINGS


def _people(count):
    from idcrafter.nano import world

    numbers = world.numbers_of_split("train", 40)
    return tuple(world.sample_identity(next(numbers)) for _ in range(count))


def test_a_word_has_its_place_whatever_the_others_are(reader):
    """Zeros elsewhere, so that a DiT without positions of text cannot tell it from the plain order."""
    specs = [crowd.sample_crowd_spec(_people(3), seed) for seed in range(4)]
    placed, words = guidance_data.targets(*reader, specs)
    plain = text.encode(reader[1], reader[0]([guidance_data.caption(spec) for spec in specs]))
    for row, mask, own in zip(placed, words, plain, strict=True):
        assert not row[~mask].any() and row[mask].abs().amax(-1).all()
        torch.testing.assert_close(row[mask][:-1], own[: mask.sum() - 1])
        torch.testing.assert_close(row.sum(0), own.sum(0), rtol=1e-4, atol=1e-4)
    at = guidance_data._SUBJECTS + guidance_data._PLACE
    assert words[:, at].all() and words[:, guidance_data._END].all()


def test_states_are_of_the_request_and_the_answer(sentences, told):
    lengths = {len(row) for row in sentences.states.rows}
    assert len(lengths) > 3 and sentences.states.width == 96
    batch = sentences.batch(torch.tensor([3, 0]))
    assert batch.states.shape[:2] == batch.keys.shape
    assert batch.keys.sum(1).tolist() == [len(sentences.states.rows[i]) for i in (3, 0)]
    assert torch.equal(batch.text[1], sentences.said[0])


def test_perfect_tokens_are_all_right_and_random_ones_are_not(sentences):
    class Oracle(torch.nn.Module):
        latents = torch.zeros(1)

        def forward(self, states, keys):
            return sentences.said[: len(states)], keys

    perfect = guidance.evaluate(Oracle(), sentences)
    assert (perfect["parts"], perfect["telling"]) == (1.0, 1.0) and perfect["loss"] < 1e-5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance, "SIZES", SIZES)
        untrained = guidance.evaluate(guidance.build(96, 1), sentences)
    assert untrained["telling"] < 0.7 and untrained["loss"] > 1


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(guidance, "SIZES", SIZES)
    monkeypatch.setattr(guidance, "BATCH", 8)


def test_pretraining_learns_and_goes_on_where_it_was(sentences, small, tmp_path):
    path = guidance.pretrain(tmp_path, sentences, sentences, 1, steps=40)
    assert '"step": 40' in (tmp_path / "aligner.curve.jsonl").read_text().splitlines()[-1]
    found = guidance.build(96, 1)
    start = guidance.evaluate(found, sentences)
    weights, config = _read(path)
    found.load_state_dict({k: v.float() for k, v in weights.items()})
    assert guidance.evaluate(found, sentences)["loss"] < start["loss"] - 0.2
    assert config.reading == guidance_data.READING and config.tokens == text.LENGTH
    again, _ = _read(guidance.pretrain(tmp_path, sentences, sentences, 1, steps=40))
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def _read(path):
    from safetensors import safe_open

    from idcrafter.modules.aligner import AlignerConfig

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert metadata["licence"] == "Apache-2.0" and metadata["vlm"] == "idcrafter_nano_vlm"
        return {k: file.get_tensor(k) for k in file.keys()}, AlignerConfig.loads(metadata["idcrafter_aligner"])


@pytest.fixture(scope="module")
def rows():
    """Encoded clips whose latents are the number of their row."""
    number = torch.arange(2.0 * SHARD)
    count = torch.tensor([len(spec.identities) for shard in (0, 1) for spec, _ in _small_specs(shard)])

    def of(*shape):
        return number.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()

    return {
        "latents": of(16, 3, 8, 16),
        "references": of(4, data.PHOTOS, 16, 8, 16),
        "weights": torch.ones(len(number), 3, 8, 16),
        "owners": torch.zeros(len(number), 3, 4, 8, dtype=torch.int8),
        "counts": count,
        "tokens": torch.full((len(number), data.CAPTIONS, text.LENGTH), text.END).short(),
        "faces": of(4, data.PHOTOS, 512),
        "crops": of(4, data.PHOTOS, (data.CROP // 8) ** 2, 16),
    }


@pytest.mark.parametrize("guided", [False, True])
def test_a_clip_is_read_by_its_own_story(sentences, rows, reader, guided):
    tokenizer, encoder = reader
    clips = guidance.Clips(rows, encoder, tokenizer, 5, sentences)
    if guided:
        clips.aligner = SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        # A batch then says which stories were read.
        patch.setattr(guidance, "guided_text", lambda aligner, batch: batch.text)
        groups = [c for c in (2, 3, 4) if len(clips.groups[c - 1])]
        batch = clips.draw(1, 6, groups[0])
    for clip, context in zip(batch.clean[:, 0, 0, 0, 0].tolist(), batch.context, strict=True):
        own = [i for i, each in enumerate(sentences.told) if each.row == clip]
        assert len(own) == guidance_data.STORIES
        if guided:
            wanted = [sentences.said[i] for i in own]
        else:
            wanted = list(text.encode(encoder, tokenizer([sentences.told[i].story.text for i in own])))
        wanted.append(clips.empty.expand(text.LENGTH, -1) if len(clips.empty) == 1 else clips.empty)
        assert any(torch.allclose(context, each, atol=1e-4) for each in wanted)


@pytest.mark.parametrize("guided", [False, True])
def test_tuning_changes_the_lora_and_the_aligner(sentences, rows, small, monkeypatch, tmp_path, guided):
    monkeypatch.setattr(data, "prepare", lambda *_: rows)
    monkeypatch.setattr(guidance, "TUNING_BATCH", 2)
    monkeypatch.setattr(adapter, "RANK", 2)
    for source, name in ((DIT, "idcrafter_nano_dit.safetensors"), (TEXT, "idcrafter_nano_umt5.safetensors")):
        (tmp_path / name).symlink_to(source)
    start = guidance.build(96, 4)
    guidance.export(start, tmp_path / guidance.PRETRAINED, 0, 4)
    path = guidance.tune(tmp_path, sentences, 4, guided, steps=2)
    from safetensors.torch import load_file

    lora = load_file(tmp_path / (guidance.LORA if guided else guidance.PLAIN))
    assert any(v.any() for k, v in lora.items() if "lora_B" in k)
    assert path.name == (guidance.ALIGNER if guided else guidance.PLAIN)
    if guided:
        tuned, _ = _read(path)
        moved = [k for k, v in start.state_dict().items() if not torch.equal(tuned[k], v.half().cpu())]
        assert "latents" in moved and "proj_in.weight" in moved
    assert dit.SHIFT == 3.0
