"""The table."""

from idcrafter.rewards.table import report_table
from support.reports import make_report


def test_columns_line_up_and_the_best_is_starred():
    lines = report_table(make_report(["Ada", "Zo\u00eb"], [[0.5, 0.4], [0.7, None], [0.9, 0.8]])).splitlines()
    head, rule, *rows = lines[:5]
    assert head.split() == ["take", "seed", "score", "mean", "min", "Ada", "Zo\u00eb", "missing", "extra", "swaps"]
    assert [row[0] for row in rows] == [" ", " ", "*"]
    for title in ("seed", "Ada", "missing"):
        column = head.index(title)
        assert all(row[column - 1] == " " and row[column] != " " for row in rows)
    assert set(rule) == {"-"}
    assert "0.90 (100%)" in rows[2] and "0.00 (0%)" in rows[1]
    assert lines[-1] == "Faces: painted (licence: none needed)"


def test_wide_characters_count_double():
    lines = report_table(make_report(["\u674e\u96f7", "Bo"], [[0.5, 0.4]])).splitlines()
    # Two wide characters take four columns, so the text is two characters shorter than its width.
    assert lines[0].index("Bo") == lines[2].index("0.40 (100%)") - 2


def test_notes_and_warnings_only_where_there_are_any():
    report = make_report(["Ada"], [[0.5]])
    assert "note" not in report_table(report)
    report["takes"][0]["note"] = "nothing moves"
    report["warnings"] = ["photo 2 left out."]
    text = report_table(report)
    assert "nothing moves" in text.splitlines()[2] and text.endswith("Warning: photo 2 left out.")
