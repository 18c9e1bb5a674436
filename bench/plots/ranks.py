"""Seconds and bytes of one loss step across ranks, as measured on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import markdown
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.ranks import implementations
from bench.results import Row

PLACE = 4
MEASURES = {"median_s": "seconds", "counted_bytes": "MiB sent by a rank"}
STYLES = {
    "ours-features": {
        "color": drawing.OURS, "marker": "o", "linestyle": "-", "markerfacecolor": drawing.OURS,
        "linewidth": 2.6,
    },
    "ours-rows": {"color": "#56b4e9", "marker": "^", "linestyle": "-"},
    "ours-correlation": {
        "color": drawing.OURS, "marker": "D", "linestyle": "--", "markerfacecolor": "white",
        "markersize": 9,
    },
    "official": {"color": drawing.OFFICIAL, "marker": "s", "linestyle": "-"},
}  # fmt: skip


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file and dtype."""
    return drawing.by_dtype("ranks", "distributed", files, _data, _caption, draw)


def _data(rows: Sequence[Row], dtype: str) -> Data | None:
    """`shapes`: of each shape and peer (ranks, median, p20, p80, bytes)."""
    shapes: dict[tuple[int, int], dict[str, list]] = {}
    for row in sorted(rows, key=lambda row: (row["n"], row["d"], row["ranks"])):
        seconds = drawing.spread(row, ("median_s", "p20_s", "p80_s"))
        if seconds is not None:
            point = [row["ranks"], *seconds, drawing.number(row.get("counted_bytes"))]
            shapes.setdefault((row["n"], row["d"]), {}).setdefault(row["peer"], []).append(point)
    if not shapes:
        return None
    known = {name: each.title for name, each in implementations.discover().items()}
    found = {peer for peers in shapes.values() for peer in peers}
    peers = [peer for peer in STYLES if peer in found]
    peers += [peer for peer in drawing.in_order(found) if peer not in STYLES]
    return {
        "machine": drawing.device(rows),
        "dtype": CUDA_VARIANTS[dtype].title,
        "titles": {peer: known.get(peer, peer) for peer in peers},
        "shapes": [{"n": n, "d": d, "lines": lines} for (n, d), lines in shapes.items()],
    }


def _best(data: Data) -> list[tuple[str, float, float]]:
    """(where, times as fast, times fewer bytes) of our fastest layout against the all-reduce."""
    found = []
    for shape in data["shapes"]:
        for ranks, other, _, _, others_bytes in shape["lines"].get("official", ()):
            ours = [
                point
                for peer, points in shape["lines"].items()
                for point in points
                if drawing.is_ours(peer) and point[0] == ranks
            ]
            if ours:
                _, seconds, _, _, sent = min(ours, key=lambda point: point[1])
                fewer = others_bytes / sent if sent and others_bytes else 0.0
                where = f"{shape['n']} × {shape['d']} on {ranks} ranks"
                found.append((where, other / seconds, fewer))
    return found


def _headline(data: Data) -> str:
    ratios = [ratio for _, ratio, _ in _best(data)]
    if not ratios:
        return "One loss step across ranks: seconds and bytes"
    ends = [min(ratios), max(ratios)] if len(ratios) > 1 else ratios
    span = " to ".join(map(markdown.times, ends))
    return f"Across ranks barlow_fast is {span} as fast as an all-reduce of C, with fewer bytes"


def _caption(data: Data) -> str:
    parts = [
        f"{where}: {markdown.times(r)}, {fewer:.1f}× fewer bytes" for where, r, fewer in _best(data)
    ]
    return (
        f"Seconds and bytes of one loss step, {data['dtype']}, on processes of one machine "
        f"({data['machine']}). {'; '.join(parts)}{'.' if parts else ''}"
    ).strip()


def draw(data: Data) -> Any:
    """Two rows of panels, seconds and bytes; a column for each shape."""
    shapes = data["shapes"]
    figure = drawing.figure(
        5.6, _headline(data).removesuffix(", with fewer bytes"),
        f"{data['machine']}, {data['dtype']}, processes joined by gloo over the loopback; medians "
        "of the slowest rank, bars from p20 to p80.",
    )  # fmt: skip
    panels = figure.subplots(2, len(shapes), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for column, shape in enumerate(shapes):
        for axes, measure in zip(panels[:, column], MEASURES, strict=True):
            _panel(axes, shape, measure, data["titles"], handles)
            if column == 0:
                axes.set_ylabel(MEASURES[measure])
        panels[0, column].set_title(f"N = {shape['n']}, D = {shape['d']}")
        panels[1, column].set_xlabel("ranks")
    drawing.legend(figure, handles, data["titles"])
    return figure


def _panel(
    axes: Any, shape: Data, measure: str, titles: Mapping[str, str], handles: dict[str, Any]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    style = drawing.styles(titles)
    for peer, points in shape["lines"].items():
        look = {"linewidth": 1.8, "markersize": 6} | style[peer] | STYLES.get(peer, {})
        ranks, seconds, low, high, sent = zip(*points, strict=True)
        if measure == "counted_bytes":
            known = [(x, y / 2**20) for x, y in zip(ranks, sent, strict=True) if y]
            if known:
                axes.plot(*zip(*known, strict=True), **look)
            continue
        axes.vlines(ranks, low, high, color=look["color"], linewidth=3, alpha=0.4)
        handles[peer] = axes.plot(ranks, seconds, **look)[0]
    every = sorted({point[0] for points in shape["lines"].values() for point in points})
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(every[0] / 1.25, every[-1] * 1.25)
    drawing.ticks(axes, every, [str(count) for count in every])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", alpha=0.3)
