"""A figure as a declaration, and the pictures that it makes of rows."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import results
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, selection
from bench.results import Row

Data = dict[str, Any]
MARK = "figure of bench report, data "


@dataclass(frozen=True)
class Picture:
    """A figure of one file of rows, before it is drawn.

    Attributes:
        name: of the file, without its suffix.
        suite: whose page shows it.
        figure: that it is one of.
        data: what was selected from the rows.
    """

    name: str
    suite: str
    figure: Figure
    data: Data

    @property
    def caption(self) -> str:
        """The main result and its conditions; also the alternative text."""
        return self.figure.caption(self.data)

    @property
    def mark(self) -> str:
        """The fingerprint of data and code that the SVG carries: two that are drawn from the same
        have the same, whatever the version of matplotlib."""
        content = json.dumps(self.data, sort_keys=True)
        for module in (drawing, selection, inspect.getmodule(self.figure.draw)):
            content += inspect.getsource(module)
        return MARK + hashlib.sha256(content.encode()).hexdigest()[:16]

    def svg(self) -> str:
        """The file as text. ImportError without matplotlib."""
        from matplotlib import style

        with style.context(["default", drawing.SETTINGS]):
            return drawing.svg(self.figure.draw(self.data), self.mark)


def marked(svg: str) -> str | None:
    """The mark in the text of an SVG file; None where it is not one of ours."""
    found = re.search(re.escape(MARK) + r"[0-9a-f]{16}", svg)
    return found[0] if found else None


@dataclass(frozen=True)
class Figure:
    """What a figure shows of the rows of a file.

    Attributes:
        name: of the files of its pictures.
        suites: whose rows it shows; the page of the first one with rows shows it.
        select: rows -> data, to which the machine is added; None where there is nothing to show.
        caption: data -> the main result and its conditions.
        draw: data -> a figure of matplotlib.
        by_dtype: whether each dtype has a picture of its own.
    """

    name: str
    suites: tuple[str, ...]
    select: Callable[[list[Row]], Data | None]
    caption: Callable[[Data], str]
    draw: Callable[[Data], Any]
    by_dtype: bool = False

    def pictures(self, files: Mapping[str, Sequence[Row]]) -> Iterator[Picture]:
        """One for each file, or dtype of a file, with something to show."""
        for file, rows in results.rows_of(files, *self.suites):
            suites = {row["suite"] for row in rows}
            suite = next(suite for suite in self.suites if suite in suites)
            parts = {"": rows}
            if self.by_dtype:
                parts = {f"-{v}": [r for r in rows if r.get("dtype") == v] for v in CUDA_VARIANTS}
            for suffix, some in parts.items():
                data = self.select(some) if some else None
                if data is not None:
                    data["machine"] = results.machine(some)
                    name = f"{self.name}-{file.removesuffix('.jsonl')}{suffix}"
                    yield Picture(name, suite, self, data)
