"""How many times faster the loss is, over N and D: a heat map for each machine and dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bench import markdown, results
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, figure
from bench.plots.figure import Data, Figure
from bench.results import Row

FASTEST, OFFICIAL = "fastest", "official"
HEADINGS = {FASTEST: "Against the fastest other", OFFICIAL: "Against the official one"}
MOST, LEAST = 64.0, 0.5  # where the colours end
BLUE, VERMILION = (8, 81, 156), (196, 70, 1)


def select(rows: Sequence[Row]) -> Data | None:
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


FIGURE = Figure("speedup", ("loss",), select, drawing.cells, by_dtype=True)
