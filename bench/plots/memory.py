"""Peak memory against D at N = 256, up to the D where each implementation runs out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row

PLACE = 3
N, DTYPE, ELEMENT = 256, "fp32", 4
NEAR = 6  # in D, of lines whose names make one list
DECIMALS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file with rows of `memory` or `largest` at N = 256 in float32."""
    found = []
    for name, rows in drawing.rows_of(files, "memory", "largest"):
        rows = [row for row in rows if row.get("n") == N and row.get("dtype") == DTYPE]
        data = _data(rows)
        if data is not None:
            largest = any(row["suite"] == "largest" for row in rows)
            suite = "largest" if largest else "memory"
            found.append(
                Picture(f"memory-{drawing.stem(name)}", suite, name, _caption(data), data, draw)
            )
    return found


def _data(rows: Sequence[Row]) -> Data | None:
    """Of each peer: `points`, (D, bytes) of inputs, gradients and everything else; `failed`, the
    least D that did not fit."""
    lines: dict[str, Data] = {}
    limits = set()
    for row in sorted(rows, key=lambda row: row["suite"] == "memory"):
        line = lines.setdefault(row["peer"], {"points": {}, "failed": None, "largest": None})
        if row["suite"] == "largest":
            limits.add(drawing.number(row.get("limit_bytes")))
            line["failed"] = drawing.number(row.get("failed_d"))
            line["largest"] = drawing.number(row.get("d"))
            pairs = row.get("points") or []
        else:
            inputs, peak = (drawing.number(row.get(k)) for k in ("input_bytes", "peak_bytes"))
            pairs = [[row["d"], inputs + peak if inputs and peak else None]]
            if row.get("problem") and "memory" in str(row["problem"]) and line["failed"] is None:
                line["failed"] = drawing.number(row["d"])
        for d, used in pairs:
            if drawing.number(used):
                # What the search for the largest D measured is of one run: it has precedence.
                line["points"].setdefault(int(d), int(used))
    if not any(line["points"] for line in lines.values()):
        return None
    peers = drawing.thinned(lines)
    return {
        "machine": drawing.device(rows),
        "limit": max(limits - {None}, default=None),
        "titles": drawing.titled(peers),
        "lines": {
            peer: lines[peer] | {"points": sorted(map(list, lines[peer]["points"].items()))}
            for peer in peers
        },
    }


def _reach(line: Data) -> float | None:
    """The largest D known to work."""
    return max([d for d, _ in line["points"]] + [line["largest"] or 0]) or None


def _headline(data: Data) -> str:
    reach = {peer: d for peer, line in data["lines"].items() if (d := _reach(line))}
    others = [d for p, d in reach.items() if not drawing.is_ours(p) and drawing.is_exact(p)]
    failing = any(line["failed"] for line in data["lines"].values())
    if failing and others and "ours" in reach:
        what = f"Within {_bytes(data['limit'])}" if data["limit"] else "Within memory"
        what += f", barlow_fast does D = {reach['ours']:,.0f}"
        if reach["ours"] > max(others):
            return f"{what}, other exact ones at most {max(others):,.0f}"
        if "official" in reach:
            return f"{what}, the official implementation {reach['official']:,.0f}"
        return f"{what}, others up to {max(others):,.0f}"
    ours, official = (
        dict(data["lines"].get(peer, {"points": []})["points"]) for peer in ("ours", "official")
    )
    if both := set(ours) & set(official):
        d = max(both)
        ratio = f"{official[d] / ours[d]:.0f}×"
        return f"At D = {d:,} the official implementation takes {ratio} the memory"
    return f"Peak memory of forward + backward at N = {N}"


def _caption(data: Data) -> str:
    reach = [
        f"{data['titles'][peer]} {'at least ' if not line['failed'] else ''}{d:,.0f}"
        for peer, line in data["lines"].items()
        if (d := _reach(line))
    ]
    return (
        f"{_headline(data)} (peak memory of forward + backward at N = {N}, float32, with inputs "
        f"and gradients, {data['machine']}). Largest D measured: {', '.join(reach)}."
    )


def _bytes(value: float) -> str:
    for unit, name in DECIMALS:
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} bytes"


def draw(data: Data) -> Any:
    """A line for each implementation, labelled at its end; × where it runs out of memory."""
    from matplotlib.ticker import FuncFormatter

    failing = any(line["failed"] for line in data["lines"].values())
    figure = drawing.figure(
        5.6, _headline(data),
        f"{data['machine']}, float32, N = {N}, forward + backward: inputs, gradients and "
        f"everything else.{' ×: does not fit.' if failing else ''}",
    )  # fmt: skip
    axes = figure.subplots()
    styles = drawing.styles(data["lines"])
    dimensions = [d for line in data["lines"].values() for d, _ in line["points"]]
    dimensions += [line["failed"] for line in data["lines"].values() if line["failed"]]
    least, most = min(dimensions), max(dimensions)
    most = max(most, 2 * least)
    top, ends = _top(data), []
    for peer, line in data["lines"].items():
        ends += _line(axes, peer, line, styles[peer], top)
    floor = [4 * N * d * ELEMENT for d in (least, most)]
    axes.plot([least, most], floor, color=drawing.SOFT, linewidth=1, linestyle=":", zorder=1)
    text, style = "inputs and gradients alone", {"color": drawing.SOFT, "va": "top"}
    drawing.note(axes, text, (least, floor[0]), (8, -7), **style)
    if data["limit"]:
        axes.axhline(data["limit"], color=drawing.INK, linewidth=1.2)
        limit = data["limit"]
        drawing.note(axes, _bytes(limit), (least, limit), (2, 3), fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(least / 1.15, most * (most / least) ** 0.3 * 1.1)
    axes.set_ylim(floor[0] / 2.2, top * 2.5)
    ticks = [2**k for k in range(64) if least / 1.1 <= 2**k <= most * 1.1]
    ticks = ticks[:: -(-len(ticks) // 10)]
    drawing.ticks(axes, ticks, [drawing.size(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    axes.set(xlabel="D", ylabel="peak memory")
    axes.grid(alpha=0.25)
    _labels(axes, ends, data, top * 2.5 / (floor[0] / 2.2))
    return figure


class End(NamedTuple):
    """Where a line ends, (D, bytes), and the D up to which its cross lies."""

    peer: str
    d: float
    used: float
    beyond: float


def _line(axes: Any, peer: str, line: Data, style: Data, top: float) -> list[End]:
    """Draws it; returns where it ends, if it was drawn at all."""
    points = line["points"]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
    if line["failed"]:
        # How much it would have taken is not known: the cross is at the limit.
        end = (line["failed"], top)
        start = points[-1] if points else end
        axes.plot(
            [start[0], end[0]], [start[1], end[1]], color=style["color"], linestyle=":",
            linewidth=1.2, zorder=style["zorder"] - 1,
        )  # fmt: skip
        axes.plot(
            *end, marker="x", markersize=9, markeredgewidth=2.4, color=style["color"],
            zorder=style["zorder"] + 1, linestyle="none",
        )  # fmt: skip
    if points:
        return [End(peer, *points[-1], line["failed"] or points[-1][0])]
    return [End(peer, line["failed"], top, line["failed"])] if line["failed"] else []


def _labels(axes: Any, ends: Sequence[End], data: Data, span: float) -> None:
    """Lists of names with their marks, beside the lines that end at about the same D."""
    step = span ** (1 / 30)
    styles = drawing.styles(data["lines"])
    clusters: list[list[End]] = []
    for end in sorted(ends, key=lambda end: end.d):
        if clusters and end.d < NEAR * clusters[-1][0].d:
            clusters[-1].append(end)
        else:
            clusters.append([end])
    for cluster in clusters:
        failing = [end for end in cluster if end.beyond > end.d]
        x = max(end.beyond for end in cluster) * 1.13
        y = max(end.used for end in cluster)
        # Below the crosses and the line of the limit.
        y = min(y, _top(data) / 1.7) if failing else y
        for end in sorted(cluster, key=lambda end: (-end.d, -end.used)):
            style = styles[end.peer] | {"linestyle": "none", "markersize": 5}
            y = y if failing else min(y, end.used)
            reached = f": {end.d:,.0f}" if failing else ""
            axes.plot([x], [y], **style)
            drawing.note(
                axes, data["titles"][end.peer] + reached, (x, y), (6, 0), color=style["color"],
                va="center", zorder=6, fontweight="bold" if end.peer == "ours" else "normal",
            )  # fmt: skip
            y /= step


def _top(data: Data) -> float:
    """The limit, or else the most memory that an implementation used."""
    used = [used for line in data["lines"].values() for _, used in line["points"]]
    return data["limit"] or max(used)
