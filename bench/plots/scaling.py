"""The modelled steps: seconds over D, one panel for each number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.plots import selection
from bench.plots.drawing import Chart, Line, Lines
from bench.plots.figure import Data, Figure
from bench.ranks.scaling import MEMORY
from bench.results import Row

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


def chart(data: Data) -> Chart:
    """A panel for each number of GPUs, with the same seconds."""
    text = "Embeddings in bfloat16, nothing overlapped; rates and links are assumptions."
    panels = [_panel(ranks, lines) for ranks, lines in data["panels"].items()]
    return Chart(HEADLINE, text, 4.6, panels, len(panels), {"sharey": True})


def _panel(ranks: str, lines: Data) -> Lines:
    """The line of the most samples comes first and is compared with the all-reduce."""
    (most, first), *fewer = lines.items()
    drawn = [Line([point[:2] for point in first], STYLE, "barlow_fast"), *_all_reduce(first)]
    for n, points in fewer:
        seconds = [point[:2] for point in points]
        drawn.append(Line(seconds, STYLE | FEWER, f"barlow_fast, N = {n}"))
    ticks = sorted({point[0] for points in lines.values() for point in points})
    names = {d: selection.size(d) for d in ticks}
    return Lines(f"{ranks} GPUs, N = {most}", drawn, names, LABELS)


def _all_reduce(points: Sequence[Sequence]) -> Iterator[Line]:
    """Solid where its matrices fit into memory; from there on dotted, with crosses."""
    fitting = [(d, seconds) for d, _, seconds, fits in points if fits]
    beyond = [(d, seconds) for d, _, seconds, fits in points if not fits]
    style = {"color": selection.OFFICIAL, "linewidth": 2, "markersize": 5}
    if fitting:
        yield Line(fitting, style | {"marker": "s"}, "all-reduce of C")
    if beyond:
        crosses = list(range(bool(fitting), len(beyond) + 1))
        dotted = style | {"linestyle": ":", "marker": "x", "markevery": crosses}
        yield Line(fitting[-1:] + beyond, dotted, f"… does not fit in {MEMORY / 1e9:.0f} GB")


FIGURE = Figure("modelled", ("scaling",), select, caption, chart)
