"""Subject, Cast, Relate as nodes."""

import pytest
import torch


def subject(pack, name, **inputs):
    inputs = {"kind": "person", "description": "", "images": torch.rand((1, 24, 24, 3)), **inputs}
    return pack.execute("IDCrafterSubject", name=name, **inputs)[0]


def test_subject(pack):
    made = subject(pack, " Ada ", description="a woman\nin red ")
    assert (made.name, made.description, len(made.photos)) == ("Ada", "a woman in red", 1)


def test_the_order_of_a_cast_is_that_of_its_slots(pack):
    slots = {f"subject{i}": subject(pack, f"S{i}") for i in (7, 0, 2)}
    cast = pack.execute("IDCrafterCast", subjects={"subject2": slots["subject2"], **slots})[0]
    assert [s.name for s in cast.subjects] == ["S0", "S2", "S7"]


def test_unconnected_slots_are_skipped_and_an_empty_cast_is_refused(pack):
    cast = pack.execute("IDCrafterCast", subjects={"subject0": subject(pack, "A"), "subject1": None})[0]
    assert len(cast.subjects) == 1
    for nothing in ({}, None, {"subject0": None}):
        with pytest.raises(ValueError, match="cast is empty"):
            pack.execute("IDCrafterCast", subjects=nothing)


def test_duplicate_names_are_refused(pack):
    with pytest.raises(ValueError, match=r"Subjects 1 \('Ada'\) and 2 \('ADA'\)"):
        pack.execute("IDCrafterCast", subjects={"subject0": subject(pack, "Ada"), "subject1": subject(pack, "ADA")})


def test_relate(pack, cast):
    text = pack.execute("IDCrafterRelate", cast=cast, action="Ada pets Bo", wording="descriptions")[0]
    assert text == "A teal puppet with red hair pets a brown dog."
    text = pack.execute("IDCrafterRelate", cast=cast, action="Ada pets Bo", wording="ordinals")[0]
    assert text.endswith("The first pets the second.")
