"""The deterministic composer: names become descriptions or ordinals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.relations.compose import ORDINALS, compose, definite, tidy
from idcrafter.subjects.subject import MAX_SUBJECTS, Subject, make_subject

PHOTO = torch.zeros((1, 16, 16, 3))


def who(name, description="", kind="person") -> Subject:
    return make_subject(name, kind, description, PHOTO)


ADA = who("Ada", "a woman with red hair")
BO = who("Bo", "an old man in a hat.")
DOG = who("Dog", "a brown dog", "animal")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("Ada hugs Bo", "A woman with red hair hugs an old man in a hat."),
        (
            "Ada hugs Bo. Then Ada smiles!",
            "A woman with red hair hugs an old man in a hat. Then the woman with red hair smiles!",
        ),
        ("  Ada   hugs\n\nBo ,", "A woman with red hair hugs an old man in a hat."),
        ("Ada's hat falls on Bo", "A woman with red hair's hat falls on an old man in a hat."),
        ("Near a lake: Ada, Bo", "Near a lake: a woman with red hair, an old man in a hat."),
        ('Bo says: "Ada!"', 'An old man in a hat says: "a woman with red hair!"'),
        ("Adam sees (Ada) and Bo", "Adam sees (a woman with red hair) and an old man in a hat."),
        (
            "ada and Ada-Marie wave at Ada and Bo",
            "ada and Ada-Marie wave at a woman with red hair and an old man in a hat.",
        ),
        ("Ada waves", "A woman with red hair waves. An old man in a hat is also in the scene."),
        ("It rains?", "It rains? A woman with red hair and an old man in a hat are also in the scene."),
        ("", "A woman with red hair and an old man in a hat."),
    ],
)
def test_descriptions(action, expected):
    assert compose([ADA, BO], action) == expected


def test_ordinals_in_the_dialect_of_nano():
    first = who("Ada", "a teal puppet with red hair and a yellow hat")
    second = who("Bo", "a green puppet with glasses")
    assert compose([first, second], "Ada is on the left and waves. Bo is on the right and nods.", "ordinals") == (
        "The first is a teal puppet with red hair and a yellow hat. The second is a green puppet with glasses. "
        "The first is on the left and waves. The second is on the right and nods."
    )
    assert compose([first, second], "Bo takes Ada's hat", "ordinals").endswith("The second takes the first's hat.")


def test_people_in_the_dialect_of_identity_grpo():
    """Whoever is no person is called what it is."""
    assert compose([ADA, DOG, BO], "Ada hugs Bo. Dog sits beside Ada.", "people") == (
        "The first person is a woman with red hair. The second animal is a brown dog. The third person is an old man "
        "in a hat. The first person hugs the third person. The second animal sits beside the first person."
    )


def test_images_in_the_dialect_of_bernini():
    """Counted from zero, in the order of the cast and so of the references, however often they are spoken of."""
    assert compose([ADA, BO], "Bo hugs Ada. Ada smiles.", "images") == (
        "An old man in a hat from image1 hugs a woman with red hair from image0. "
        "The woman with red hair from image0 smiles."
    )
    assert compose([ADA, BO], "Ada waves", "images").endswith("An old man in a hat from image1 is also in the scene.")


def test_there_is_an_ordinal_for_everybody():
    cast = [who(f"S{i}", f"look {i}") for i in range(MAX_SUBJECTS)]
    assert f"The {ORDINALS[-1]} is look {MAX_SUBJECTS - 1}." in compose(cast, "S0 waves", "ordinals")


def test_empty_descriptions_name_the_kind():
    cast = [who("Ada"), who("Rex", "  ", "animal"), who("Vase", ".", "object")]
    assert compose(cast, "Ada gives Rex Vase") == "A person gives an animal an object."


def test_an_article_of_the_action_is_not_doubled():
    assert compose([DOG], "The Dog sleeps. A cat wakes the Dog.") == "The brown dog sleeps. A cat wakes the brown dog."
    assert compose([DOG], "A cat wakes the Dog", "ordinals").endswith("A cat wakes the first.")


def test_names_that_are_words_keep_the_words():
    will = who("Will", "a tall man")
    assert compose([will], "Will will wait at will") == "A tall man will wait at will."


def test_the_longest_name_wins():
    cast = [who("Ann", "a girl"), who("Ann Lee", "a boy"), who("Mary-Ann", "a cat")]
    assert compose(cast, "Ann Lee, Ann and Mary-Ann dance") == "A boy, a girl and a cat dance."


def test_other_scripts_and_emoji():
    ming, li = who("\u5c0f\u660e", "a boy"), who("\u5c0f\u660e\u5a1c", "a girl")
    assert compose([ming, li], "\u5c0f\u660e\u8dd1\u5411\u5c0f\u660e\u5a1c\u3002") == "A boy\u8dd1\u5411a girl\u3002"
    zoe = who("Zoe\u0308", "a woman")
    assert compose([zoe], "Zo\u00eb and Zoe\u0308lla") == "A woman and Zo\u00eblla."
    astronaut = "\U0001f469\u200d\U0001f680"
    plain = who("\U0001f469", "a nurse")
    assert compose([plain, who(astronaut, "a pilot")], f"\U0001f469 meets {astronaut}") == "A nurse meets a pilot."
    assert compose([plain], f"{astronaut} waves") == f"{astronaut} waves. A nurse is also in the scene."


def test_surnames_with_an_apostrophe_are_whole_words():
    cast = [who("Neil", "a man")]
    assert compose(cast, "O'Neil meets Neil, Neil's friend") == "O'Neil meets a man, the man's friend."


@pytest.mark.parametrize(
    ("description", "again"),
    [
        ("a tall man", "the tall man"),
        ("An owl", "the owl"),
        ("the last unicorn", "the last unicorn"),
        ("two dogs", "the two dogs"),
        ("his brother", "his brother"),
        ("Napoleon", "Napoleon"),
    ],
)
def test_the_second_mention_is_definite(description, again):
    assert definite(description) == again


def test_unknown_wording():
    with pytest.raises(ValueError, match="choose one of descriptions, ordinals"):
        compose([ADA], "", "poem")


words = st.text("abcdeXYZ", min_size=1, max_size=6)
names = st.lists(st.text("KLMNOkl", min_size=1, max_size=5), min_size=1, max_size=8, unique_by=str.casefold)
noise = st.text(" \t\n.,;:!?'\"()-aKLk", max_size=40)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), chosen=names, wording=st.sampled_from(["descriptions", "ordinals"]))
def test_everybody_is_described_and_nobody_is_named(data, chosen, wording):
    looks = [f"a {data.draw(words)} {'x' * (i + 1)}" for i in range(len(chosen))]
    cast = [who(name, look) for name, look in zip(chosen, looks, strict=True)]
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(chosen), words), max_size=12))
    prompt = compose(cast, " ".join(pieces), wording)
    for look in looks:
        assert look.lower()[2:] in prompt.lower()
    for name in chosen:
        assert not re.search(rf"(?<!\w){name}(?!\w)", prompt), (name, prompt)
    assert prompt == compose(cast, " ".join(pieces), wording)
    if wording == "ordinals":
        assert all(f"The {ORDINALS[i]} is {look}." in prompt for i, look in enumerate(looks))


@settings(max_examples=500, deadline=None)
@given(text=noise)
def test_tidying_is_idempotent_and_prompts_are_tidy(text):
    once = tidy(text)
    assert tidy(once) == once
    assert "  " not in once and once == once.strip()
    prompt = compose([who("Kim", "a man")], text)
    assert tidy(prompt) == prompt
    assert prompt[-1] in ".!?\"')"
