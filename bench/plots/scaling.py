"""The modelled steps: seconds over D, one panel for each number of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.results import Row
from bench.suites.scaling import MEMORY

HEADLINE = "One loss step, forward + backward: modelled, not measured"
LABELS = ("D (1k = 1024)", "seconds per step (modelled)")
STYLE = {"marker": "o", "markersize": 5, "linewidth": 2, "color": selection.OURS}
FEWER = {"linestyle": "--", "markerfacecolor": "white"}


def select(rows: Sequence[Row]) -> Data:
    """`panels`: by ranks and N, (D, our seconds, those of the all-reduce, whether it fits)."""
    panels: Data = {}
    for row in sorted(rows, key=lambda row: (row["ranks"], -row["n"], row["d"])):
        ours, other = row["ours"], row["all_reduce"]
        point = [row["d"], ours["seconds"], other["seconds"], other["fits"]]
        panels.setdefault(str(row["ranks"]), {}).setdefault(str(row["n"]), []).append(point)
    return {"panels": panels}


def caption(data: Data) -> str:
    """What is modelled."""
    return f"{HEADLINE}: seconds over D on groups of GPUs."


def draw(data: Data) -> Any:
    """A panel for each number of GPUs, with the same seconds."""
    text = "Embeddings in bfloat16, nothing overlapped; rates and links are assumptions."
    count = len(data["panels"])
    figure, panels = drawing.sheet(HEADLINE, text, 4.6, count, count, sharey=True)
    for axes, (ranks, lines) in zip(panels, data["panels"].items(), strict=True):
        _panel(axes, ranks, lines)
        axes.label_outer()
    drawing.legend(figure)
    return figure


def _panel(axes: Any, ranks: str, lines: Data) -> None:
    """The line of the most samples comes first and is compared with the all-reduce."""
    (most, first), *fewer = lines.items()
    drawing.line(axes, [point[:2] for point in first], STYLE, "barlow_fast")
    _all_reduce(axes, first)
    for n, points in fewer:
        seconds = [point[:2] for point in points]
        drawing.line(axes, seconds, STYLE | FEWER, f"barlow_fast, N = {n}")
    ticks = sorted({point[0] for points in lines.values() for point in points})
    names = {d: selection.size(d) for d in ticks}
    drawing.logarithmic(axes, f"{ranks} GPUs, N = {most}", names, LABELS)


def _all_reduce(axes: Any, points: Sequence[Sequence]) -> None:
    """Solid where its matrices fit into memory; from there on dotted, with crosses."""
    fitting = [(d, seconds) for d, _, seconds, fits in points if fits]
    beyond = [(d, seconds) for d, _, seconds, fits in points if not fits]
    style = {"color": selection.OFFICIAL, "linewidth": 2, "markersize": 5}
    if fitting:
        drawing.line(axes, fitting, style | {"marker": "s"}, "all-reduce of C")
    if beyond:
        crosses = list(range(bool(fitting), len(beyond) + 1))
        dotted = style | {"linestyle": ":", "marker": "x", "markevery": crosses}
        title = f"… does not fit in {MEMORY / 1e9:.0f} GB"
        drawing.line(axes, fitting[-1:] + beyond, dotted, title)


FIGURE = Figure("modelled", ("scaling",), select, caption, draw)
