"""Tables as lists of columns, lines in words, and paragraphs from `reading.md`."""

from __future__ import annotations

import pytest

from bench.markdown import Column, joined, reading, short, spread, table_of, titled

COLUMNS = [
    titled({"ours": "barlow_fast"}),
    *spread("ms", short, bold=lambda row: row["peer"] == "ours"),
    Column("share", "share", ".1%", missing=""),
    Column("twice", lambda row: 2 * row["median_ms"] if row["median_ms"] else None),
]
OURS = {"peer": "ours", "median_ms": 2.0, "p20_ms": 1.5, "p80_ms": 123.4, "share": 0.125}
OTHER = {"peer": "other", "median_ms": None}


def test_a_table_has_a_line_for_each_row():
    assert table_of(COLUMNS, [OURS, OTHER]).splitlines() == [
        "| implementation | ms | p20 | p80 | share | twice |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| barlow_fast | **2** | 1.5 | 123 | 12.5% | 4.0 |",
        "| other | – | – | – |  | – |",
    ]


def test_paragraphs_are_joined_and_filled():
    text = reading("largest", n=256, title="float32", gigabytes=20.0)
    assert text.startswith("N = 256, float32, 20 GB for one forward and backward pass: inputs,")
    assert "\n" not in text
    assert reading("memory cpu").startswith("Extra: ")
    assert joined("a", "", "b") == "a\n\nb"
    with pytest.raises(KeyError, match="n"):
        reading("largest")
