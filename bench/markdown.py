"""The Markdown that suites write."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table_line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def table(
    heads: Sequence[str], lines: Sequence[Sequence[str]], left: int | Collection[int] = 1
) -> str:
    """A table; to the left: the first columns, or those with these indices."""
    words = range(left) if isinstance(left, int) else left
    rule = ["---" if index in words else "---:" for index in range(len(heads))]
    return "\n".join(map(table_line, (heads, rule, *lines)))


def details(title: str, text: str) -> str:
    """A section that is closed until it is clicked."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


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
