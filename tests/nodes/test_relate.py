"""IDCrafterRelate with a VLM and with an edited graph, IDCrafterLoadVLM's choices, and IDCrafterReadTable."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch

from support import tiny_vision
from support.scripted_vlm import ScriptedVLM, answer

ACTION = "The one with the hat hugs Ada."
GOOD = answer((("Bo", "hugs", "Ada"),))


@pytest.fixture
def cast(pack):
    photos = {"Ada": torch.full((2, 40, 30, 3), 0.3), "Bo": torch.full((1, 32, 32, 3), 0.6)}
    made = [
        pack.execute("IDCrafterSubject", name=name, kind="person", description="", images=images)[0]
        for name, images in photos.items()
    ]
    return pack.execute("IDCrafterCast", subjects={f"subject{i}": each for i, each in enumerate(made)})[0]


@pytest.fixture(autouse=True)
def kept(pack):
    """Where answers are kept; emptied, in memory too."""
    pack.submodule("idcrafter.relations.store").forget()
    folder = Path(folder_paths.get_output_directory()) / "idcrafter" / "relations"
    for file in folder.glob("*"):
        file.unlink()
    return folder


def test_a_graph_from_before_the_vlm_still_runs(pack, cast):
    result = pack.execute("IDCrafterRelate", cast=cast, action="Ada hugs Bo.", wording="ordinals")
    assert result[0] == "The first is a person. The second is a person. The first hugs the second."
    assert json.loads(result[1])["relations"][0]["predicate"] == "hugs"
    assert result[3].startswith("No VLM")


def test_new_inputs_stand_behind_the_old_ones_and_are_optional(pack):
    inputs = pack.nodes["IDCrafterRelate"].GET_SCHEMA().inputs
    assert [each.id for each in inputs] == ["cast", "action", "wording", "vlm", "descriptions", "temperature", "seed",
                                            "max_tokens", "graph"]  # fmt: skip
    assert [each.optional for each in inputs] == [False] * 3 + [True] * 6
    loader = pack.nodes["IDCrafterLoadVLM"].GET_SCHEMA().inputs
    assert [(each.id, each.optional) for each in loader] == [("model", False), ("precision", True), ("clip", True)]


def test_by_a_vlm_with_one_repair(pack, cast, kept):
    vlm = ScriptedVLM("Sure!", GOOD)
    prompt, graph, picture, note = result = pack.execute("IDCrafterRelate", cast=cast, action=ACTION, vlm=vlm)
    assert prompt == "An old man in a hat hugs a woman with red hair."
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.dtype == torch.float32
    assert note.splitlines()[0] == "Relations by Scripted, licence mit." and "the second one could" in note
    assert result.ui["text"][0] == f"{prompt}\n\n{note}"
    assert json.loads(graph)["format"] == "idcrafter.relations"
    assert len(list(kept.glob("*.json"))) == 1
    assert pack.execute("IDCrafterRelate", cast=cast, action=ACTION, vlm=vlm)[0] == prompt
    assert len(vlm.asked) == 2


def test_an_edited_graph_goes_before_the_vlm(pack, cast):
    vlm = ScriptedVLM(GOOD)
    first = pack.execute("IDCrafterRelate", cast=cast, action=ACTION, vlm=vlm, wording="ordinals")
    edited = first[1].replace('"hugs"', '"kisses"')
    second = pack.execute("IDCrafterRelate", cast=cast, action=ACTION, vlm=vlm, wording="ordinals", graph=edited)
    assert second[0] == first[0].replace("hugs", "kisses") and len(vlm.asked) == 1
    assert not torch.equal(first[2], second[2])
    with pytest.raises(ValueError, match="The graph is not JSON .*empty the field"):
        pack.execute("IDCrafterRelate", cast=cast, action=ACTION, graph="{")


def test_descriptions_from_the_photos_or_as_typed(pack, cast):
    typed = pack.submodule("idcrafter.subjects.subject")
    ada = typed.make_subject("Ada", "person", "my aunt", torch.zeros(1, 20, 20, 3))
    both = typed.make_cast([ada, cast.subjects[1]])
    for choice, look in (("typed", "my aunt"), ("photos", "a woman with red hair")):
        got = pack.execute("IDCrafterRelate", cast=both, action=ACTION, vlm=ScriptedVLM(GOOD), descriptions=choice)[0]
        assert got == f"An old man in a hat hugs {look}."


def test_an_interrupt_stops_the_graph(pack, cast):
    from comfy.model_management import InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        pack.execute("IDCrafterRelate", cast=cast, action=ACTION, vlm=ScriptedVLM(InterruptProcessingException()))


def test_a_net_that_writes_nonsense_still_gives_a_prompt(pack, cast):
    """A Qwen2.5-VL with random weights, from its folder, on the CPU."""
    folder = Path(folder_paths.get_folder_paths("idcrafter_rewards")[0]) / "tiny-writer"
    if not folder.exists():
        tiny_vision.write_vlm(folder)
    vlm = pack.execute("IDCrafterLoadVLM", model="tiny-writer", precision="fp32")[0]
    result = pack.execute("IDCrafterRelate", cast=cast, action="Ada hugs Bo.", vlm=vlm, max_tokens=64)
    assert result[0] == "A person hugs a person."
    assert result[3].startswith("Warning: nothing that tiny-writer answered could be used (")


def test_a_missing_model_names_its_own_repository(pack):
    for name in ("Qwen3-VL-4B-Instruct", "Qwen2.5-VL-3B-Instruct"):
        with pytest.raises(FileNotFoundError, match=f"hf download Qwen/{name} --local-dir"):
            pack.execute("IDCrafterLoadVLM", model=name)


def test_a_clip_takes_the_place_of_the_folder(pack):
    class Clip:
        tokenizer, cond_stage_model = type("T", (), {"clip_name": "l"})(), torch.nn.Identity()

    with pytest.raises(ValueError, match="'CLIP l' only encodes text"):
        pack.execute("IDCrafterLoadVLM", model="not there", clip=Clip())


# Tables ---------------------------------------------------------------------------------------------------------------

TABLE = "action,seed\nAda hugs Bo.,7\nBo waves.,x\n"


def read(pack, **inputs):
    return pack.execute("IDCrafterReadTable", **{"file": "(the text)", "text": TABLE, "row": 0, "column": "action",
                                                 **inputs})  # fmt: skip


def test_cells_of_a_typed_table(pack):
    assert tuple(read(pack)) == ("Ada hugs Bo.", 0, 2)
    assert tuple(read(pack, row=3)) == ("Bo waves.", 0, 2)
    assert tuple(read(pack, column=" seed ")) == ("7", 7, 2)
    assert read(pack, row=1).ui["text"][0] == "row 1 of 2: Bo waves."
    with pytest.raises(ValueError, match="no column 'name', only action, seed"):
        read(pack, column="name")


def test_cells_of_a_file_and_what_makes_them_new(pack):
    node = pack.nodes["IDCrafterReadTable"]
    file = Path(folder_paths.get_input_directory()) / "shots.csv"
    file.write_bytes("\ufeffaction;seed\r\nAda z\u00f6gert;3\r\n".encode())
    assert "shots.csv" in next(each for each in node.GET_SCHEMA().inputs if each.id == "file").options
    assert tuple(read(pack, file="shots.csv")) == ("Ada z\u00f6gert", 0, 1)
    before = node.fingerprint_inputs("shots.csv", "", 0, "action")
    file.write_text("action\nBo runs")
    assert node.fingerprint_inputs("shots.csv", "", 0, "action") != before
    file.write_bytes("action\nz\u00f6gert".encode("latin-1"))
    with pytest.raises(ValueError, match="'shots.csv' is not UTF-8"):
        read(pack, file="shots.csv")
    file.unlink()
    for name in ("shots.csv", "../secret.csv", "/etc/passwd"):
        with pytest.raises(ValueError, match="no table .* in ComfyUI's input folder"):
            read(pack, file=name)
