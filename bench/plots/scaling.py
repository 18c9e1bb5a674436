"""The modelled steps: seconds over D, one panel for each number of GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.ranks.scaling import MEMORY
from bench.results import Row

PLACE = 6
HEADLINE = "One loss step, forward + backward: modelled, not measured"


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file with rows of the model."""
    return [
        Picture(
            f"modelled-{drawing.stem(name)}", "scaling", name,
            f"{HEADLINE}: seconds over D on groups of GPUs.", _data(rows), draw,
        )
        for name, rows in drawing.rows_of(files, "scaling")
    ]  # fmt: skip


def _data(rows: Sequence[Row]) -> Data:
    """`panels`: by ranks and N, (D, our seconds, those of the all-reduce, whether it fits)."""
    panels: Data = {}
    for row in sorted(rows, key=lambda row: (row["ranks"], -row["n"], row["d"])):
        ours, other = row["ours"], row["all_reduce"]
        point = [row["d"], ours["seconds"], other["seconds"], other["fits"]]
        panels.setdefault(str(row["ranks"]), {}).setdefault(str(row["n"]), []).append(point)
    return {"panels": panels}


def draw(data: Data) -> Any:
    """A panel for each number of GPUs, with the same seconds."""
    panels = data["panels"]
    text = "Embeddings in bfloat16, nothing overlapped; rates and links are assumptions."
    figure = drawing.figure(4.6, HEADLINE, text)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (ranks, lines) in zip(all_axes, panels.items(), strict=True):
        _panel(axes, lines)
        axes.set_title(f"{ranks} GPUs")
    all_axes[0].set_ylabel("seconds per step (modelled)")
    # Room for the legends above the lines.
    all_axes[0].set_ylim(top=10 * all_axes[0].get_ylim()[1])
    return figure


def _panel(axes: Any, lines: Mapping[str, Sequence[Sequence]]) -> None:
    """The line of the most samples comes first and is compared with the all-reduce."""
    style = {"marker": "o", "markersize": 5, "linewidth": 2, "color": drawing.OURS}
    for index, (n, points) in enumerate(lines.items()):
        d, seconds, _, _ = zip(*points, strict=True)
        hollow = {"linestyle": "--", "markerfacecolor": "white"} if index else {}
        axes.plot(d, seconds, label=f"barlow_fast, N = {n}", **style | hollow)
        if index == 0:
            _all_reduce(axes, n, points)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = sorted({point[0] for points in lines.values() for point in points})
    drawing.ticks(axes, every, [drawing.size(d) for d in every])
    axes.set_xlabel("D (1k = 1024)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _all_reduce(axes: Any, n: str, points: Sequence[Sequence]) -> None:
    """Solid where its matrices fit into memory; from there on dotted, with crosses."""
    fitting = [point for point in points if point[3]]
    beyond = [*fitting[-1:], *(point for point in points if not point[3])]
    dotted = {"linestyle": ":", "marker": "x", "markevery": list(range(bool(fitting), len(beyond)))}
    for part, label, style in (
        (fitting, f"all-reduce of C, N = {n}", {"linestyle": "-", "marker": "s"}),
        (beyond, f"… does not fit in {MEMORY / 1e9:.0f} GB", dotted),
    ):
        axes.plot(
            [point[0] for point in part], [point[2] for point in part], label=label,
            color=drawing.OFFICIAL, linewidth=2, markersize=5, **style,
        )  # fmt: skip
