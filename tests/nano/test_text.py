"""Captions and the tokenizer."""

import numpy as np
import pytest

from idcrafter.nano.recipes import text
from idcrafter.nano.world.crowd import MOVES, CrowdSpec


@pytest.fixture(scope="module")
def tokenizer():
    return text.Tokenizer.train(21)


def test_captions_state_the_facts_that_label_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        spec = text.random_spec(rng)
        caption, facts = text.caption(spec, 1)
        assert text.caption(spec, 1)[0] == caption
        assert len(facts) == len(spec.identities)
        for ordinal, fact in zip(("The first", "The second", "The third", "The fourth"), facts, strict=False):
            introduction = next(s for s in caption.split(". ") if s.startswith(f"{ordinal} is a puppet"))
            assert ("glasses" in introduction) == bool(fact["glasses"])
            assert ("jumper" in introduction) == bool(fact["clothes"])
            assert text.COLOURS[fact["clothes"]] in introduction or not fact["clothes"]


def test_captions_of_crowds_state_who_moves_with_whom():
    rng = np.random.default_rng(3)
    specs = [spec for spec in (text.random_spec(rng) for _ in range(80)) if isinstance(spec, CrowdSpec)]
    assert {spec.move for spec in specs} == set(MOVES)
    for spec in specs:
        _, facts = text.caption(spec, 0)
        moving = {i for i, fact in enumerate(facts) if fact["move"]}
        assert moving == {i for i in (spec.a, spec.b) if i is not None}
        for i in moving:
            partner = facts[i]["partner"] - 1
            assert {i, partner} == {spec.a, spec.b}


def test_tokens_end_and_are_padded(tokenizer):
    rng = np.random.default_rng(1)
    captions = [text.caption(text.random_spec(rng), 0)[0] for _ in range(40)]
    ids = tokenizer(captions)
    assert ids.shape == (40, text.LENGTH)
    assert ((ids == text.END).sum(1) == 1).all()
    assert ids.max() < text.CONFIG["vocab_size"]
    lengths = (ids != text.PAD).sum(1)
    assert lengths.float().median() < text.LENGTH  # words are whole tokens
    assert tokenizer.processor.decode(ids[0, : lengths[0] - 1].tolist()) == captions[0] or lengths[0] == text.LENGTH


def test_words_that_no_caption_holds_still_have_tokens(tokenizer):
    ids = tokenizer(["Zoe juggles 3 quiches!"])[0]
    assert (ids == tokenizer.processor.unk_id()).sum() == 0
