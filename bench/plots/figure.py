"""A figure as a declaration, and the pictures that it makes of rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import results
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing
from bench.results import Row

Data = dict[str, Any]
MARK = "figure of bench report, data "


@dataclass(frozen=True)
class Picture:
    """A figure of one file of rows, before it is drawn.

    Attributes:
        name: of the file, without its suffix.
        suite: whose page shows it.
        data: what was selected from the rows.
        draw: data -> a figure of matplotlib.
    """

    name: str
    suite: str
    data: Data
    draw: Callable[[Data], Any]

    @property
    def caption(self) -> str:
        """What it shows and how to read it; also the alternative text."""
        return f"{self.data['title']}. {self.data['text']}"

    @property
    def mark(self) -> str:
        """The fingerprint of data and code that the SVG carries: two that are drawn from the same
        have the same, whatever the version of matplotlib."""
        code = Path(drawing.__file__).read_text(encoding="utf-8")
        content = json.dumps(self.data, sort_keys=True) + code
        return MARK + hashlib.sha256(content.encode()).hexdigest()[:16]

    def svg(self) -> str:
        """The file as text. ImportError without matplotlib."""
        from matplotlib import style

        with style.context(["default", drawing.SETTINGS]):
            return drawing.svg(self.draw(self.data), self.mark)


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
        select: rows -> what `draw` takes, with `title` and `text`, before which the machine is
            put; None where there is nothing to show.
        draw: one of `drawing`.
        by_dtype: whether each dtype has a picture of its own.
    """

    name: str
    suites: tuple[str, ...]
    select: Callable[[list[Row]], Data | None]
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
                    data["text"] = ". ".join(filter(None, (data["machine"], data["text"])))
                    name = f"{self.name}-{file.removesuffix('.jsonl')}{suffix}"
                    yield Picture(name, suite, data, self.draw)
