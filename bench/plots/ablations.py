"""Accuracy against the projector's output, the batch size and lambda."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.plots import drawing
from bench.plots.figure import Data, Figure
from bench.results import Row
from bench.suites import ablations

STYLES = {
    "linear": {"color": "#0072b2", "marker": "o", "linewidth": 1.6},
    "knn": {"color": "#d55e00", "marker": "s", "linewidth": 1.6},
}


def select(rows: Sequence[Row]) -> Data | None:
    """`curves`: of each parameter and score (value, mean, low, high), one deviation around the
    mean."""
    curves: Data = {}
    for name, points in ablations.curves(rows).items():
        if len(points) > 1:
            curves[name] = {
                key: [_point(each["value"], each[key]) for each in points]
                for key in ablations.SCORES
            }
    if not curves:
        return None
    seeds = max(len(each["seeds"]) for each in rows)
    return {"curves": curves, "seeds": seeds, "epochs": rows[0]["epochs"],
            "images": rows[0]["images"],
            "summaries": [ablations.summary(name, points)
                          for name, points in ablations.curves(rows).items()]}  # fmt: skip


def _point(value: float, scores: Sequence[float]) -> list[float]:
    mean = statistics.fmean(scores)
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return [value, mean, mean - spread, mean + spread]


def caption(data: Data) -> str:
    """The shapes of the curves."""
    return (
        f"Accuracy on validation images of Fashion-MNIST, {data['epochs']} epochs of "
        f"{data['images']:,} images, mean and standard deviation of {data['seeds']} seeds. "
        f"{'; '.join(data['summaries'])}."
    )


def draw(data: Data) -> Any:
    """A panel for each parameter."""
    curves = data["curves"]
    text = (
        f"Fashion-MNIST, {data['epochs']} epochs of {data['images']:,} images, judged on "
        f"validation images; bars: one standard deviation of {data['seeds']} seeds."
    )
    title = "Accuracy against projector, batch size and λ"
    figure, panels = drawing.sheet(title, text, 3.9, len(curves), columns=len(curves), sharey=True)
    for axes, (name, scores) in zip(panels, curves.items(), strict=False):
        for key, points in scores.items():
            drawing.line(axes, [each[:2] for each in points], STYLES[key], ablations.SCORES[key])
            drawing.spread(axes, [[x, low, high] for x, _, low, high in points],
                           STYLES[key]["color"])  # fmt: skip
        axes.set(xscale="log", xlabel=ablations.PARAMETERS[name].title)
        ticks = [points[0] for points in scores["linear"]]
        ticks = ticks[:: -(-len(ticks) // 5)]
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("accuracy, %")
    drawing.legend(figure)
    return figure


FIGURE = Figure("ablations", ("ablations",), select, caption, draw)
