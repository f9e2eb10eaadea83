"""The table: which cell sets which input, and what is said about a table or a graph that is wrong."""

import copy
import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.collect import cases, graph, plan
from support.collecting import GRAPH, SCHEMAS


@pytest.fixture
def write(tmp_path):
    def write(text, name="cases.csv"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def request_of(write):
    """A request of the graph above and a table."""
    return lambda text, nodes=GRAPH: plan.read_request(write(json.dumps(nodes), "graph.json"), write(text))


def filled(request, tmp_path):
    return plan.fill(request, SCHEMAS, tmp_path)


def test_cells_set_inputs_by_title_and_by_id(request_of, tmp_path):
    request = request_of(
        "Sample v1.0.seed,# note,2.text,Sample v1.0.fast,Photo.image,Sample v1.0.strength\n"
        '7,first,"Ada, then Bo",yes,bo.png,0.5\n'
        "\n"
        "8,second,,no,,\n"
    )
    one, two = filled(request, tmp_path)
    assert one["2"]["inputs"] | {"image": 0} == {
        "seed": 7, "cfg": 2.5, "text": "Ada, then Bo", "fast": True, "method": "euler", "image": 0, "strength": 0.5
    }  # fmt: skip
    assert one["1"]["inputs"]["image"] == "bo.png"
    assert two["2"]["inputs"] == {**GRAPH["2"]["inputs"], "seed": 8} and two["1"] == GRAPH["1"]
    assert [case.row for case in request.table.cases] == [2, 4]  # as a spreadsheet counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("table")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12).map(str.strip)
SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SEEDS, WORDS), min_size=1, max_size=5, unique_by=lambda case: case[0]))
def test_any_text_and_seed_comes_through(folder, rows):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["2.seed", "2.text"], *rows])
    path = folder / "cases.csv"
    path.write_bytes(text.getvalue().encode())
    table = cases.read_table(path)
    kind_of = lambda target: graph.guessed_kind(GRAPH, target)  # noqa: E731
    graphs = cases.fill(GRAPH, table, cases.bind(table, GRAPH), kind_of)
    before = GRAPH["2"]["inputs"]["text"]
    assert [(g["2"]["inputs"]["seed"], g["2"]["inputs"]["text"]) for g in graphs] == [(s, w or before) for s, w in rows]


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_every_digit(number):
    assert cases.convert(repr(number), "FLOAT") == number
    with pytest.raises(ValueError, match="not a whole number"):
        cases.convert(f"{number!r}x", "INT")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no header"),
        ("2.seed\n", "no row below"),
        ("2.seed;2.text\n1;a\n", "semicolons"),
        ("2.seed,\n1,2\n", "Column 2 of 'cases.csv' has no name"),
        ("2.seed,2.seed\n1,2\n", "two columns '2.seed'"),
        ("2.seed,Sample v1.0.seed\n1,2\n", "set the same input"),
        ("# a\n1\n", "notes"),
        ("2.seed,2.text\n1,a\n2,b,c\n", "Row 3 of 'cases.csv' has 3 cells, the header has 2"),
        ("2.seed,# x\n1,a\n2,\n1,b\n", "rows 2 and 4"),
        ("seed\n1\n", "Column 'seed' of 'cases.csv': the graph has no such node and input"),
        ("Sample v1.0.sed\n1\n", None),
        ("Sampel v1.0.seed\n1\n", "did you mean 'Sample v1.0.seed'"),
        ("2.image\n1\n", r"'Photo' \(node 1\)"),
        ("2.seed\none\n", "Row 2, column '2.seed' of 'cases.csv': 'one' is not a number"),
        (
            "2.seed,2.fast\n1,true\n2,maybe\n",
            "Row 3, column '2.fast' of 'cases.csv': 'maybe' is neither true nor false",
        ),
        ('2.text\n"a', "not CSV"),
    ],
)
def test_a_wrong_table_is_refused_without_comfyui(request_of, table, message):
    if message is None:  # an input that nobody has set may exist: the schema decides
        assert request_of(table)
        return
    with pytest.raises(ValueError, match=message):
        request_of(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Sample v1.0.sed\n1\n", r"'Sample v1.0' \(node 2\) has no input 'sed' \(did you mean 'seed'"),
        ("2.seed\n5.5\n", "Row 2, column '2.seed' of 'cases.csv': '5.5' is not a whole number"),
        ("2.seed\n1\n100\n", r"Row 3, column '2.seed': 'Sample v1.0' \(node 2\), seed: 100 is above 99"),
        ("2.cfg\n-1\n", "-1.0 is below 0.0"),
        ("2.method\nheum\n", "'heum' is none of its 2 choices .did you mean 'heun'"),
        ("1.image\ncleo.png\n", "Row 2, column '1.image': .*'cleo.png' is none of its 2 choices"),
    ],
)
def test_a_wrong_value_is_refused_before_any_row_runs(request_of, tmp_path, table, message):
    request = request_of(table)
    with pytest.raises(ValueError, match=message):
        filled(request, tmp_path)


def test_all_that_is_wrong_is_said_at_once(request_of, tmp_path):
    with pytest.raises(ValueError) as caught:
        filled(request_of("2.seed,2.cfg\n100,1\n2,11\n"), tmp_path)
    assert "Row 2, column '2.seed'" in str(caught.value) and "Row 3, column '2.cfg'" in str(caught.value)


def test_a_photo_in_a_subfolder_counts_though_no_list_has_it(request_of, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "cleo.png").touch()
    (made,) = filled(request_of("1.image\nmore/cleo.png\n"), tmp_path)
    assert made["1"]["inputs"]["image"] == "more/cleo.png"


def test_a_title_that_two_nodes_have_is_refused(request_of):
    nodes = copy.deepcopy(GRAPH)
    nodes["9"] = copy.deepcopy(nodes["2"])
    with pytest.raises(ValueError, match="any of 2.seed, 9.seed; write the id"):
        request_of("Sample v1.0.seed\n1\n", nodes)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"nodes": [], "links": []}, "as the canvas saves it"),
        ([], "not an API graph"),
        ({"1": {"inputs": {}}}, "Node 1 of 'graph.json' has no class_type"),
        ({"1": {"class_type": "A", "inputs": {"x": ["7", 0]}}}, "'x' comes from node 7, which is not there"),
        ({**GRAPH, "3": {"class_type": "IDCrafterSaveRollouts", "inputs": {"folder": ["2", 0]}}}, "write it in"),
    ],
)
def test_a_wrong_graph_is_refused(request_of, nodes, message):
    with pytest.raises(ValueError, match=message):
        request_of("2.seed\n1\n", nodes)


def test_what_the_server_would_ignore_or_run_by_half_is_found():
    def reasons(change):
        nodes = copy.deepcopy(GRAPH)
        change(nodes)
        return " ".join(problem.reason for problem in graph.check(nodes, SCHEMAS))

    assert reasons(lambda nodes: None) == ""
    assert "install the pack" in reasons(lambda nodes: nodes["2"].update(class_type="Other"))
    assert "required" in reasons(lambda nodes: nodes["2"]["inputs"].pop("cfg"))
    assert "node 1 has no output 3" in reasons(lambda nodes: nodes["2"]["inputs"].update(image=["1", 3]))
    assert "no node of the graph has an output" in reasons(lambda nodes: nodes.pop("3"))
