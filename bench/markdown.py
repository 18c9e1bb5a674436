"""The Markdown that suites write: tables of columns, paragraphs of `reading.md`, numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READING = Path(__file__).with_name("reading.md")
NONE = "–"

Shown = str | Callable[[Any], str]


@dataclass(frozen=True)
class Column:
    """One column of a table whose lines are rows of results, or whatever `value` takes.

    Attributes:
        head: above its cells.
        value: key of a row, or row -> value; None where there is none.
        shown: format specification of the value, or value -> text.
        left: whether the cells are words.
        missing: the cell of None.
        bold: row -> whether its cell is marked as the best, or as ours.
    """

    head: str
    value: str | Callable[[Any], Any]
    shown: Shown = ""
    left: bool = False
    missing: str = NONE
    bold: Callable[[Any], Any] | None = None

    def cell(self, row: Any) -> str:
        """The text of a row's cell."""
        value = self.value(row) if callable(self.value) else row.get(self.value)
        if value is None:
            return self.missing
        text = self.shown(value) if callable(self.shown) else format(value, self.shown)
        return f"**{text}**" if self.bold is not None and self.bold(row) else text


SHAPE = Column("N × D", lambda row: f"{row['n']} × {row['d']}")


def titled(titles: Mapping[str, str], head: str = "implementation") -> Column:
    """The column of peers by their titles."""
    return Column(head, lambda row: titles.get(row["peer"], row["peer"]), left=True)


def spread(unit: str, shown: Shown, head: str | None = None, **marks: Any) -> list[Column]:
    """The columns of `timing.columns`: median, p20 and p80; `marks` of the first."""
    median = Column(head or unit, f"median_{unit}", shown, **marks)
    return [median, *(Column(name, f"{name}_{unit}", shown) for name in ("p20", "p80"))]


def table_of(columns: Sequence[Column], rows: Iterable[Any]) -> str:
    """A table with a line for each row."""
    rule = ["---" if column.left else "---:" for column in columns]
    lines = [[column.head for column in columns], rule]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reading(name: str, **values: Any) -> str:
    """How to read the tables of a suite: a section of `reading.md`, its {placeholders} filled."""
    sections = re.split(r"^## (.+)\n", READING.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))[name]
    paragraphs = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs).format(**values)


def unmeasured(suite: str, rows: Sequence[Mapping[str, Any]], file: str) -> str:
    """Where rows come from that no device has measured: the section `suite origin`."""
    origin = rows[0]["provenance"]
    return reading(f"{suite} origin", **(origin | {"date": origin["date"][:10], "file": file}))


def joined(*parts: str) -> str:
    """Paragraphs and tables one below the other; empty ones are left out."""
    return "\n\n".join(filter(None, parts))


def details(title: str, text: str) -> str:
    """A section that is closed until it is clicked."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def target(words: str, met: bool, found: str) -> str:
    """A sentence that states whether a target is met; else what was found."""
    return f"The target of {words} is {'met' if met else f'missed ({found})'}."


def capital(text: str) -> str:
    """With a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float) -> str:
    """Three significant digits with thousands separators, such as 12,300."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    """How many times as fast."""
    digits = 0 if ratio >= 20 else 1 if ratio >= 2 else 2
    return f"{ratio:.{digits}f}×"
