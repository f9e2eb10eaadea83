"""The nano VLM: its tokenizer, what it is trained on, its training, and what the shipped one answers."""

import copy
import json
import re
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from idcrafter.nano import install, world
from idcrafter.nano.recipes import vlm, vlm_data, vlm_eyes, vlm_hops, vlm_net, vlm_tokens
from idcrafter.nano.world import stories
from idcrafter.nano.world.identity import describe_visible, shows_hair
from idcrafter.training.loop import Trainer
from support.inprocess import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import relations  # noqa: E402

SHIPPED = install.WEIGHTS / "idcrafter_rewards" / vlm_net.NAME
MEGABYTES = 8


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return vlm_data.prepare(tmp_path_factory.mktemp("photos"), shards=2, size=6)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def untrained(tokenizer, tmp_path_factory):
    """A folder without weights, and a model of its config."""
    folder = tmp_path_factory.mktemp("model")
    vlm_net.write_processor(folder, tokenizer)
    return folder, vlm_net.build(folder, 3)


@pytest.fixture(scope="module")
def told(people, tokenizer, untrained):
    """Batches, with the photos as the untrained model sees them."""
    folder, model = untrained
    looks = vlm_eyes.look(model.model.visual, vlm_eyes.Pixels(folder, people))
    return vlm.Stories(people, looks, tokenizer, 5)


@pytest.fixture(scope="module")
def shipped(pack):
    return pack.submodule("model_loaders.vlm").load_vlm(SHIPPED)


def examples(people, count, seed=0):
    rng = np.random.default_rng(seed)
    return [vlm_data.draw_example(people, rng, 1 + i % 4) for i in range(count)]


# The tokenizer --------------------------------------------------------------------------------------------------------


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back(text):
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_request_is_short_and_its_constant_text_a_few_tokens(people, tokenizer):
    for example in examples(people, 12):
        asked = tokenizer.encode(vlm_tokens.as_chat(example.parts, 0)).ids
        action = example.parts[-1].split("=" * 12)[1]
        names = re.findall(r'NAME "(.*?)", ', "".join(part or "" for part in example.parts))
        spoken = len(tokenizer.encode(action).ids) + 2 * sum(len(tokenizer.encode(name).ids) for name in names)
        described = sum(len(tokenizer.encode(part).ids) for part in example.parts[:-1] if part and "puppet" in part)
        assert len(asked) <= spoken + described + 7 * len(names) + 12


def test_the_worlds_words_are_single_tokens(tokenizer):
    for form in (*stories._STAND[0], *(form for seen, _ in stories._MOVES.values() for form in seen)):
        assert all(len(tokenizer.encode(word).ids) == 1 for word in re.findall(r" [a-z]+", form)), form


def test_nothing_but_qwens_own_tokens_is_special(tokenizer):
    """Whatever is special is taken out of a user's text."""
    loaded = transformers.AutoTokenizer.from_pretrained(str(SHIPPED))
    assert set(loaded.get_added_vocab()) == set(vlm_tokens.SPECIAL)
    text = 'NAME "Zo\u00eb", person:\nThe one with the cap hides.'
    assert loaded(text).input_ids == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text).input_ids) == text


def test_the_same_people_make_the_same_tokenizer(people):
    assert vlm_tokens.train(people, 1).to_str() == vlm_tokens.train(people, 1).to_str()


# The data -------------------------------------------------------------------------------------------------------------


def test_examples_are_drawn_by_their_seed(people):
    assert examples(people, 8) == examples(people, 8) != examples(people, 8, seed=1)


def test_people_are_of_the_train_split_and_photos_are_kept(people, tmp_path):
    assert {world.identity_split(who.number) for who in people.identities} == {"train"}
    again = vlm_data.prepare(tmp_path, shards=1, size=6)
    assert torch.equal(again.photos, people.photos[:6])
    file = next(tmp_path.glob("vlm-photos-*"))
    made = file.stat().st_mtime_ns
    assert torch.equal(vlm_data.prepare(tmp_path, shards=1, size=6).photos, again.photos)
    assert file.stat().st_mtime_ns == made


def test_unseen_forms_are_never_told(people):
    unseen = (*stories._STAND[1], *(form for _, forms in stories._MOVES.values() for form in forms))
    patterns = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(form[0].upper() + form[1:])) for form in unseen]
    # "... is on the left and nods." is no case of "{where} is {who}, who {does}.": a place comes first there.
    patterns = [pattern.replace(r".+\ is\ .+,\ who", r"(?:On|In)\ the .+\ is\ .+,\ who") for pattern in patterns]
    rng = np.random.default_rng(1)
    for i in range(300):
        _, story = vlm_data.draw_story(people, rng, 2 + i % 3)
        for text in (story.text, vlm_data.rephrase(story, rng).text):
            for sentence in re.findall(r"[^.]+\.", text):
                assert not any(re.fullmatch(pattern, sentence.strip()) for pattern in patterns), sentence


def test_other_forms_tell_the_same_facts(people):
    rng = np.random.default_rng(3)
    turned = 0
    for i in range(200):
        _, story = vlm_data.draw_story(people, rng, 1 + i % 4)
        again = vlm_data.rephrase(story, rng)
        assert again.text.count(".") == story.text.count(".") and again.spec is story.spec
        assert again.facts[:-1] == story.facts[:-1]
        last, told = story.facts[-1], again.facts[-1]
        assert (told.what, {told.who, told.other}) == (last.what, {last.who, last.other})
        assert told == last or last.what == "swap"
        turned += told != last
        if last.what == "swap":
            sentence = again.text.rstrip(".").rsplit(". ", 1)[-1]
            assert sentence.index(story.names[told.who]) < sentence.index(story.names[told.other])
    assert turned > 10


def test_an_answer_is_true_of_its_request(people):
    for example in examples(people, 24):
        answer = json.loads(example.answer)
        names = [row["name"] for row in answer["subjects"]]
        asked = "".join(part or "" for part in example.parts)
        assert all(f"NAME {json.dumps(name, ensure_ascii=False)}, " in asked for name in names)
        assert example.parts.count(None) == len(example.photos) == len(names)
        looks = [describe_visible(people.identities[row]) for row, _ in example.photos]
        assert example.mistaken or [row["description"] for row in answer["subjects"]] == looks
        assert {row["subject"] for row in answer["relations"]} == set(names)


def test_people_are_called_what_the_mentions_say(people):
    for example in examples(people, 40):
        names = [row["name"] for row in json.loads(example.answer)["subjects"]]
        for who, start, end in example.mentions:
            called = example.text[start:end]
            assert called == names[who] if example.by_name else "one" in called.lower()
        mentioned = {who for who, _, _ in example.mentions}
        assert mentioned == {who for fact in example.facts for who in fact if who is not None}


def test_stray_words_leave_the_others_in_order():
    text = "The one with the cap is on the left and nods. The one without hair waits in the middle."
    rng = np.random.default_rng(0)
    for _ in range(50):
        rest = iter(re.findall(r"\w+", vlm_data.stray(text, rng).lower()))
        assert all(word in rest for word in re.findall(r"\w+", text.lower()))


def test_names_differ_from_each_other():
    rng = np.random.default_rng(2)
    drawn = [vlm_data.draw_names(rng, 4) for _ in range(200)]
    assert all(len({name.casefold() for name in names}) == 4 for names in drawn)
    assert len({name for names in drawn for name in names}) > 300


def test_what_is_seen_is_a_value_of_each_part(people):
    for who in people.identities:
        values = dict(zip(vlm_eyes.SEEN, vlm_eyes.seen(who), strict=True))
        assert (values["hair_style"] == vlm_eyes.IGNORED) == (not shows_hair(who))
        assert (values["hair"] == vlm_eyes.IGNORED) == (who.hair_style == "bald" or not shows_hair(who))
        assert (values["hat"] == vlm_eyes.IGNORED) == (who.hat_style == "none")
        assert vlm_eyes.SEEN["glasses_style"][values["glasses_style"]] == who.glasses_style


# The network and its training -----------------------------------------------------------------------------------------


def test_training_sees_what_transformers_own_path_sees(people, tokenizer, told, untrained):
    """Padding, positions and the places of the photos."""
    folder, model = untrained
    model = copy.deepcopy(model)
    some = examples(people, 4)[1:]
    batch = told.tokens(some)
    shown = [photo for example in some for photo in example.photos]
    rows = torch.tensor(shown)
    looks = told.looks[rows[:, 0], rows[:, 1]].flatten(0, 1)
    pictured, mask = batch["ids"] == told.image, batch["ids"] != told.pad
    inputs = vlm_eyes.Pixels(folder, people)(shown)
    with torch.no_grad():
        theirs = model.model(
            input_ids=batch["ids"], attention_mask=mask.long(), mm_token_type_ids=pictured.int(), **inputs
        ).last_hidden_state
        vlm.use_attend(model)
        own = vlm.states(model, told, {**batch, "looks": looks})
    # The looks are kept in bfloat16.
    assert (own - theirs)[mask].abs().max() < 0.02 * theirs[mask].abs().max()
    learned = batch["labels"] != vlm.IGNORED
    assert torch.equal(batch["labels"][learned], batch["ids"][learned])
    assert not (learned & pictured).any()


def test_heads_are_told_to_look_at_what_the_next_word_is_about(people, told):
    for example in examples(people, 16):
        batch = told.tokens([example])
        words = [told.texts[i] for i in batch["ids"][0].tolist()]
        answer = json.loads(example.answer)
        looks = {row["name"]: row["description"] for row in answer["subjects"]}
        people_said = [row[key] for row in answer["relations"] for key in ("subject", "object") if row[key]]
        found = {kind: [hop for _, hop in batch["hops"] if hop[0] == kind] for kind in
                 (vlm_hops.OWNER, vlm_hops.MENTION, vlm_hops.SAID, vlm_hops.LOOK, vlm_hops.NAME)}  # fmt: skip
        assert len(found[vlm_hops.NAME]) == len(found[vlm_hops.MENTION]) == len(people_said)
        assert len(found[vlm_hops.SAID]) == len(answer["relations"])
        assert len(found[vlm_hops.LOOK]) == (0 if example.by_name else len(people_said))
        names = list(looks)
        for name, (_, place, (target,)), (_, _, mention) in zip(
            people_said, found[vlm_hops.NAME], found[vlm_hops.MENTION], strict=True
        ):
            assert words[place + 1] == words[target] and name.startswith(words[target])
            called = {example.text[a:b] for who, a, b in example.mentions if names[who] == name}
            assert any(each in "".join(words[i] for i in mention) for each in called)
        for name, (_, _, targets), (_, _, mention) in zip(
            people_said, found[vlm_hops.LOOK], found[vlm_hops.MENTION], strict=False
        ):
            fits = [words[i] for i in targets]
            called = "".join(words[i] for i in mention).lower()
            assert "".join(fits) == looks[name] or all(each.strip() in called and each in looks[name] for each in fits)
        owned = {}
        for _, place, (target,) in found[vlm_hops.OWNER]:
            owned[target] = owned.get(target, "") + words[place]
        assert list(owned.values()) == [row["description"] for row in answer["subjects"]]
        assert all(name.startswith(words[i]) for i, name in zip(owned, names, strict=True))


def test_attention_that_goes_where_it_should_costs_nothing():
    query = torch.zeros(1, 2, 4, 8)
    key = torch.zeros(1, 1, 4, 8)
    query[0, 1, 2, 0], key[0, 0, 1, 0], key[0, 0, 3, 0] = 100.0, 10.0, 20.0
    wanted = [(0, ((1, 1), 2, [1]))]
    assert vlm_hops.hop_loss(wanted, {1: (query, key)}) < 1e-3  # what comes later is not seen
    assert vlm_hops.hop_loss([(0, ((1, 0), 2, [1]))], {1: (query, key)}) == pytest.approx(np.log(3), abs=1e-4)


def test_the_first_heads_begin_by_looking_back(untrained):
    model = copy.deepcopy(untrained[1])
    language = model.model.language_model
    language.config._attn_implementation = "eager"
    states = torch.randn(1, 24, vlm_net.WIDTH, generator=torch.Generator().manual_seed(1))
    places = torch.arange(24).expand(3, 1, 24)
    with torch.no_grad():
        seen = language(inputs_embeds=states, position_ids=places, output_attentions=True).attentions[0][0]
    for head in range(2):
        assert seen[head, 8:].argmax(-1).tolist() == list(range(7 - head, 23 - head))


def test_a_batch_is_a_function_of_its_step(told):
    first, again, other = told.draw(4, 3), told.draw(4, 3), told.draw(5, 3)
    assert first["hops"] == again["hops"]
    assert all(torch.equal(first[name], again[name]) for name in ("ids", "labels", "looks"))
    assert first["ids"].shape != other["ids"].shape or not torch.equal(first["ids"], other["ids"])


def test_the_loss_falls(told, tokenizer, tmp_path):
    folder = tmp_path / "model"
    vlm_net.write_processor(folder, tokenizer)
    model = vlm_net.build(folder, 4)
    model.model.visual.requires_grad_(False)
    vlm.use_attend(model)
    losses = []

    def step(net, n):
        found = vlm.story_loss(net, told, n, size=2, count=2)
        losses.append(float(found["loss"].detach()))
        return found

    Trainer(model, tmp_path, "toy", 14, 3e-3, warmup=2, adam=("embed_tokens",)).run(step)
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_eyes_learn(people, untrained, tmp_path):
    folder, _ = untrained
    visual = vlm_net.build(folder, 6).model.visual
    before = [p.detach().clone() for p in visual.parameters()]
    vlm_eyes.train_eyes(tmp_path, visual, vlm_eyes.Pixels(folder, people), 1, steps=8, size=8)
    assert all(p.dtype == torch.float32 for p in visual.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, visual.parameters(), strict=True))
    (row,) = (json.loads(line) for line in (tmp_path / "vlm-eyes.curve.jsonl").read_text().splitlines())
    assert row["step"] == 8 and np.isfinite(row["loss"])


def test_what_is_exported_loads_as_it_was(tokenizer, people, pack, tmp_path):
    folder = tmp_path / "a-model"
    vlm_net.write_processor(folder, tokenizer)
    model = vlm_net.build(folder, 7)
    ema = {"model.language_model.norm.weight": torch.full((vlm_net.WIDTH,), 0.5)}
    vlm.export(folder, SimpleNamespace(model=model, ema=ema, n=3), people, 7)
    loaded = pack.submodule("model_loaders.vlm").load_vlm(folder)
    assert loaded.describe()["licence"] == "apache-2.0"
    with loaded.model.use() as (net, _):
        found, wanted = dict(net.named_parameters()), dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        expected = ema.get(name, wanted[name].detach()).half()
        assert torch.equal(value.half().cpu(), expected), name


# The shipped one ------------------------------------------------------------------------------------------------------


def test_it_is_small_and_says_what_it_is():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= MEGABYTES * 2**20
    config = json.loads((SHIPPED / "config.json").read_text("utf-8"))
    assert config["model_type"] == "qwen2_5_vl"
    assert "license: apache-2.0" in (SHIPPED / "README.md").read_text("utf-8")


def test_it_is_found_where_models_are(pack):
    files, pretrained = pack.submodule("model_loaders.files"), pack.submodule("model_loaders.pretrained")
    assert files.find(pretrained.FOLDER, relations.NANO_VLM) == SHIPPED
    assert relations.NANO_VLM in pretrained.names()


def test_the_loader_asks_as_it_was_trained(pack, people, shipped):
    """Token for token, photos and all."""
    request, subjects = pack.submodule("idcrafter.relations.request"), pack.submodule("idcrafter.subjects.subject")
    action = "The one with the hat hides behind Zo\u00eb. \u0416 waits."
    cast = subjects.make_cast(
        [
            subjects.make_subject(name, "person", "", people.photos[i, :1].float() / 255)
            for i, name in enumerate(("Zo\u00eb", "\u0416", "Old Tom"))
        ]
    )
    parts = request.request_parts(cast, action)
    inputs = shipped.chat_inputs(parts)
    text = vlm_tokens.as_chat(tuple(p if isinstance(p, str) else None for p in parts), vlm_net.IMAGE_TOKENS)
    assert inputs["input_ids"][0].tolist() == Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).encode(text).ids
    own = vlm_eyes.Pixels(SHIPPED, people)([(0, 0), (1, 0), (2, 0)])
    assert torch.allclose(inputs["pixel_values"], own["pixel_values"].cpu(), atol=1e-5)
    assert torch.equal(inputs["image_grid_thw"], own["image_grid_thw"].cpu())


@pytest.fixture(scope="module")
def bench(pack):
    return relations.Bench(pack.submodule, 8)


def test_it_knows_sealed_people_in_unseen_sentences(bench, shipped):
    outcomes = [bench.ask(case, shipped) for case in bench.cases]
    assert all(outcome.requests == 1 for outcome in outcomes)
    assert relations.f1(outcomes) >= relations.REQUIRED["triple_f1"]
    people = sum(outcome.people for outcome in outcomes)
    assert sum(outcome.grounded for outcome in outcomes) / people >= 0.8


def test_it_calls_people_by_the_users_names(bench, shipped, pack):
    """The same sentence about the same photos, whatever they are called."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    case = next(case for case in bench.cases if len(case.story.names) == 2 and not case.by_name)
    photos = [subject.photos[0][None] for subject in case.cast.subjects]
    cast = subjects.make_cast(
        [
            subjects.make_subject(name, "person", "", photo)
            for name, photo in zip(("Marta", "Jo-2"), photos, strict=True)
        ]
    )
    related = bench.relate.relate(cast, case.story.text, shipped)
    assert related.source == "vlm"
    found = relations.judge(case, relations.read_triples(related.graph, bench.places(case)), related.requests)
    assert found.truth == found.found


def test_sealed_people_were_not_its_own(bench):
    numbers = {who.number for case in bench.cases for who in case.story.spec.identities}
    trained = set(islice(world.numbers_of_split("train", vlm_data.FIRST), vlm_data.SHARDS * vlm_data.SHARD))
    assert not numbers & trained
