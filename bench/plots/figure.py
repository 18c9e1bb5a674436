"""A figure as a declaration, the pictures that it makes of rows, and what all take from rows:
numbers, and peers with their order, titles and styles."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import markdown, results
from bench.inputs import CUDA_VARIANTS
from bench.peers import titles
from bench.plots import drawing
from bench.results import Row

Data = dict[str, Any]
MARK = "figure of bench report, data "
# The colour-blind palette of Okabe and Ito: blue is ours in every figure, vermilion the official.
OURS, OFFICIAL = "#0072b2", "#d55e00"
# Colour and marker by the first word of a name: variants share those of what they vary.
FAMILIES = {
    "ours": (OURS, "o"), "official": (OFFICIAL, "s"), "gram": ("#009e73", "^"),
    "lightly": ("#aa4499", "D"),
}  # fmt: skip
OTHERS = (
    ("#b8860b", "v"), ("#1f2328", "P"), ("#56b4e9", "X"), ("#7f7f7f", "<"), ("#8c510a", ">"),
    ("#44aa99", "p"), ("#882255", "h"),
)  # fmt: skip
LINES = {
    "compiled": "--", "aten": "--", "correlation": "--", "formula": "-.", "grouped": ":",
    "rows": ":",
}  # fmt: skip
CROWD = 7  # peers
FORMULA, COMPILED = "-formula", "-compiled"
COMPILED_SHOWN = ("gram-compiled", "official-compiled")


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


def number(value: Any) -> float | None:
    """A finite positive number as a float; None for anything else that a row may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < float("inf") else None


def spread(row: Row, unit: str) -> list[float] | None:
    """Median, p20 and p80 of a row, the median where it has no percentiles; None without one."""
    median, *others = (number(row.get(f"{name}_{unit}")) for name in ("median", "p20", "p80"))
    return None if median is None else [median, *(other or median for other in others)]


def times(row: Row) -> dict[str, float]:
    """The milliseconds of a row of the loss: a GPU's own time first, then the time of a call."""
    found = {key: number(row.get(key)) for key in ("graph_ms", "median_ms")}
    return {key: value for key, value in found.items() if value is not None}


def size(value: int) -> str:
    """A power of two in k (1024) from there on, anything else as it is."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def titled(peers: Iterable[str]) -> dict[str, str]:
    """Titles of peers in tables and figures; the name of one that is not known here."""
    known = titles("cuda") | titles("cpu")
    return {peer: known.get(peer, peer).replace("`", "") for peer in peers}


def is_ours(peer: str) -> bool:
    """Whether an implementation is this repository's."""
    return peer == "ours" or peer.startswith("ours-")


def span(ratios: Sequence[float]) -> str:
    """The least and the most times as fast; empty where there are none."""
    ends = (min(ratios), max(ratios)) if ratios else ()
    return " to ".join(dict.fromkeys(map(markdown.times, ends)))


def in_order(peers: Iterable[str]) -> list[str]:
    """Ours first, then by name: the order of the legends."""
    return sorted(set(peers), key=lambda name: (not is_ours(name), name != "ours", name))


def thinned(peers: Iterable[str]) -> list[str]:
    """In order; of more than CROWD peers, no formula of a peer that is present too, and compiled
    variants only of the simplest. The tables have all."""
    ordered = in_order(peers)
    if len(ordered) <= CROWD:
        return ordered
    restated = {f"{peer}{FORMULA}" for peer in ordered}
    return [
        peer
        for peer in ordered
        if peer not in restated and (not peer.endswith(COMPILED) or peer in COMPILED_SHOWN)
    ]


def styles(peers: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each peer: those of one family share a colour, variants are
    hollow, compiled ones dashed, ours is the thickest."""
    ordered = in_order(peers)
    others = dict.fromkeys(peer.split("-")[0] for peer in ordered)
    looks = dict(zip((f for f in others if f not in FAMILIES), itertools.cycle(OTHERS)))
    looks |= FAMILIES
    found = {}
    for peer in ordered:
        family, *words = peer.split("-")
        colour, marker = looks[family]
        line = next((LINES[word] for word in reversed(words) if word in LINES), "-")
        found[peer] = {
            "color": colour,
            "marker": marker,
            "markerfacecolor": colour if line == "-" else "white",
            "linestyle": line,
            "linewidth": 2.6 if peer == "ours" else 1.4,
            "markersize": 7 if peer == "ours" else 5,
            "zorder": 5 if peer == "ours" else 3,
        }
    return found
