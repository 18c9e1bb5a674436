"""Horizontal bars of cases, a panel each: the form of several figures, none by itself."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.plots import drawing
from bench.plots.drawing import Data
from bench.results import Row

COLOURS = {"ours": drawing.OURS, "limit": "#b9d3e6", "official": drawing.OFFICIAL}
THEIRS, ONLY_CROPS = "#e0a080", "#d8dce0"


def panels(
    rows: Sequence[Row],
    keys: tuple[str, str, str],
    known: Mapping[str, str],
    heading: Callable[[Row], str],
) -> list[Data]:
    """A panel for each case, with (peer, title, median, p20, p80) in the order of the rows.

    Args:
        rows: of one suite and machine.
        keys: of the median and both percentiles.
        known: titles of peers.
        heading: of a case, by one of its rows.
    """
    found: dict[str, Data] = {}
    for row in rows:
        median = drawing.number(row.get(keys[0]))
        if median is None:
            continue
        low, high = (drawing.number(row.get(key)) or median for key in keys[1:])
        peer = str(row.get("peer", ""))
        case = " ".join(str(row.get(key)) for key in ("case", "n", "d", "dtype"))
        panel = found.setdefault(case, {"title": heading(row), "bars": []})
        panel["bars"].append([peer, known.get(peer, peer), median, low, high])
    return list(found.values())


def colour(peer: str) -> str:
    """Of a bar: ours is blue, the official vermilion, others a light vermilion."""
    if peer in COLOURS:
        return COLOURS[peer]
    if drawing.is_ours(peer) or (peer.startswith("kernel-") and "aten" not in peer):
        return drawing.OURS
    return ONLY_CROPS if peer.startswith("crops-") else THEIRS


def draw(all_panels: Sequence[Data], title: str, text: str, unit: str) -> Any:
    """The figure; a bar ends with its median in figures, a line from p20 to p80 on it."""
    from matplotlib.figure import Figure

    counts = [len(panel["bars"]) for panel in all_panels]
    height = 0.36 * sum(counts) + 0.62 * len(counts) + 0.7
    figure = Figure(figsize=(drawing.WIDTH, height), layout="constrained")
    drawing.head(figure, title, text)
    all_axes = figure.subplots(
        len(all_panels), 1, squeeze=False, gridspec_kw={"height_ratios": counts}
    )[:, 0]
    for axes, panel in zip(all_axes, all_panels, strict=True):
        _panel(axes, panel, unit)
    return figure


def _panel(axes: Any, panel: Data, unit: str) -> None:
    bars = panel["bars"][::-1]
    most = max(bar[2] for bar in bars)
    for y, (peer, _, median, low, high) in enumerate(bars):
        axes.barh(y, median, height=0.68, color=colour(peer))
        axes.hlines(y, low, high, color=drawing.INK, linewidth=1.4)
        text = axes.text(
            max(median, high) + 0.01 * most, y, f"{drawing.short(median)} {unit}", va="center",
            fontsize=9, fontweight="bold" if drawing.is_ours(peer) else "normal",
        )  # fmt: skip
        text.set_gid(f"bar-{peer}")
    axes.set_yticks(range(len(bars)), [bar[1] for bar in bars])
    axes.set_xlim(0, 1.18 * most)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_ylim(-0.55, len(bars) - 0.45)
    axes.set_title(textwrap.fill(panel["title"], 78), fontsize=9.5, fontweight="normal")
