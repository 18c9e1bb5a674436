"""What all figures share: their look, the sheet of panels, kinds of panels, the file."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
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


def sheet(
    title: str, text: str, height: float, panels: int, columns: int = 1, **layout: Any
) -> tuple[Any, Any]:
    """(figure, its axes row by row): panels below the main result and a text.

    Args:
        title: the main result.
        text: machine, dtype and how to read it.
        height: in inches.
        panels: number of them.
        columns: number of panels side by side.
        layout: options of matplotlib's `subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title + "\n", x=0.01, ha="left")
    style = {"ha": "left", "va": "top", "fontsize": 9, "color": SOFT}
    figure.text(0.01, 1 - 0.36 / height, text, **style)
    return figure, figure.subplots(-(-panels // columns), columns, squeeze=False, **layout).flat


def legend(figure: Any) -> None:
    """One legend of all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, titles = axes.get_legend_handles_labels()
        handles |= dict(zip(titles, found, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False,
        ncols=4 if max(map(len, handles)) <= WIDE_TITLE else 3, fontsize=9,
    )  # fmt: skip


def svg(figure: Any, description: str) -> str:
    """The file as text; the same bytes for the same data and version of matplotlib."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    text = io.StringIO()
    metadata = {"Date": None, "Description": description}
    figure.savefig(text, format="svg", metadata=metadata)
    # A thousandth of a point is finer than any screen; the rest would be a third of the file.
    shorter = re.sub(r"(?<=\d\.\d{3})\d+", "", text.getvalue())
    return re.sub(r"[ \t]+$", "", shorter, flags=re.MULTILINE)


def grid(axes: Any, title: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A heat map of N and D without cells: hatched."""
    from matplotlib.patches import Rectangle

    size = (len(columns), len(rows))
    empty = {"facecolor": "#f6f7f8", "edgecolor": "#dadde1", "hatch": "////"}
    axes.add_patch(Rectangle((-0.5, -0.5), *size, **empty))
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(-0.5, size[1] - 0.5), title=title)
    axes.set(xlabel="D", ylabel="N")
    axes.set_xticks(range(size[0]), columns)
    axes.set_yticks(range(size[1]), rows)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def cell(
    axes: Any, place: tuple[int, int], text: str, colour: str, dark: bool, framed: bool
) -> Any:
    """A cell of a heat map at (column, row); its text."""
    from matplotlib.patches import Rectangle

    edge = ("black", 1.8, 3) if framed else ("#aeb4bb", 0.8, 2.6)
    style = dict(zip(("edgecolor", "linewidth", "zorder"), edge, strict=True))
    corner = (place[0] - 0.5, place[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, **style))
    return axes.text(
        *place, text, ha="center", va="center", zorder=4,
        fontsize=7.5 if "\n" in text else 9, linespacing=1.0,
        fontweight="bold" if framed else "normal", color="white" if dark else INK,
    )  # fmt: skip


def line(
    axes: Any, points: Sequence[Sequence[float]], style: Mapping[str, Any], title: str = "_"
) -> None:
    """Points (x, y) joined by a line, in matplotlib's style; in the legend by its title."""
    axes.plot(*zip(*points, strict=True), label=title, **style)


def spread(axes: Any, ranges: Sequence[Sequence[float]], colour: str) -> None:
    """Vertical bars of (x, low, high)."""
    style = {"color": colour, "linewidth": 1.6, "alpha": 0.5, "zorder": 2}
    axes.vlines(*zip(*ranges, strict=True), **style)


def note(axes: Any, text: str, point: Sequence[float], offset: Sequence[float], **style: Any):
    """Small text beside a point, at an offset in points of print."""
    style = {"fontsize": 8, "va": "bottom", "zorder": 4} | style
    axes.annotate(text, point, xytext=offset, textcoords="offset points", **style)


def logarithmic(
    axes: Any, title: str, ticks: Mapping[float, str], labels: tuple[str, str], **limits: Any
) -> None:
    """Both axes, with labelled `ticks` of x and nowhere between; `limits` of x and y."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(xscale="log", yscale="log", title=title, **limits)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_xticks(list(ticks), ticks.values())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)


def finish_bars(axes: Any, title: str, names: Sequence[str], most: float) -> None:
    """Names of horizontal bars, and an axis up to beyond `most`."""
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1.18 * most), ylim=(-0.55, len(names) - 0.45), xticks=[])
    axes.tick_params(length=0)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_title(textwrap.fill(title, 78), fontsize=9.5, fontweight="normal")
