"""Rooflines: useful operations per second of each implementation, under measured ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench import markdown
from bench.floor import moved_bytes, operations
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.results import Row

SPREAD, MOST_SPREAD = 0.035, 0.4  # of the intensity, by peer and in all: ranges stay apart
MOST_PANELS = 3  # side by side, unless a crowd of peers needs wide ones
PREFERRED = ("fp32", "tf32", "bf16-inputs")  # where there are more dtypes than panels


def select(rows: Sequence[Row]) -> Data | None:
    """A panel for each dtype with peaks, and the titles of the peers in them."""
    panels = [
        panel
        for dtype in CUDA_VARIANTS
        if (panel := _selected([row for row in rows if row.get("dtype") == dtype], dtype))
    ]
    if len(panels) > MOST_PANELS:
        panels = [panel for panel in panels if panel["dtype"] in PREFERRED]
    peers = selection.thinned(peer for panel in panels for peer in panel["points"])
    for panel in panels:
        panel["points"] = {p: v for p, v in panel["points"].items() if p in peers}
    return {"panels": panels, "titles": selection.titled(peers)} if panels else None


def _selected(rows: Sequence[Row], dtype: str) -> Data | None:
    """`points`: by peer and intensity, the least, the median and the most GFLOP/s of its shapes."""
    variant = CUDA_VARIANTS[dtype]
    rates: dict[str, dict[float, list[float]]] = {}
    products, copies = set(), set()
    for row in rows:
        _, milliseconds = next(selection.times(row), ("", None))
        peaks = row.get("peaks") or {}
        product, copy = _product(peaks, variant.gemm), selection.number(peaks.get("copy_gbps"))
        if None in (milliseconds, product, copy) or not row.get("exact", True):
            continue
        products.add(product)
        copies.add(copy)
        work = operations(row["n"], row["d"])
        intensity = work / moved_bytes(row["n"], row["d"], variant.dtype.itemsize)
        rate = work / (milliseconds * 1e-3) / 1e9
        rates.setdefault(row["peer"], {}).setdefault(intensity, []).append(rate)
    points = {
        peer: [
            [x, *(float(f"{v:.4g}") for v in (min(found), median(found), max(found)))]
            for x, found in sorted(by_intensity.items())
        ]
        for peer, by_intensity in sorted(rates.items())
    }
    ends = {"products": products, "copies": copies}
    return {
        "dtype": dtype, "title": variant.title, "gemm": variant.gemm, "points": points,
        **{key: [min(values), max(values)] for key, values in ends.items()},
    } if rates else None  # fmt: skip


def _product(peaks: Row, name: str) -> float | None:
    """The measured rate that bounds products of a dtype, as the floor takes it."""
    rate = selection.number(peaks.get(f"gemm_{name}_gflops"))
    tf32 = selection.number(peaks.get("gemm_tf32_gflops"))
    return max(rate or 0.0, tf32 / 3) if name == "fp32" and tf32 else rate


def ceiling(panel: Data, x: float, end: int = 1) -> float:
    """GFLOP/s at x operations per byte; with `end` 0 by the lowest peaks of all runs."""
    return min(panel["products"][end], panel["copies"][end] * x)


def _share(panel: Data) -> float:
    """The most of its ceiling that ours reaches at any shape; 0 where it has no times."""
    points = panel["points"].get("ours", ())
    return max((most / ceiling(panel, x) for x, _, _, most in points), default=0.0)


def caption(data: Data) -> str:
    """The share of the ceiling that ours reaches, by dtype."""
    parts = [f"Useful GFLOP/s of each implementation under measured ceilings, {data['machine']}."]
    for panel in data["panels"]:
        if share := _share(panel):
            parts.append(f"{panel['title']}: barlow_fast reaches up to {share:.0%} of its ceiling.")
    return " ".join(parts)


def draw(data: Data) -> Any:
    """Ceilings as lines, implementations as points with the range over shapes."""
    panels, titles = data["panels"], data["titles"]
    columns = len(panels) if len(titles) <= selection.CROWD else 1
    share = max(map(_share, panels))
    title = "Operations that the loss needs, per second, under the measured ceilings"
    height = (3.5 if columns > 1 else 2.7) * len(panels) / columns
    figure, axes = drawing.sheet(
        f"barlow_fast reaches up to {share:.0%} of its ceiling" if share else title,
        f"{data['machine']}. 6·N·D·min(N, D) operations over the time of forward + backward; "
        "marks: medians over shapes, bars: least to most.",
        height + 0.9 + 0.22 * -(-len(titles) // 4),
        len(panels),
        columns,
    )
    for each, panel in zip(axes, panels, strict=True):
        _panel(each, panel, titles)
    drawing.legend(figure)
    return figure


def _panel(axes: Any, panel: Data, titles: Mapping[str, str]) -> None:
    xs = sorted({point[0] for points in panel["points"].values() for point in points})
    left, right = xs[0] / 1.6, xs[-1] * 1.6
    _ceilings(axes, panel, left, right)
    for index, (peer, style) in enumerate(selection.styles(titles).items()):
        points = panel["points"].get(peer, ())
        spread = min(SPREAD * (len(titles) - 1), MOST_SPREAD)
        shift = 1 + spread * (index / max(len(titles) - 1, 1) - 0.5)
        joined = {"linewidth": 1.4} | ({} if selection.is_ours(peer) else {"linestyle": "none"})
        if points:
            medians = [(x * shift, middle) for x, _, middle, _ in points]
            drawing.line(axes, medians, style | joined, titles[peer])
            ranges = [(x * shift, low, high) for x, low, _, high in points]
            drawing.spread(axes, ranges, style["color"])
    most, fast = panel["products"][1], panel["copies"][1]
    rate = f"{panel['gemm']} GEMM {markdown.rate(most)}"
    drawing.note(axes, rate, (right, most), (0, 3), ha="right")
    if left < most / fast:
        drawing.note(axes, f"copy {markdown.rate(fast)} GB/s", (left, most), (2, 3))
    title = panel["title"].replace(" under bfloat16 autocast", ", autocast")
    ticks = {x: f"{x:g}" for x in (xs if len(xs) < 7 else xs[::2])}
    labels = ("operations per byte", "useful GFLOP/s")
    drawing.logarithmic(axes, title, ticks, labels, xlim=(left, right))


def _ceilings(axes: Any, panel: Data, left: float, right: float) -> None:
    """Where runs measured different peaks, the ceiling is as thick as they differ."""
    ridge = panel["products"][1] / panel["copies"][1]
    roof = sorted({left, right, *([ridge] if left < ridge < right else [])})
    low, high = ([ceiling(panel, x, end) for x in roof] for end in (0, 1))
    style = {"color": drawing.INK, "linewidth": 1.6, "zorder": 2}
    drawing.line(axes, list(zip(roof, high, strict=True)), style)
    axes.fill_between(roof, low, high, color=drawing.LINE, alpha=0.6, linewidth=0, zorder=1)


FIGURE = Figure("roofline", ("loss",), select, caption, draw)
