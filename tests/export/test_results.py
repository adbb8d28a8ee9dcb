"""Reports as text and as plain data."""

from __future__ import annotations

from cbn.export.results import counted, format_table, is_numeric


def test_digits_stand_under_digits_and_text_starts_at_the_left() -> None:
    text = format_table(("name", "error"), [("a", "1.5e-07"), ("long one", "12"), ("b", "-")])
    assert text.splitlines() == [
        "name        error",
        "--------  -------",
        "a         1.5e-07",
        "long one       12",
        "b               -",
    ]


def test_a_column_is_numeric_only_if_all_of_it_is() -> None:
    assert is_numeric(["1", "-2.5e+03", "inf", "nan", "?", "-"])
    assert not is_numeric(["1", "x"])
    assert not is_numeric(["-", "?"])
    assert not is_numeric([])


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table(("name", "error"), []).splitlines() == ["name  error", "----  -----"]


def test_a_number_takes_its_noun_along() -> None:
    assert [counted(n, "node") for n in (0, 1, 12)] == ["0 nodes", "1 node", "12 nodes"]
    assert [counted(n, "batch") for n in (0, 1, 12)] == ["0 batches", "1 batch", "12 batches"]
