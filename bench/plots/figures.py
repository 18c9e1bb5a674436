"""The figures, drawn from rows alone: what each selects from them (`figure.Figure`), and which
function of `drawing` draws that. Nothing is drawn until the SVG of a picture is requested, so
knowing what should be there needs no matplotlib."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from bench import markdown, results
from bench.floor import moved_bytes, operations
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, figure
from bench.plots.figure import Data, Figure, Picture
from bench.ranks import implementations
from bench.results import Row, grouped, listed
from bench.suites import ablations, scaling, startup
from bench.training import cases as training
from bench.views import feeds

# Speedups over N and D.
FASTEST, OFFICIAL = "fastest", "official"
HEADINGS = {FASTEST: "Against the fastest other", OFFICIAL: "Against the official one"}
MOST, LEAST = 64.0, 0.5  # where the colours end
BLUE, VERMILION = (8, 81, 156), (196, 70, 1)
# Lines.
N, DTYPE, GB = 256, "fp32", 1e9  # of the figure of memory
MOST_TICKS = 10
CEILING = {"color": drawing.INK, "linewidth": 1.6, "zorder": 2}
THIN = {"color": drawing.SOFT, "linewidth": 1, "linestyle": ":", "zorder": 1}
MODEL = {"marker": "o", "markersize": 5, "linewidth": 2, "color": figure.OURS}
FEWER = {"linestyle": "--", "markerfacecolor": "white"}
ALL_REDUCE = {"color": figure.OFFICIAL, "linewidth": 2, "markersize": 5}
SCORE_STYLES = (
    {"color": figure.OURS, "marker": "o", "linewidth": 1.6},
    {"color": figure.OFFICIAL, "marker": "s", "linewidth": 1.6},
)
# Bars.
COLOURS = {"limit": "#b9d3e6", "official": figure.OFFICIAL}
THEIRS, ONLY_CROPS = "#e0a080", "#d8dce0"


def speedups(rows: Sequence[Row]) -> Data | None:
    """A panel for each comparison; `compared` is what they show: of each, the shapes with what
    `compare` returns."""
    shapes = results.grouped(rows, "n", "d")
    if not any(_timed(group.get("ours", {})) for group in shapes.values()):
        return None
    compared = {
        against: [
            {"n": n, "d": d} | cell
            for (n, d), group in sorted(shapes.items())
            if (cell := compare(group, against)) is not None
        ]
        for against in HEADINGS
    }
    n, d = (_axis(values) for values in zip(*shapes, strict=True))
    dtype = CUDA_VARIANTS[rows[0]["dtype"]].title
    faster, slower, *_ = extremes(timed := measured(compared[FASTEST]))
    shown = f"{faster} of {len(timed)}" if slower != "0" else f"all {len(timed)}"
    title = f"barlow_fast is the fastest exact implementation at {shown} shapes"
    spans = [
        f"{HEADINGS[against]}: {' to '.join(extremes(cells)[2:])}."
        for against, found in compared.items()
        if (cells := measured(found))
    ]
    return {
        "title": title if timed else "No other implementation was timed",
        "text": f"{dtype}, forward + backward. {' '.join(spans)} Framed: slower; hatched: not "
        "measured.",
        "dtype": dtype, "compared": compared,
        "rows": list(map(figure.size, n)), "columns": list(map(figure.size, d)),
        "panels": [
            {
                "title": f"{HEADINGS[against]}: faster at {extremes(measured(found))[0]} of "
                f"{len(measured(found))}",
                "cells": [_cell(each, f"{against}-", n, d) for each in found],
            }
            for against, found in compared.items()
        ],
    }  # fmt: skip


def compare(group: Mapping[str, Row], against: str) -> Data | None:
    """`{"ratio": …, "peer": …}`, how many times faster ours is; `{"only": "ours"}` where all others
    failed, `{"only": "others"}` where ours failed; None where there is nothing to compare."""
    ours = group.get("ours", {})
    others = {
        peer: row
        for peer, row in group.items()
        if (peer == OFFICIAL if against == OFFICIAL else not figure.is_ours(peer))
        and row.get("exact", True)
    }
    ratios = {peer: ratio for peer, row in others.items() if (ratio := _ratio(row, ours))}
    if ratios:
        peer = min(ratios, key=lambda name: (ratios[name], name))
        return {"ratio": float(f"{ratios[peer]:.4g}"), "peer": peer}
    if _timed(ours):
        return {"only": "ours"} if others and not any(map(_timed, others.values())) else None
    return {"only": "others"} if ours and any(map(_timed, others.values())) else None


def _timed(row: Row) -> bool:
    return bool(figure.times(row))


def _ratio(row: Row, ours: Row) -> float | None:
    own = figure.times(ours)
    return next((time / own[k] for k, time in figure.times(row).items() if k in own), None)


def _axis(values: Iterable[int]) -> list[int]:
    """All powers of two from the least to the most, and whatever lies between them."""
    values = sorted(set(values))
    powers = {2**k for k in range(values[0].bit_length() - 1, values[-1].bit_length())}
    return sorted({*values, *(p for p in powers if values[0] <= p <= values[-1])})


def measured(cells: Sequence[Data]) -> list[Data]:
    """The cells with a ratio."""
    return [cell for cell in cells if "ratio" in cell]


def extremes(cells: Sequence[Data]) -> tuple[str, ...]:
    """The number of shapes where ours is faster and slower; the least and the most speedup."""
    faster = sum(cell["ratio"] >= 1 for cell in cells)
    ordered = sorted(cells, key=lambda cell: cell["ratio"])
    return str(faster), str(len(cells) - faster), *map(_placed, (*ordered[:1], *ordered[-1:]))


def _placed(cell: Data) -> str:
    return f"{times(cell['ratio'])} at {cell['n']} × {cell['d']}"


def times(ratio: float) -> str:
    """As in the tables, with a third decimal where a slower result would round to 1.00×."""
    return f"{ratio:.3f}×" if 0.995 <= ratio < 1 else markdown.times(ratio)


def break_even(cells: Sequence[Data]) -> str:
    """State up to which N/D ours is the fastest."""
    slower = [cell for cell in cells if cell["ratio"] < 1]
    ends = [cell["n"] / cell["d"] for cell in slower or cells]
    if not slower:
        end = f"the fastest up to N/D = {max(ends):g}, the most that was measured."
        return f"Break-even is not reached: {end}"
    least, where = min(ends), "; ".join(map(_placed, slower))
    below = sum(cell["n"] / cell["d"] < least for cell in cells)
    if not below:
        return (
            f"Slower from the least N/D on, {least:g}, at {len(slower)} of {len(cells)}: {where}."
        )
    return (
        f"Break-even at N/D = {least:g}: the fastest in all {below} shapes below it; at or above "
        f"it slower in {len(slower)} of {len(cells) - below}: {where}."
    )


def _cell(cell: Data, prefix: str, rows: Sequence[int], columns: Sequence[int]) -> list:
    """As `drawing.cells` takes it; the frame and the word distinguish blue and vermilion in
    grey."""
    ratio, strength = cell.get("ratio"), _strength(cell)
    if ratio is None:
        text = "only\nours" if cell["only"] == "ours" else "ours\nfails"
    else:
        text = times(ratio) + ("\nslower" if ratio < 1 else "")
    end = BLUE if strength > 0 else VERMILION
    mixed = (round(255 + abs(strength) * (part - 255)) for part in end)
    colour = "#" + "".join(f"{part:02x}" for part in mixed)
    place = columns.index(cell["d"]), rows.index(cell["n"])
    dark = strength > 0.55 or strength < -0.6
    name = f"{prefix}{cell['n']}x{cell['d']}"
    return [name, *place, text, colour, dark, ratio is not None and ratio < 1]


def _strength(cell: Data) -> float:
    """From -1, half the speed or less, over 0, the same, to 1, MOST times as fast or more."""
    if "ratio" not in cell:
        return 0.25 if cell["only"] == "ours" else -1.0
    end = MOST if cell["ratio"] >= 1 else 1 / LEAST
    # The exponent lets small gains show beside very large ones.
    size = min(abs(math.log2(cell["ratio"])) / math.log2(end), 1.0) ** 0.7
    return size if cell["ratio"] >= 1 else -max(size, 0.25)


SPEEDUP = Figure("speedup", ("loss",), speedups, drawing.cells, by_dtype=True)


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


def ablation_curves(rows: Sequence[Row]) -> Data | None:
    """Accuracy against each parameter; bars of one standard deviation over the seeds."""
    curves = {name: some for name, some in ablations.curves(rows).items() if len(some) > 1}
    panels = []
    for name, some in curves.items():
        lines = []
        for (key, title), style in zip(ablations.SCORES.items(), SCORE_STYLES, strict=True):
            points = [(each["value"], fmean(each[key])) for each in some]
            deviations = [stdev(each[key]) if len(each[key]) > 1 else 0.0 for each in some]
            spread = [[x, y - s, y + s] for (x, y), s in zip(points, deviations, strict=True)]
            lines.append(_line(points, style, title, spread=spread))
        ticks = [each["value"] for each in some]
        panels.append({
            "title": "", "lines": lines, "yscale": "linear",
            "labels": [ablations.PARAMETERS[name].title, "accuracy, %"],
            "ticks": {x: f"{x:g}" for x in ticks[:: -(-len(ticks) // 5)]},
        })  # fmt: skip
    summaries = (ablations.summary(*each) for each in ablations.curves(rows).items())
    return {
        "title": "Accuracy against projector, batch size and λ",
        "text": f"Fashion-MNIST, {rows[0]['epochs']} epochs of {rows[0]['images']:,} images, "
        "judged on validation images; bars: one standard deviation of "
        f"{max(len(each['seeds']) for each in rows)} seeds. {'; '.join(summaries)}.",
        "panels": panels, "columns": len(panels), "height": 2.9, "shared": {"sharey": True},
    } if panels else None  # fmt: skip


ABLATIONS = Figure("ablations", ("ablations",), ablation_curves, drawing.lines)
ROOFLINE = Figure("roofline", ("loss",), rooflines, drawing.lines)
MEMORY = Figure("memory", ("largest", "memory"), memory, drawing.lines)
RANKS = Figure("ranks", ("distributed",), ranks, drawing.lines, by_dtype=True)
MODELLED = Figure("modelled", ("scaling",), modelled, drawing.lines)


def bars(
    title: str,
    claim: tuple[str, Mapping[str, str]],
    text: str,
    unit: str,
    titles: Mapping[str, str],
    heading: Callable[[Row], str],
    rows: Sequence[Row],
) -> Data | None:
    """A panel for each case, with bars in the order of the rows: ours is blue, the official one
    vermilion, others a light vermilion. `unit` is that of the columns, `heading(row)` the case;
    `claim` the title where ours can be compared with those that it names."""
    panels: dict[str, Data] = {}
    for row in rows:
        found = figure.spread(row, unit)
        # A kernel alone counts something else than images, and smaller images are less work.
        if found is None or row.get("unit", "images") != "images" or "error_levels" in row:
            continue
        peer = str(row.get("peer", ""))
        other = ONLY_CROPS if peer.startswith("crops-") else THEIRS
        colour = COLOURS.get(peer, figure.OURS if figure.is_ours(peer) else other)
        shown = f"{markdown.rate(found[0])} {'ms' if unit == 'ms' else 'images/s'}"
        panel = panels.setdefault(heading(row), {"title": heading(row), "bars": []})
        panel["bars"].append([peer, titles.get(peer, peer), colour, shown, *found])
    text += ", lines from p20 to p80."
    spans = []
    for other, whose in claim[1].items():
        ratios = []
        for panel in panels.values():
            ours = [bar[4] for bar in panel["bars"] if figure.is_ours(bar[0])]
            ratios += [max(ours) / bar[4] for bar in panel["bars"] if ours and bar[0] == other]
        spans += [f"{figure.span(ratios)} {whose}"] if ratios else []
    title = claim[0].format(" and ".join(spans)) if spans else title
    return {"title": title, "text": text, "panels": list(panels.values())} if panels else None


def _case(known: Mapping[str, Data], row: Row) -> str:
    case = str(row.get("case"))
    return markdown.capital(known[case].title if case in known else case)


def _started(row: Row) -> str:
    case = str(row.get("case"))
    shape = f", {row['n']} × {row['d']}, {row.get('dtype')}" if row.get("n") else ""
    return startup.CASES.get(case, case) + shape


BARS = tuple(
    Figure(name, (suite,), functools.partial(bars, *given), drawing.bars)
    for name, suite, *given in (
        (
            "training", "train", "Images per second of whole pretraining steps",
            (
                "Pretraining runs at {} images per second",
                {"lightly": "lightly's", "official": "the official recipe's"},
            ),
            "Whole steps, two views an image", "per_s", training.TITLES,
            lambda row: f"{_case(training.CASES, row)}, batch {row.get('n')}, {row.get('dtype')}",
        ),
        (
            "views", "views", "Images per second of loaders of two views",
            ("Loaders make {} images per second", {"official": "the official recipe's"}),
            "Two views an image, decoded or from memory", "per_s", feeds.TITLES,
            functools.partial(_case, feeds.CASES),
        ),
        (
            "startup", "startup", "Milliseconds until the first result, case by case", ("", {}),
            "Fresh processes; shorter is better", "ms", startup.titles(), _started,
        ),
    )
)  # fmt: skip

# In the order of a page: speed first, then the rest.
FIGURES = (SPEEDUP, ROOFLINE, MEMORY, RANKS, *BARS, MODELLED, ABLATIONS)


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """All figures of all files."""
    return [picture for each in FIGURES for picture in each.pictures(files)]
