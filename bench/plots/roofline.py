"""Rooflines: useful operations per second of each implementation, under measured ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench import markdown
from bench.floor import moved_bytes, operations
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row

PLACE = 2
SPREAD, MOST_SPREAD = 0.035, 0.4  # of the intensity, by peer and in all: ranges stay apart
ACROSS = 3  # panels side by side; a crowd of peers needs wide ones
MOST_PANELS = 3
PREFERRED = ("fp32", "tf32", "bf16-inputs")  # where there are more dtypes than panels


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file whose rows have peaks, with a panel for each dtype."""
    found = []
    for name, rows in drawing.rows_of(files, "loss"):
        panels = [
            panel
            for dtype in CUDA_VARIANTS
            if (panel := _panel_data([row for row in rows if row.get("dtype") == dtype], dtype))
        ]
        if len(panels) > MOST_PANELS:
            panels = [panel for panel in panels if panel["dtype"] in PREFERRED]
        if panels:
            peers = drawing.thinned(peer for panel in panels for peer in panel["points"])
            for panel in panels:
                panel["points"] = {p: v for p, v in panel["points"].items() if p in peers}
            data = {
                "machine": drawing.device(rows),
                "panels": panels,
                "titles": drawing.titled(peers),
            }
            found.append(
                Picture(f"roofline-{drawing.stem(name)}", "loss", name, _caption(data), data, draw)
            )
    return found


def _panel_data(rows: Sequence[Row], dtype: str) -> Data | None:
    """`points`: by peer and intensity, the least, the median and the most GFLOP/s of its shapes."""
    variant = CUDA_VARIANTS[dtype]
    rates: dict[str, dict[float, list[float]]] = {}
    products, copies = set(), set()
    for row in rows:
        milliseconds = next(
            (v for key in ("graph_ms", "median_ms") if (v := drawing.number(row.get(key)))), None
        )
        peaks = row.get("peaks") or {}
        product, copy = _product(peaks, variant.gemm), drawing.number(peaks.get("copy_gbps"))
        if milliseconds is None or product is None or copy is None or not row.get("exact", True):
            continue
        products.add(product)
        copies.add(copy)
        work = operations(row["n"], row["d"])
        intensity = work / moved_bytes(row["n"], row["d"], variant.dtype.itemsize)
        rate = work / (milliseconds * 1e-3) / 1e9
        rates.setdefault(row["peer"], {}).setdefault(intensity, []).append(rate)
    if not rates:
        return None
    points = {
        peer: [
            [x, *(float(f"{v:.4g}") for v in (min(found), median(found), max(found)))]
            for x, found in sorted(by_intensity.items())
        ]
        for peer, by_intensity in sorted(rates.items())
    }
    return {
        "dtype": dtype,
        "title": variant.title,
        "gemm": variant.gemm,
        "products": [min(products), max(products)],
        "copies": [min(copies), max(copies)],
        "points": points,
    }


def _product(peaks: Row, name: str) -> float | None:
    """The measured rate that bounds products of a dtype, as the floor takes it."""
    rate = drawing.number(peaks.get(f"gemm_{name}_gflops"))
    tf32 = drawing.number(peaks.get("gemm_tf32_gflops"))
    return max(rate or 0.0, tf32 / 3) if name == "fp32" and tf32 else rate


def _share(panel: Data) -> float | None:
    """The most of its ceiling that ours reaches at any shape."""
    shares = [most / _ceiling(panel, x) for x, _, _, most in panel["points"].get("ours", ())]
    return max(shares, default=None)


def _ceiling(panel: Data, x: float) -> float:
    return min(panel["products"][1], panel["copies"][1] * x)


def _caption(data: Data) -> str:
    parts = [f"Useful GFLOP/s of each implementation under measured ceilings, {data['machine']}."]
    for panel in data["panels"]:
        share = _share(panel)
        if share is not None:
            parts.append(f"{panel['title']}: barlow_fast reaches up to {share:.0%} of its ceiling.")
    return " ".join(parts)


def draw(data: Data) -> Any:
    """Ceilings as lines, implementations as points with the range over shapes."""
    panels = data["panels"]
    across = min(len(panels), ACROSS) if len(data["titles"]) <= drawing.CROWD else 1
    down = -(-len(panels) // across)
    legend_lines = -(-len(data["titles"]) // 4)
    shares = [share for panel in panels if (share := _share(panel)) is not None]
    title = "Operations that the loss needs, per second, under the measured ceilings"
    if shares:
        title = f"barlow_fast reaches up to {max(shares):.0%} of its ceiling"
    figure = drawing.figure(
        (3.5 if across > 1 else 2.7) * down + 0.9 + 0.22 * legend_lines, title,
        f"{data['machine']}. 6·N·D·min(N, D) operations over the time of forward + backward; "
        "marks: medians over shapes, bars: least to most.",
    )  # fmt: skip
    styles = drawing.styles(data["titles"])
    all_axes = figure.subplots(down, across, squeeze=False).flat
    handles: dict[str, Any] = {}
    for axes, panel in zip(all_axes, panels, strict=False):
        _panel(axes, panel, styles, handles)
    for axes in list(all_axes)[len(panels) :]:
        axes.remove()
    for axes in figure.axes[::across]:
        axes.set_ylabel("useful GFLOP/s")
    drawing.legend(figure, handles, data["titles"])
    return figure


def _panel(axes: Any, panel: Data, styles: Mapping[str, Data], handles: dict[str, Any]) -> None:
    xs = sorted({point[0] for points in panel["points"].values() for point in points})
    left, right = xs[0] / 1.6, xs[-1] * 1.6
    (least, most), (slow, fast) = panel["products"], panel["copies"]
    ridge = most / fast
    roof = sorted({left, right, *([ridge] if left < ridge < right else [])})
    axes.plot(roof, [_ceiling(panel, x) for x in roof], color=drawing.INK, linewidth=1.6, zorder=2)
    # Where runs measured different peaks, the ceiling is as thick as they differ.
    axes.fill_between(
        roof, [min(least, slow * x) for x in roof], [_ceiling(panel, x) for x in roof],
        color=drawing.LINE, alpha=0.6, linewidth=0, zorder=1,
    )  # fmt: skip
    product = f"{panel['gemm']} GEMM {markdown.rate(most)}"
    drawing.note(axes, product, (right, most), (0, 3), ha="right")
    if left < ridge:
        drawing.note(axes, f"copy {markdown.rate(fast)} GB/s", (left, most), (2, 3))
    peers = list(styles)
    for peer, points in panel["points"].items():
        style = styles[peer]
        spread = min(SPREAD * (len(peers) - 1), MOST_SPREAD)
        shift = 1 + spread * (peers.index(peer) / max(len(peers) - 1, 1) - 0.5)
        x, low, middle, high = zip(*points, strict=True)
        x = [value * shift for value in x]
        line = {} if drawing.is_ours(peer) else {"linestyle": "none"}
        handles[peer] = axes.plot(x, middle, **style | line | {"linewidth": 1.4})[0]
        axes.vlines(
            x, low, high, color=style["color"], linewidth=1.2, alpha=0.6,
            zorder=style["zorder"] - 0.5,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_xlabel("operations per byte")
    xs = xs if len(xs) < 7 else xs[::2]
    drawing.ticks(axes, xs, [f"{x:g}" for x in xs])
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(panel["title"].replace(" under bfloat16 autocast", ", autocast"))
