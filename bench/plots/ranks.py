"""Seconds and bytes of one loss step across ranks, as measured on one machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import markdown
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.ranks import implementations
from bench.results import Row

SECONDS, BYTES = "seconds", "MiB sent by a rank"
# Layouts of ours differ by more than their lines.
LAYOUTS = {"ours-rows": {"color": "#56b4e9", "marker": "^", "markerfacecolor": "#56b4e9"}}


def select(rows: Sequence[Row]) -> Data | None:
    """`shapes`: of each shape and peer (ranks, median, p20, p80, bytes)."""
    shapes: dict[tuple[int, int], dict[str, list]] = {}
    for row in sorted(rows, key=lambda row: (row["n"], row["d"], row["ranks"])):
        seconds = selection.spread(row, "s")
        if seconds is not None:
            point = [row["ranks"], *seconds, selection.number(row.get("counted_bytes"))]
            shapes.setdefault((row["n"], row["d"]), {}).setdefault(row["peer"], []).append(point)
    if not shapes:
        return None
    known = {name: each.title for name, each in implementations.discover().items()}
    found = selection.in_order(peer for peers in shapes.values() for peer in peers)
    return {
        "dtype": CUDA_VARIANTS[rows[0]["dtype"]].title,
        "titles": {peer: known.get(peer, peer).replace("`", "") for peer in found},
        "shapes": [{"n": n, "d": d, "lines": lines} for (n, d), lines in shapes.items()],
    }


def _best(data: Data) -> Iterator[tuple[str, float, float]]:
    """(where, times as fast, times fewer bytes) of our fastest layout against the all-reduce."""
    for shape in data["shapes"]:
        for ranks, other, _, _, others_bytes in shape["lines"].get("official", ()):
            ours = [
                point
                for peer, points in shape["lines"].items()
                for point in points
                if selection.is_ours(peer) and point[0] == ranks
            ]
            if ours:
                _, seconds, _, _, sent = min(ours, key=lambda point: point[1])
                fewer = others_bytes / sent if sent and others_bytes else 0.0
                yield f"{shape['n']} × {shape['d']} on {ranks} ranks", other / seconds, fewer


def headline(data: Data) -> str:
    """How many times as fast ours is, over shapes and ranks."""
    ratios = [ratio for _, ratio, _ in _best(data)]
    if not ratios:
        return "One loss step across ranks: seconds and bytes"
    span = " to ".join(map(markdown.times, dict.fromkeys((min(ratios), max(ratios)))))
    return f"Across ranks barlow_fast is {span} as fast as an all-reduce of C"


def caption(data: Data) -> str:
    """What was measured where, and the ratios at each shape."""
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
    text = (
        f"{data['machine']}, {data['dtype']}, processes joined by gloo over the loopback; medians "
        "of the slowest rank, bars from p20 to p80."
    )
    size = 2 * len(shapes), len(shapes)
    figure, panels = drawing.sheet(headline(data), text, 5.6, *size, sharex=True, sharey="row")
    kinds = itertools.product((SECONDS, BYTES), shapes)
    for axes, (label, shape) in zip(panels, kinds, strict=True):
        _panel(axes, shape, label, data["titles"])
        axes.label_outer()
    drawing.legend(figure)
    return figure


def _panel(axes: Any, shape: Data, label: str, titles: Mapping[str, str]) -> None:
    styles = selection.styles(titles)
    for peer, points in shape["lines"].items():
        style = styles[peer] | LAYOUTS.get(peer, {})
        sent = [(point[0], point[4] / 2**20) for point in points if point[4]]
        if label == SECONDS:
            drawing.line(axes, [point[:2] for point in points], style, titles[peer])
            drawing.spread(axes, [(point[0], *point[2:4]) for point in points], style["color"])
        elif sent:
            drawing.line(axes, sent, style)
    every = sorted({point[0] for points in shape["lines"].values() for point in points})
    title = f"N = {shape['n']}, D = {shape['d']}" if label == SECONDS else ""
    ticks, ends = {count: str(count) for count in every}, (every[0] / 1.25, every[-1] * 1.25)
    drawing.logarithmic(axes, title, ticks, ("ranks", label), xlim=ends)


FIGURE = Figure("ranks", ("distributed",), select, caption, draw, by_dtype=True)
