"""The JSON in what a VLM has written."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.relations.answer import parse_answer
from idcrafter.relations.graph import GraphFault

GOOD = {"subjects": [], "relations": [{"subject": "Ada", "predicate": 'says: "{no}"', "object": None}]}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        json.dumps(GOOD, indent=2),
        f"```json\n{TEXT}\n```",
        f"Sure! Here is the JSON:\n\n{TEXT}\n\nI hope {{this}} helps.",
        f'<think>Maybe {{"relations": []}}?</think>{TEXT}',
        f'I think {{"relations": []}} will do.</think>\n{TEXT}',
        f'{{"example": 1}} and then {TEXT}',
        f"{TEXT}{TEXT}",
    ],
)
def test_whole_objects_are_found_as_they_are(text):
    assert parse_answer(text) == (GOOD, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"relations": [1, 2,],}', {"relations": [1, 2]}),
        ('{"relations": [1, 2', {"relations": [1, 2]}),
        ('{"relations": [{"a": "x"}, {"a": "y', {"relations": [{"a": "x"}, {"a": "y"}]}),
        ('{"relations": [1], "scene":', {"relations": [1]}),
        ('{"relations": [1], "scene', {"relations": [1]}),
        ("{'relations': [{'a': 'it's', 'b': None}]}", {"relations": [{"a": "it's", "b": None}]}),
        ('{relations: [{"a": True}] // two\n}', {"relations": [{"a": True}]}),
        ('{"relations": [{"a": 1} {"a": 2}] "scene": "s"}', {"relations": [{"a": 1}, {"a": 2}], "scene": "s"}),
        ("{\u201crelations\u201d: [\u201cx\u201d]}", {"relations": ["x"]}),
        ('{"relations": ["he said "hi" to me"]}', {"relations": ['he said "hi" to me']}),
        ('{"relations": ["\\u00e9 \\x"]}', {"relations": ["\u00e9 x"]}),
    ],
)
def test_slips_are_mended(text, expected):
    assert parse_answer(text) == (expected, True)


def test_line_breaks_in_strings_are_no_slip():
    assert parse_answer('{"relations": ["a\nb"]}') == ({"relations": ["a\nb"]}, False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("<think>I wonder", "empty"),
        ("Ada hugs Bo.", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("{]", "not valid JSON"),
        ("{" * 20_000, "not valid JSON"),
        ('{"a":' * 5_000, "not valid JSON"),
        ('{"a":' + "[" * 50_000, "not valid JSON"),
    ],
)
def test_what_is_no_object(text, fault):
    with pytest.raises(GraphFault, match=fault):
        parse_answer(text)


@pytest.mark.parametrize("text", ["{" + "a:" * 20_000, '{"a" ' + '"b" ' * 12_000, "{'" + "x'" * 15_000])
def test_long_nonsense_does_not_take_long(text):
    started = time.process_time()
    try:
        parse_answer(text)
    except GraphFault:
        pass
    assert time.process_time() - started < 1.0


def test_what_looks_like_code_is_only_text():
    text = '{"relations": [__import__("os").system("touch /tmp/idcrafter-was-here")]}'
    try:
        data, _ = parse_answer(text)
    except GraphFault:
        return
    assert all(isinstance(each, (str, list, dict)) for each in data["relations"])


@settings(max_examples=400, deadline=None)
@given(st.text("{}[]\":,'\\ntrue10 #/x\u201c", max_size=80))
def test_nothing_but_a_fault_is_ever_raised(text):
    try:
        data, _ = parse_answer(text)
    except GraphFault:
        return
    assert isinstance(data, dict)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TEXT)))
def test_every_cut_of_a_good_answer_gives_what_was_said_by_then(end):
    try:
        data, _ = parse_answer(TEXT[:end])
    except GraphFault:
        assert end < 14
        return
    assert data.keys() <= GOOD.keys()
