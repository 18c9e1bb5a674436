"""Peak memory against D at N = 256, up to the D where each implementation runs out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.results import Row

N, DTYPE, ELEMENT = 256, "fp32", 4
GB = 1e9
MOST_TICKS = 10


def select(rows: Sequence[Row]) -> Data | None:
    """Of each peer: `points`, (D, bytes) of inputs, gradients and everything else; `failed`, the
    least D that did not fit; `largest`, the largest that is known to work."""
    rows = [row for row in rows if row.get("n") == N and row.get("dtype") == DTYPE]
    lines: dict[str, Data] = {}
    # What the search for the largest D measured is of one run: it has precedence.
    for row in sorted(rows, key=lambda row: row["suite"] == "memory"):
        line = lines.setdefault(row["peer"], {"points": {}, "failed": None, "largest": None})
        searched = row["suite"] == "largest"
        if searched:
            line["largest"] = selection.number(row.get("d"))
        line["failed"] = line["failed"] or selection.number(_failed(row))
        for d, used in row.get("points") or [] if searched else [[row["d"], _used(row)]]:
            if selection.number(used):
                line["points"].setdefault(int(d), int(used))
    if not any(line["points"] for line in lines.values()):
        return None
    for line in lines.values():
        line["points"] = sorted(map(list, line["points"].items()))
        line["largest"] = max([d for d, _ in line["points"]] + [line["largest"] or 0]) or None
    peers = selection.thinned(lines)
    limits = {selection.number(row.get("limit_bytes")) for row in rows} - {None}
    return {
        "limit": max(limits, default=None),
        "titles": selection.titled(peers),
        "lines": {peer: lines[peer] for peer in peers},
    }


def _failed(row: Row) -> Any:
    """The D that did not fit."""
    if row["suite"] == "largest":
        return row.get("failed_d")
    return row["d"] if "memory" in str(row.get("problem")) else None


def _used(row: Row) -> float | None:
    inputs, peak = (selection.number(row.get(key)) for key in ("input_bytes", "peak_bytes"))
    return inputs + peak if inputs and peak else None


def headline(data: Data) -> str:
    """The largest D within the memory, else the memory at the largest common D."""
    lines = data["lines"]
    reach = {peer: line["largest"] for peer, line in lines.items() if line["largest"]}
    others = [
        d for p, d in reach.items() if not selection.is_ours(p) and selection.is_exact(p)
    ]  # fmt: skip
    if "ours" in reach and others and any(line["failed"] for line in lines.values()):
        what = f"Within {data['limit'] / GB:.3g} GB" if data["limit"] else "Within memory"
        most = f"other exact ones at most {max(others):,.0f}"
        return f"{what}, barlow_fast does D = {reach['ours']:,.0f}, {most}"
    ours, official = (dict(lines.get(p, {"points": []})["points"]) for p in ("ours", "official"))
    if both := set(ours) & set(official):
        d = max(both)
        ratio = f"{official[d] / ours[d]:.0f}×"
        return f"At D = {d:,} the official implementation takes {ratio} the memory"
    return f"Peak memory of forward + backward at N = {N}"


def caption(data: Data) -> str:
    """The headline, and the largest D of each implementation."""
    reach = [
        f"{data['titles'][peer]} {'at least ' if not line['failed'] else ''}{line['largest']:,.0f}"
        for peer, line in data["lines"].items()
        if line["largest"]
    ]
    return (
        f"{headline(data)} (peak memory of forward + backward at N = {N}, float32, with inputs "
        f"and gradients, {data['machine']}). Largest D measured: {', '.join(reach)}."
    )


def draw(data: Data) -> Any:
    """A line for each implementation, in the legend by the largest D; × where it runs out of
    memory."""
    lines = data["lines"]
    failing = any(line["failed"] for line in lines.values())
    ds = [d for line in lines.values() for d, _ in [*line["points"], [line["failed"], 0]] if d]
    least, most = min(ds), max(*ds, 2 * min(ds))
    top = (data["limit"] or max(used for line in lines.values() for _, used in line["points"])) / GB
    text = (
        f"{data['machine']}, float32, N = {N}, forward + backward: inputs, gradients and "
        f"everything else.{' ×: does not fit.' if failing else ''}"
    )
    figure, (axes,) = drawing.sheet(headline(data), text, 5.6, 1)
    floor = [(d, 4 * N * d * ELEMENT / GB) for d in (least, most)]
    drawing.line(
        axes, floor, {"color": drawing.SOFT, "linewidth": 1, "linestyle": ":", "zorder": 1}
    )
    if data["limit"]:
        limit = [(least / 1.15, top), (most * 1.15, top)]
        drawing.line(axes, limit, {"color": drawing.INK, "linewidth": 1.2})
    styles = selection.styles(lines)
    for peer in sorted(lines, key=lambda peer: -(lines[peer]["largest"] or 0)):
        _line(axes, lines[peer], styles[peer], data["titles"][peer], top)
    words = "inputs and gradients alone"
    drawing.note(axes, words, floor[0], (8, -7), color=drawing.SOFT, va="top")
    if data["limit"]:
        drawing.note(axes, f"{top:.3g} GB", (least, top), (2, 3), fontsize=9)
    ticks = [2**k for k in range(64) if least / 1.1 <= 2**k <= most * 1.1]
    names = {tick: selection.size(tick) for tick in ticks[:: -(-len(ticks) // MOST_TICKS)]}
    limits = {"xlim": (least / 1.15, most * 1.15), "ylim": (floor[0][1] / 2.2, top * 2.5)}
    drawing.logarithmic(axes, "", names, ("D", "peak memory, GB"), **limits)
    drawing.legend(figure)
    return figure


def _line(axes: Any, line: Data, style: Data, title: str, top: float) -> None:
    points = [(d, used / GB) for d, used in line["points"]]
    if points:
        reached = f": {line['largest']:,.0f}" if line["failed"] else ""
        drawing.line(axes, points, style, title + reached)
    if line["failed"]:
        # How much it would have taken is not known: the cross is at the limit.
        end, colour = [(line["failed"], top)], {"color": style["color"]}
        drawing.line(axes, points[-1:] + end, colour | {"linestyle": ":", "linewidth": 1.2})
        cross = {"marker": "x", "markersize": 9, "markeredgewidth": 2.4, "zorder": 6}
        drawing.line(axes, end, colour | {"linestyle": "none"} | cross)


FIGURE = Figure("memory", ("largest", "memory"), select, caption, draw)
