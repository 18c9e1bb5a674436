"""Lines on logarithmic axes: rooflines, memory against D, the loss across ranks, and as modelled on
groups of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench import markdown
from bench.floor import moved_bytes, operations
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, figure
from bench.plots.figure import Data, Figure
from bench.ranks import implementations
from bench.results import Row, grouped, listed
from bench.suites import scaling

N, DTYPE, GB = 256, "fp32", 1e9  # of the figure of memory
MOST_TICKS = 10
CEILING = {"color": drawing.INK, "linewidth": 1.6, "zorder": 2}
THIN = {"color": drawing.SOFT, "linewidth": 1, "linestyle": ":", "zorder": 1}
MODEL = {"marker": "o", "markersize": 5, "linewidth": 2, "color": figure.OURS}
FEWER = {"linestyle": "--", "markerfacecolor": "white"}
ALL_REDUCE = {"color": figure.OFFICIAL, "linewidth": 2, "markersize": 5}


def _line(points: Sequence, style: Data, title: str = "_", **more: Any) -> Data:
    return {"points": [list(point) for point in points], "style": style, "title": title, **more}


def rooflines(rows: Sequence[Row]) -> Data | None:
    """A panel for each dtype with peaks: useful operations per second under measured ceilings."""
    panels = []
    for dtype in CUDA_VARIANTS:
        some = [row for row in rows if row.get("dtype") == dtype and row.get("exact", True)]
        if panel := _roofline(some, dtype):
            panels.append(panel)
    shares = {panel["title"]: panel["reached"] for panel in panels if panel["reached"]}
    title = "Operations that the loss needs, per second, under the measured ceilings"
    if shares:
        title = f"barlow_fast reaches up to {max(shares.values()):.0%} of its ceiling"
    each = "; ".join(f"{name}: up to {share:.0%}" for name, share in shares.items())
    return {
        "title": title,
        "text": "6·N·D·min(N, D) operations over the time of forward + backward; marks: medians "
        f"over shapes, bars: least to most. Of its ceiling barlow_fast reaches: {each or '–'}.",
        "panels": panels, "columns": 1, "height": 2.7,
    } if panels else None  # fmt: skip


def _roofline(rows: Sequence[Row], dtype: str) -> Data | None:
    variant, rates, ceilings = CUDA_VARIANTS[dtype], {}, set()
    for row in rows:
        times, peaks = list(figure.times(row).values()), row.get("peaks") or {}
        product, copy = _product(peaks, variant.gemm), figure.number(peaks.get("copy_gbps"))
        if times and product and copy:
            ceilings.add((product, copy))
            work = operations(row["n"], row["d"])
            x = work / moved_bytes(row["n"], row["d"], variant.dtype.itemsize)
            rate = work / (times[0] * 1e-3) / 1e9
            rates.setdefault(row["peer"], {}).setdefault(x, []).append(float(f"{rate:.4g}"))
    if not rates:
        return None
    xs = sorted({x for by_x in rates.values() for x in by_x})
    left, right = xs[0] / 1.6, xs[-1] * 1.6
    most, copy = (max(values) for values in zip(*ceilings, strict=True))
    roof = sorted({left, right, min(max(most / copy, left), right)})
    note = (
        f"{variant.gemm} GEMM {markdown.rate(most)} GFLOP/s, copy {markdown.rate(copy)} GB/s",
        -1,
    )
    lines = [_line([(x, min(most, copy * x)) for x in roof], CEILING, note=[*note, "right"])]
    peers = figure.thinned(rates)
    titles = figure.titled(peers)
    for index, (peer, style) in enumerate(figure.styles(peers).items()):
        # Ranges stay apart.
        shift = 1 + min(0.035 * len(peers), 0.4) * (index / len(peers) - 0.5)
        spread = [[x * shift, min(v), max(v)] for x, v in sorted(rates[peer].items())]
        points = [(x * shift, median(v)) for x, v in sorted(rates[peer].items())]
        joined = {} if figure.is_ours(peer) else {"linestyle": "none"}
        lines.append(_line(points, style | joined, titles[peer], spread=spread))
    ticks = {x: f"{x:g}" for x in (xs if len(xs) < 7 else xs[::2])}
    ours = (max(values) / min(most, copy * x) for x, values in rates.get("ours", {}).items())
    return {
        "title": variant.title, "lines": lines, "ticks": ticks, "limits": {"xlim": [left, right]},
        "labels": ["operations per byte", "useful GFLOP/s"], "reached": max(ours, default=0.0),
    }  # fmt: skip


def _product(peaks: Row, name: str) -> float | None:
    """The measured rate that bounds products of a dtype, as the floor takes it."""
    rate = figure.number(peaks.get(f"gemm_{name}_gflops"))
    tf32 = figure.number(peaks.get("gemm_tf32_gflops"))
    return max(rate or 0.0, tf32 / 3) if name == "fp32" and tf32 else rate


def memory(rows: Sequence[Row]) -> Data | None:
    """Peak memory of each peer against D, up to the D where it runs out of it."""
    rows = [row for row in rows if row.get("n") == N and row.get("dtype") == DTYPE]
    found: dict[str, Data] = {}
    # What the search for the largest D measured is of one run: it has precedence.
    for row in sorted(rows, key=lambda row: row["suite"] == "memory"):
        each = found.setdefault(row["peer"], {"points": {}, "failed": None})
        if row["suite"] == "largest":
            failed, points = row.get("failed_d"), row.get("points") or []
        else:
            failed = row["d"] if "memory" in str(row.get("problem")) else None
            points = [[row["d"], row.get("peak_bytes") and row["input_bytes"] + row["peak_bytes"]]]
        each["failed"] = each["failed"] or failed
        for d, used in points:
            if figure.number(used):
                each["points"].setdefault(int(d), used / GB)
    found = {peer: each for peer, each in found.items() if each["points"]}
    if not found:
        return None
    peers = figure.thinned(found)
    ds = [d for p in peers for d in (*found[p]["points"], found[p]["failed"]) if d]
    left, right = min(ds) / 1.15, max(*ds, 2 * min(ds)) * 1.15
    limits = [row["limit_bytes"] / GB for row in rows if row.get("limit_bytes")]
    top = max(limits or [used for p in peers for used in found[p]["points"].values()])
    floor = [(d, 4 * N * d * CUDA_VARIANTS[DTYPE].dtype.itemsize / GB) for d in (left, right)]
    lines = [_line(floor, THIN, note=["inputs and gradients alone", 0, "left"])]
    if limits:
        style = {"color": drawing.INK, "linewidth": 1.2}
        lines.append(_line([(left, top), (right, top)], style, note=[f"{top:.3g} GB", 0, "left"]))
    titles, styles = figure.titled(peers), figure.styles(peers)
    for peer in sorted(peers, key=lambda peer: -max(found[peer]["points"])):
        points, failed = sorted(found[peer]["points"].items()), found[peer]["failed"]
        reached = f": {points[-1][0]:,}" if failed else ""
        lines.append(_line(points, styles[peer], titles[peer] + reached))
        if failed:
            # How much it would have taken is not known: the cross is at the limit.
            style = {"color": styles[peer]["color"], "linestyle": ":", "linewidth": 1.2}
            style |= {"marker": "x", "markersize": 9, "markeredgewidth": 2.4, "markevery": [1]}
            lines.append(_line([points[-1], (failed, top)], style))
    ticks = [2**k for k in range(64) if left <= 2**k <= right]
    panel = {
        "title": "", "labels": ["D", "peak memory, GB"], "lines": lines,
        "ticks": {tick: figure.size(tick) for tick in ticks[:: -(-len(ticks) // MOST_TICKS)]},
        "limits": {"xlim": [left, right], "ylim": [floor[0][1] / 2.2, top * 2.5]},
    }  # fmt: skip
    title = f"Peak memory of forward + backward at N = {N}"
    reach = {peer: max(found[peer]["points"]) for peer in peers}
    exact = {row["peer"] for row in rows if row.get("exact", True)}
    others = [d for peer, d in reach.items() if peer in exact and not figure.is_ours(peer)]
    if limits and "ours" in reach and others:
        most = f"other exact ones at most {max(others):,}"
        title = f"Within {top:.3g} GB, barlow_fast does D = {reach['ours']:,}, {most}"
    return {
        "title": title,
        "text": f"Forward + backward at N = {N}, float32: inputs, gradients and everything else; "
        "×: does not fit. The legend has the largest D.",
        "panels": [panel], "columns": 1, "height": 4.3,
    }  # fmt: skip


def ranks(rows: Sequence[Row]) -> Data | None:
    """Two rows of panels, seconds and bytes of one step across ranks; a column for each shape."""
    rows = [row for row in rows if figure.spread(row, "s")]
    if not rows:
        return None
    known = {name: each.title for name, each in implementations.discover().items()}
    ratios = []
    for group in grouped(rows, "n", "d", "ranks").values():
        ours = [row["median_s"] for peer, row in group.items() if figure.is_ours(peer)]
        if ours and (other := group.get(implementations.OFFICIAL)):
            ratios.append(other["median_s"] / min(ours))
    headline = "Across ranks of one machine: seconds and bytes"
    if span := figure.span(ratios):
        headline = f"Across ranks barlow_fast is {span} as fast as an all-reduce of C"
    styles = figure.styles(row["peer"] for row in rows)
    shapes = dict(sorted(listed(rows, "n", "d").items()))
    panels = []
    for label in ("seconds", "MiB sent by a rank"):
        for (n, d), some in shapes.items():
            some = sorted(some, key=lambda row: row["ranks"])
            lines = []
            for (peer,), each in listed(some, "peer").items():
                title = known.get(peer, peer).replace("`", "")
                if label == "seconds":
                    found = [(row["ranks"], *figure.spread(row, "s")) for row in each]
                    spread = [[x, low, high] for x, _, low, high in found]
                    points = [(x, middle) for x, middle, _, _ in found]
                    lines.append(_line(points, styles[peer], title, spread=spread))
                elif all(row.get("counted_bytes") for row in each):
                    points = [(row["ranks"], row["counted_bytes"] / 2**20) for row in each]
                    lines.append(_line(points, styles[peer], title))
            counts = sorted({row["ranks"] for row in some})
            panels.append({
                "title": f"N = {n}, D = {d}" if label == "seconds" else "", "lines": lines,
                "labels": ["ranks", label], "ticks": {count: str(count) for count in counts},
                "limits": {"xlim": [counts[0] / 1.25, counts[-1] * 1.25]},
            })  # fmt: skip
    return {
        "title": headline,
        "text": f"One step of the loss, {CUDA_VARIANTS[rows[0]['dtype']].title}, processes "
        "joined by gloo over the loopback; medians of the slowest rank, bars from p20 to p80.",
        "panels": panels, "columns": len(shapes), "height": 2.15,
        "shared": {"sharex": True, "sharey": "row"},
    }  # fmt: skip


def modelled(rows: Sequence[Row]) -> Data:
    """Seconds over D, a panel for each number of GPUs. The line of the most samples comes first and
    is compared with the all-reduce: solid where its matrices fit into memory, else with crosses."""
    panels = []
    rows = sorted(rows, key=lambda row: (row["ranks"], -row["n"], row["d"]))
    for (gpus,), some in listed(rows, "ranks").items():
        (most, first), *fewer = ((n, each) for (n,), each in listed(some, "n").items())
        lines = [_line(_seconds(first, "ours"), MODEL, "barlow_fast")]
        fits = sum(row["all_reduce"]["fits"] for row in first)
        points = _seconds(first, "all_reduce")
        if fits:
            lines.append(_line(points[:fits], ALL_REDUCE | {"marker": "s"}, "all-reduce of C"))
        if beyond := points[fits:]:
            crosses = list(range(bool(fits), len(beyond) + 1))
            style = ALL_REDUCE | {"linestyle": ":", "marker": "x", "markevery": crosses}
            title = f"… does not fit in {scaling.MEMORY / 1e9:.0f} GB"
            lines.append(_line(points[max(fits - 1, 0) :], style, title))
        for n, each in fewer:
            lines.append(_line(_seconds(each, "ours"), MODEL | FEWER, f"barlow_fast, N = {n}"))
        panels.append({
            "title": f"{gpus} GPUs, N = {most}", "lines": lines,
            "labels": ["D (1k = 1024)", "seconds per step (modelled)"],
            "ticks": {row["d"]: figure.size(row["d"]) for row in some},
        })  # fmt: skip
    return {
        "title": "One step of the loss, forward + backward: modelled, not measured",
        "text": "Embeddings in bfloat16, nothing overlapped; rates and links are assumptions.",
        "panels": panels, "columns": len(panels), "height": 3.3, "shared": {"sharey": True},
    }  # fmt: skip


def _seconds(rows: Sequence[Row], side: str) -> list[list[float]]:
    return [[row["d"], row[side]["seconds"]] for row in rows]


ROOFLINE = Figure("roofline", ("loss",), rooflines, drawing.lines)
MEMORY = Figure("memory", ("largest", "memory"), memory, drawing.lines)
RANKS = Figure("ranks", ("distributed",), ranks, drawing.lines, by_dtype=True)
MODELLED = Figure("modelled", ("scaling",), modelled, drawing.lines)
