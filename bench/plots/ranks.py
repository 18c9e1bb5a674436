"""Seconds and bytes of one loss step across ranks, as measured on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import markdown
from bench.inputs import CUDA_VARIANTS
from bench.plots import selection
from bench.plots.drawing import Chart, Line, Lines
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


def chart(data: Data) -> Chart:
    """Two rows of panels, seconds and bytes; a column for each shape."""
    shapes = data["shapes"]
    return Chart(
        headline(data),
        f"{data['machine']}, {data['dtype']}, processes joined by gloo over the loopback; medians "
        "of the slowest rank, bars from p20 to p80.",
        5.6,
        [_panel(shape, label, data) for label in (SECONDS, BYTES) for shape in shapes],
        len(shapes),
        {"sharex": True, "sharey": "row"},
    )


def _panel(shape: Data, label: str, data: Data) -> Lines:
    styles = selection.styles(data["titles"])
    lines = []
    for peer, points in shape["lines"].items():
        style = styles[peer] | LAYOUTS.get(peer, {})
        seconds = [(ranks, median) for ranks, median, *_ in points]
        sent = [(point[0], point[4] / 2**20) for point in points if point[4]]
        if label == SECONDS:
            spread = [point[2:4] for point in points]
            lines.append(Line(seconds, style, data["titles"][peer], spread))
        elif sent:
            lines.append(Line(sent, style))
    every = sorted({point[0] for points in shape["lines"].values() for point in points})
    title = f"N = {shape['n']}, D = {shape['d']}" if label == SECONDS else ""
    limits = {"xlim": (every[0] / 1.25, every[-1] * 1.25)}
    ticks = {count: str(count) for count in every}
    return Lines(title, lines, ticks, ("ranks", label), limits=limits)


FIGURE = Figure("ranks", ("distributed",), select, caption, chart, by_dtype=True)
