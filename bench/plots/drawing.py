"""Draws charts as SVG: heat maps, lines and bars, from data alone."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 9.4  # inches; 902 pixels, the width of a README
INK, SOFT, LINE = "#1f2328", "#59636e", "#c8ccd1"
SETTINGS = {
    # Text stays text: it can be searched, and a test can read it.
    "svg.fonttype": "none",
    # Element names that are the same each time: a figure changes only with its data.
    "svg.hashsalt": "barlow_fast",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
}
WIDE_TITLE = 28  # characters; with longer ones a legend has three columns instead of four


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map, at a column and a row; `name` is the id of its text."""

    column: int
    row: int
    text: str
    colour: str
    dark: bool
    framed: bool
    name: str


@dataclass(frozen=True)
class HeatMap:
    """A grid of cells, hatched where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Cell]
    labels: tuple[str, str]

    def draw(self, axes: Any) -> None:
        from matplotlib.patches import Rectangle

        size = (len(self.columns), len(self.rows))
        empty = {"facecolor": "#f6f7f8", "edgecolor": "#dadde1", "hatch": "////"}
        axes.add_patch(Rectangle((-0.5, -0.5), *size, **empty))
        for cell in self.cells:
            edge = ("black", 1.8, 3) if cell.framed else ("#aeb4bb", 0.8, 2.6)
            style = dict(zip(("edgecolor", "linewidth", "zorder"), edge, strict=True))
            corner = (cell.column - 0.5, cell.row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=cell.colour, **style))
            axes.text(
                cell.column, cell.row, cell.text, ha="center", va="center", zorder=4,
                fontsize=7.5 if "\n" in cell.text else 9, linespacing=1.0,
                fontweight="bold" if cell.framed else "normal",
                color="white" if cell.dark else INK,
            ).set_gid(cell.name)  # fmt: skip
        axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(-0.5, size[1] - 0.5), title=self.title)
        axes.set(xlabel=self.labels[0], ylabel=self.labels[1])
        axes.set_xticks(range(size[0]), self.columns)
        axes.set_yticks(range(size[1]), self.rows)
        axes.tick_params(length=0, labelsize=9)
        axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class Line:
    """Points (x, y) and how they are joined.

    Attributes:
        points: of the line.
        style: matplotlib's, such as its colour.
        title: in the legend; '' for a line that is not in it.
        spread: (low, high) of each point.
        band: whether the spread is an area, not a bar for each point.
    """

    points: Sequence[Sequence[float]]
    style: Mapping[str, Any]
    title: str = ""
    spread: Sequence[Sequence[float]] = ()
    band: bool = False


@dataclass(frozen=True)
class Note:
    """Small text beside a point, at an offset in points of print."""

    text: str
    point: Sequence[float]
    offset: Sequence[float]
    style: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lines:
    """Lines over two logarithmic axes, with labelled `ticks` of x and nowhere between."""

    title: str
    lines: Sequence[Line]
    ticks: Mapping[float, str]
    labels: tuple[str, str]
    notes: Sequence[Note] = ()
    limits: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def draw(self, axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator

        for line in self.lines:
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, label=line.title or "_", **line.style)
            spread = zip(*line.spread, strict=True)
            if line.band:
                axes.fill_between(x, *spread, color=LINE, alpha=0.6, linewidth=0, zorder=1)
            elif line.spread:
                style = {"color": line.style["color"], "linewidth": 1.6, "alpha": 0.5, "zorder": 2}
                axes.vlines(x, *spread, **style)
        for note in self.notes:
            style = {"fontsize": 8, "va": "bottom", "zorder": 4} | dict(note.style)
            place = {"xytext": note.offset, "textcoords": "offset points"}
            axes.annotate(note.text, note.point, **place, **style)
        axes.set(xscale="log", yscale="log", title=self.title, **self.limits)
        axes.set(xlabel=self.labels[0], ylabel=self.labels[1])
        axes.set_xticks(list(self.ticks), self.ticks.values())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar; a line from `low` to `high` on it; `name` is in the id of its text."""

    name: str
    title: str
    value: float
    low: float
    high: float
    text: str
    colour: str
    bold: bool


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from top to bottom."""

    title: str
    bars: Sequence[Bar]

    def draw(self, axes: Any) -> None:
        bars = self.bars[::-1]
        most = max(bar.value for bar in bars)
        for y, bar in enumerate(bars):
            axes.barh(y, bar.value, height=0.68, color=bar.colour)
            axes.hlines(y, bar.low, bar.high, color=INK, linewidth=1.4)
            axes.text(
                max(bar.value, bar.high) + 0.01 * most, y, bar.text, va="center", fontsize=9,
                fontweight="bold" if bar.bold else "normal",
            ).set_gid(f"bar-{bar.name}")  # fmt: skip
        axes.set_yticks(range(len(bars)), [bar.title for bar in bars])
        axes.set(xlim=(0, 1.18 * most), ylim=(-0.55, len(bars) - 0.45), xticks=[])
        axes.tick_params(length=0)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_title(textwrap.fill(self.title, 78), fontsize=9.5, fontweight="normal")


@dataclass(frozen=True)
class Chart:
    """Panels in columns, below a title and a text; a legend below them where lines have titles.

    Attributes:
        title: the main result.
        text: machine, dtype and how to read it.
        height: in inches.
        panels: row by row.
        columns: number of panels side by side.
        layout: options of matplotlib's `subplots`.
    """

    title: str
    text: str
    height: float
    panels: Sequence[HeatMap | Lines | Bars]
    columns: int = 1
    layout: Mapping[str, Any] = field(default_factory=dict)

    def svg(self, description: str) -> str:
        """The file as text; the same bytes for the same data and version of matplotlib.

        Raises:
            ImportError: without matplotlib.
        """
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        with style.context(["default", SETTINGS]):
            figure = self._figure()
            FigureCanvasSVG(figure)
            text = io.StringIO()
            metadata = {"Date": None, "Description": description}
            figure.savefig(text, format="svg", metadata=metadata)
        # A thousandth of a point is finer than any screen; the rest would be a third of the file.
        shorter = re.sub(r"(?<=\d\.\d{3})\d+", "", text.getvalue())
        return re.sub(r"[ \t]+$", "", shorter, flags=re.MULTILINE)

    def _figure(self) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        figure.suptitle(self.title + "\n", x=0.01, ha="left")
        style = {"ha": "left", "va": "top", "fontsize": 9, "color": SOFT}
        figure.text(0.01, 1 - 0.36 / self.height, self.text, **style)
        rows = -(-len(self.panels) // self.columns)
        grid = figure.subplots(rows, self.columns, squeeze=False, **self.layout)
        handles: dict[str, Any] = {}
        for axes, panel in zip(grid.flat, self.panels, strict=True):
            panel.draw(axes)
            found, titles = axes.get_legend_handles_labels()
            if "sharey" in self.layout:
                axes.label_outer()
            handles |= dict(zip(titles, found, strict=True))
        if handles:
            figure.legend(
                handles.values(), handles.keys(), loc="outside lower center", frameon=False,
                ncols=4 if max(map(len, handles)) <= WIDE_TITLE else 3, fontsize=9,
            )  # fmt: skip
        return figure
