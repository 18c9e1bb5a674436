"""How figures look: sheets of panels with lines, bars or cells, and the file.

All take the `data` of a figure: `title`, `text`, and `panels`, of which each has a `title`.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
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
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
}
WIDE_TITLE = 28  # characters; with longer ones a legend has three columns instead of four


def svg(figure: Any, description: str) -> str:
    """The file as text; the same bytes for the same data and version of matplotlib."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Description": description})
    # A thousandth of a point is finer than any screen; the rest would be a third of the file.
    shorter = re.sub(r"(?<=\d\.\d{3})\d+", "", text.getvalue())
    return re.sub(r"[ \t]+$", "", shorter, flags=re.MULTILINE)


def _sheet(data: Mapping[str, Any], height: float, columns: int, **layout: Any) -> tuple[Any, Any]:
    """(figure, its axes row by row), so many inches high, with a panel for each of the data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    text = textwrap.fill(data["text"], 130)
    figure.suptitle(data["title"] + "\n" * (1 + text.count("\n")), x=0.01, ha="left")
    style = {"ha": "left", "va": "top", "fontsize": 9, "color": SOFT}
    figure.text(0.01, 1 - 0.36 / height, text, **style)
    rows = -(-len(data["panels"]) // columns)
    return figure, figure.subplots(rows, columns, squeeze=False, **layout).flat


def lines(data: Mapping[str, Any]) -> Any:
    """Lines on logarithmic axes, `columns` panels side by side, under one legend.

    A panel has `labels` of x and y, `ticks` of x with their names, `limits`, a `yscale` where that
    of y is not logarithmic, and `lines`: their
    `points` (x, y) in matplotlib's `style`; with a `title` in the legend; with `spread`, bars of
    (x, low, high); with a `note` beside the first or the last point.
    """
    columns = data["columns"]
    height = data["height"] * -(-len(data["panels"]) // columns) + 1.3
    figure, panels = _sheet(data, height, columns, **data.get("shared", {}))
    for axes, panel in zip(panels, data["panels"], strict=True):
        for line in panel["lines"]:
            axes.plot(*zip(*line["points"], strict=True), label=line.get("title"), **line["style"])
            if line.get("spread"):
                style = {"color": line["style"]["color"], "linewidth": 1.6, "alpha": 0.5}
                axes.vlines(*zip(*line["spread"], strict=True), **style)
            if line.get("note"):
                words, place, side = line["note"]
                offset = {"xytext": (2, 3), "textcoords": "offset points", "ha": side}
                axes.annotate(words, line["points"][place], fontsize=8, **offset)
        _logarithmic(axes, panel)
        if data.get("shared"):
            axes.label_outer()
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, titles = axes.get_legend_handles_labels()
        handles |= dict(zip(titles, found, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", fontsize=9,
        ncols=4 if max(map(len, handles)) <= WIDE_TITLE else 3,
    )  # fmt: skip
    return figure


def _logarithmic(axes: Any, panel: Mapping[str, Any]) -> None:
    """Both axes, or x alone, with labelled ticks of x and nowhere between."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(xscale="log", yscale=panel.get("yscale", "log"), title=panel["title"])
    axes.set(**panel.get("limits", {}))
    axes.set(xlabel=panel["labels"][0], ylabel=panel["labels"][1])
    axes.set_xticks(list(panel["ticks"]), panel["ticks"].values())
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)


def bars(data: Mapping[str, Any]) -> Any:
    """Horizontal bars from top to bottom: a panel has `bars` of (name, title, colour, text, value,
    p20, p80), the last two shown as a line."""
    counts = [len(panel["bars"]) for panel in data["panels"]]
    height = 0.36 * sum(counts) + 0.62 * len(counts) + 0.7
    figure, panels = _sheet(data, height, 1, gridspec_kw={"height_ratios": counts})
    for axes, panel in zip(panels, data["panels"], strict=True):
        found = panel["bars"][::-1]
        most = max(bar[4] for bar in found)
        for y, (name, _, colour, text, value, low, high) in enumerate(found):
            axes.barh(y, value, height=0.68, color=colour)
            axes.hlines(y, low, high, color=INK, linewidth=1.4)
            end = max(value, high) + 0.01 * most
            axes.text(end, y, text, va="center", fontsize=9).set_gid(f"bar-{name}")
        axes.set_yticks(range(len(found)), [bar[1] for bar in found])
        axes.set(xlim=(0, 1.18 * most), ylim=(-0.55, len(found) - 0.45), xticks=[])
        axes.tick_params(length=0)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_title(textwrap.fill(panel["title"], 78), fontsize=9.5, fontweight="normal")
    return figure


def cells(data: Mapping[str, Any]) -> Any:
    """Heat maps of N (`rows`) and D (`columns`), hatched where there is no cell; a panel has
    `cells` of (name, column, row, text, colour, whether it is dark, whether it is framed)."""
    from matplotlib.patches import Rectangle

    rows, columns = data["rows"], data["columns"]
    side_by_side = 2 if len(columns) <= 9 else 1
    height = 2 / side_by_side * (0.34 * len(rows) + 0.85) + 0.75
    figure, panels = _sheet(data, height, side_by_side)
    for axes, panel in zip(panels, data["panels"], strict=True):
        empty = {"facecolor": "#f6f7f8", "edgecolor": "#dadde1", "hatch": "////"}
        axes.add_patch(Rectangle((-0.5, -0.5), len(columns), len(rows), **empty))
        for name, x, y, text, colour, dark, framed in panel["cells"]:
            edge = ("black", 1.8, 3) if framed else ("#aeb4bb", 0.8, 2.6)
            style = dict(zip(("edgecolor", "linewidth", "zorder"), edge, strict=True))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, **style))
            axes.text(
                x, y, text, ha="center", va="center", zorder=4, linespacing=1.0,
                fontsize=7.5 if "\n" in text else 9, fontweight="bold" if framed else "normal",
                color="white" if dark else INK,
            ).set_gid(name)  # fmt: skip
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))
        axes.set(xlabel="D", ylabel="N", title=panel["title"])
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, labelsize=9)
        axes.spines[:].set_visible(False)
    return figure
