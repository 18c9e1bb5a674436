"""typer and rich where they are installed, plain stand-ins where not.

Timing needs neither, and a machine that is only there for its GPU may lack both. Without typer
there is no `python -m bench`; `python -m bench.gpu` works all the same.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

try:
    import typer
except ModuleNotFoundError:
    typer = None

MARKUP = re.compile(r"\[/?[a-z ]*\]")


class PlainConsole:
    """What the suites use of rich's Console: `print` and `is_terminal`; markup is dropped."""

    def __init__(self, file: TextIO | None = None, **_: Any) -> None:
        self.file = file
        self.is_terminal = False

    def print(self, *objects: object, **_: Any) -> None:
        """Writes the objects on a line of their own."""
        text = MARKUP.sub("", " ".join(str(each) for each in objects))
        print(text, file=self.file or sys.stdout, flush=True)


class PlainTable:
    """What the suites use of rich's Table; prints as aligned columns."""

    def __init__(self, title: str = "", **_: Any) -> None:
        self.title = title
        self.heads: list[str] = []
        self.rows: list[tuple[str, ...]] = []

    def add_column(self, head: str, **_: Any) -> None:
        """Adds a column at the right."""
        self.heads.append(head)

    def add_row(self, *cells: str) -> None:
        """Adds a row at the bottom; as many cells as columns."""
        self.rows.append(cells)

    def __str__(self) -> str:
        table = [tuple(self.heads), *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.heads))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([self.title, *lines])


try:
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    Console, Table = PlainConsole, PlainTable

__all__ = ["Console", "PlainConsole", "PlainTable", "Table", "typer"]
