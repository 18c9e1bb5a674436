"""The modelled steps as a picture: seconds over D, one panel for each number of GPUs."""

from __future__ import annotations

import io
from collections.abc import Sequence

from bench.ranks.scaling import MEMORY
from bench.results import Row

# Blue and vermilion of the colour-blind palette of Okabe and Ito.
OURS, OTHER = "#0072b2", "#d55e00"
PANEL_WIDTH, HEIGHT = 4.0, 4.3  # inches


def draw(rows: Sequence[Row], mark: str) -> str:
    """An SVG file as text; `mark`, the fingerprint of its rows, is in its metadata."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels: dict[int, dict[int, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (row["ranks"], row["d"])):
        panels.setdefault(row["ranks"], {}).setdefault(row["n"], []).append(row)
    # Element names that are the same each time, no date: a figure changes only with its rows.
    with matplotlib.rc_context({"svg.hashsalt": "barlow_fast"}):
        figure = Figure(figsize=(PANEL_WIDTH * len(panels), HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle("One loss step, forward + backward: modelled, not measured", fontsize=13)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (ranks, groups) in zip(all_axes, panels.items(), strict=True):
            _panel(axes, ranks, groups)
        all_axes[0].set_ylabel("seconds per step (modelled)")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Description": mark})
    return text.getvalue()


def _panel(axes, ranks: int, groups: dict[int, list[Row]]) -> None:
    # The most samples first: the main line of the panel.
    for index, (n, rows) in enumerate(sorted(groups.items(), reverse=True)):
        d = [row["d"] for row in rows]
        style = {"marker": "o", "markersize": 5, "linewidth": 2, "color": OURS}
        axes.plot(
            d, [row["ours"]["seconds"] for row in rows], label=f"barlow_fast, N = {n}",
            **style | ({"linestyle": "--", "markerfacecolor": "white"} if index else {}),
        )  # fmt: skip
        if index == 0:
            _all_reduce(axes, n, rows)
    d = sorted({row["d"] for rows in groups.values() for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(d, [f"{size // 1024}k" for size in d])
    axes.minorticks_off()
    axes.set_xlabel("D (1k = 1024)")
    axes.set_title(f"{ranks} GPUs", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")


def _all_reduce(axes, n: int, rows: list[Row]) -> None:
    """Solid where its matrices fit into memory; from there on dotted, with crosses."""
    fitting = [row for row in rows if row["all_reduce"]["fits"]]
    beyond = [*fitting[-1:], *(row for row in rows if not row["all_reduce"]["fits"])]
    solid = {"linestyle": "-", "marker": "s"}
    dotted = {"linestyle": ":", "marker": "x", "markevery": list(range(bool(fitting), len(beyond)))}
    for part, label, style in (
        (fitting, f"all-reduce of C, N = {n}", solid),
        (beyond, f"… its matrices do not fit in {MEMORY / 1e9:.0f} GB", dotted),
    ):
        axes.plot(
            [row["d"] for row in part], [row["all_reduce"]["seconds"] for row in part],
            label=label, color=OTHER, linewidth=2, markersize=5, **style,
        )  # fmt: skip
