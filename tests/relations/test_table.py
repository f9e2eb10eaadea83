"""Tables of shots."""

import pytest

from idcrafter.relations.table import cell, read_table, whole_number


def test_rows_by_column():
    assert read_table("action,seed\nAda hugs Bo.,1\n\n,\nBo waves.,2\n") == [
        {"action": "Ada hugs Bo.", "seed": "1"},
        {"action": "Bo waves.", "seed": "2"},
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_write(separator):
    text = f'\ufeffaction{separator}seed\r\n"Ada, then Bo;\tboth\nhug ""Cy"""{separator}7\r\nBo waves.\r\n'
    assert read_table(text) == [
        {"action": 'Ada, then Bo;\tboth\nhug "Cy"', "seed": "7"},
        {"action": "Bo waves.", "seed": ""},
    ]


def test_rows_go_round():
    table = read_table("action\na\nb\nc")
    assert [cell(table, row, "action") for row in range(5)] == ["a", "b", "c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\ufeff \n", "is empty"),
        ("action,seed\n", "no rows"),
        ("action,\nx,y", "Column 2 of the table has no name"),
        ("a,b,a\n1,2,3", "Column 3 of the table has the name of another"),
        ("a,b\n1,2\nAda, then Bo,1", "Row 2 of the table has 3 cells for 2 columns"),
        ('a\n"open', "not CSV"),
    ],
)
def test_faults_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_table(text)


def test_an_unknown_column_lists_the_known_ones():
    with pytest.raises(ValueError, match="no column 'sed', only action, seed"):
        cell(read_table("action,seed\na,1"), 0, "sed")


def test_whole_numbers():
    assert [whole_number(text) for text in ("12", " -3", "1.5", "x", "")] == [12, -3, 0, 0, 0]
