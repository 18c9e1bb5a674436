"""How many times faster the loss is, over N and D: a heat map for each machine and dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import markdown, results
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.results import Row

FASTEST, OFFICIAL = "fastest", "official"
HEADINGS = {
    FASTEST: "Against the fastest other",
    OFFICIAL: "Against the official one",
}
MOST, LEAST = 64.0, 0.5  # where the colours end
SIDE_BY_SIDE = 9  # columns at most
BLUE, VERMILION = (8, 81, 156), (196, 70, 1)


def select(rows: Sequence[Row]) -> Data | None:
    """`panels`: for each comparison, the shapes with what `compared` returns."""
    shapes = results.by_shape(rows)
    if not any(_timed(group.get("ours", {})) for group in shapes.values()):
        return None
    panels = {
        against: [
            {"n": n, "d": d} | cell
            for (n, d), group in sorted(shapes.items())
            if (cell := compared(group, against)) is not None
        ]
        for against in HEADINGS
    }
    axes = {"n": _axis(n for n, _ in shapes), "d": _axis(d for _, d in shapes)}
    return {"dtype": CUDA_VARIANTS[rows[0]["dtype"]].title, "panels": panels, **axes}


def compared(group: Mapping[str, Row], against: str) -> Data | None:
    """`{"ratio": …, "peer": …}`, how many times faster ours is; `{"only": "ours"}` where all others
    failed, `{"only": "others"}` where ours failed; None where there is nothing to compare."""
    ours = group.get("ours", {})
    others = {
        peer: row
        for peer, row in group.items()
        if (peer == OFFICIAL if against == OFFICIAL else not selection.is_ours(peer))
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
    return any(selection.times(row))


def _ratio(row: Row, ours: Row) -> float | None:
    own = dict(selection.times(ours))
    return next((time / own[key] for key, time in selection.times(row) if key in own), None)


def _axis(values: Iterable[int]) -> list[int]:
    """All powers of two from the least to the most, and whatever lies between them."""
    values = sorted(set(values))
    powers = {2**k for k in range(values[0].bit_length() - 1, values[-1].bit_length())}
    return sorted({*values, *(p for p in powers if values[0] <= p <= values[-1])})


def measured(cells: Sequence[Data]) -> list[Data]:
    """The cells with a ratio."""
    return [cell for cell in cells if "ratio" in cell]


def extremes(cells: Sequence[Data]) -> tuple[str, str, str, str]:
    """The number of shapes where ours is faster and slower; the least and the most speedup."""
    ends = (choose(cells, key=lambda cell: cell["ratio"]) for choose in (min, max))
    faster = sum(cell["ratio"] >= 1 for cell in cells)
    return str(faster), str(len(cells) - faster), *map(_placed, ends)


def _placed(cell: Data) -> str:
    return f"{times(cell['ratio'])} at {cell['n']} × {cell['d']}"


def times(ratio: float) -> str:
    """As in the tables, with a third decimal where a slower result would round to 1.00×."""
    return f"{ratio:.3f}×" if 0.995 <= ratio < 1 else markdown.times(ratio)


def break_even(data: Data) -> str:
    """State up to which N/D ours is the fastest."""
    cells = measured(data["panels"][FASTEST])
    if not cells:
        return "Nothing to compare with."
    slower = [cell for cell in cells if cell["ratio"] < 1]
    if not slower:
        most = max(cell["n"] / cell["d"] for cell in cells)
        return (
            f"Break-even is not reached: the fastest up to N/D = {most:g}, the most that was "
            "measured."
        )
    least = min(cell["n"] / cell["d"] for cell in slower)
    below = [c for c in cells if c["n"] / c["d"] < least]
    where = "; ".join(map(_placed, slower))
    if not below:
        return (
            f"Slower from the least N/D on, {least:g}, at {len(slower)} of {len(cells)}: {where}."
        )
    return (
        f"Break-even at N/D = {least:g}: the fastest in all {len(below)} shapes below it; at or "
        f"above it slower in {len(slower)} of {len(cells) - len(below)}: {where}."
    )


def headline(data: Data) -> str:
    """At how many shapes ours is the fastest."""
    cells = measured(data["panels"][FASTEST])
    if not cells:
        return "No other implementation was timed"
    faster, slower, *_ = extremes(cells)
    of = f"{faster} of" if slower != "0" else "all"
    return f"barlow_fast is the fastest exact implementation at {of} {len(cells)} shapes"


def caption(data: Data) -> str:
    """The headline, and the extremes of each comparison."""
    parts = [f"{headline(data)} ({data['machine']}, {data['dtype']}, forward + backward)."]
    for against, cells in data["panels"].items():
        if measured(cells):
            _, _, least, most = extremes(measured(cells))
            parts.append(f"{HEADINGS[against]}: {least} to {most}.")
    return " ".join(parts)


def draw(data: Data) -> Any:
    """One panel for each comparison, side by side while they are narrow."""
    columns = 2 if len(data["d"]) <= SIDE_BY_SIDE else 1
    text = (
        f"{data['machine']}, {data['dtype']}, forward + backward. "
        "Times as fast; framed: slower; hatched: not measured."
    )
    height = 2 / columns * (0.34 * len(data["n"]) + 0.85) + 0.75
    figure, panels = drawing.sheet(headline(data), text, height, len(HEADINGS), columns)
    for axes, against in zip(panels, HEADINGS, strict=True):
        _heat_map(axes, data, against)
    return figure


def _heat_map(axes: Any, data: Data, against: str) -> None:
    rows, columns, cells = data["n"], data["d"], data["panels"][against]
    ratios = [cell["ratio"] for cell in measured(cells)]
    title = f"{HEADINGS[against]}: faster at {sum(r >= 1 for r in ratios)} of {len(ratios)}"
    drawing.grid(axes, title, *(list(map(selection.size, axis)) for axis in (rows, columns)))
    for cell in cells:
        n, d, strength = cell["n"], cell["d"], _strength(cell)
        dark, framed = strength > 0.55 or strength < -0.6, cell.get("ratio", 1) < 1
        place = columns.index(d), rows.index(n)
        text = drawing.cell(axes, place, _label(cell), _colour(strength), dark, framed)
        text.set_gid(f"{against}-{n}x{d}")


def _label(cell: Data) -> str:
    if "ratio" in cell:
        return times(cell["ratio"]) + ("\nslower" if cell["ratio"] < 1 else "")
    return "only\nours" if cell["only"] == "ours" else "ours\nfails"


def _strength(cell: Data) -> float:
    """From -1, half the speed or less, over 0, the same, to 1, MOST times as fast or more."""
    if "ratio" not in cell:
        return 0.25 if cell["only"] == "ours" else -1.0
    end = MOST if cell["ratio"] >= 1 else 1 / LEAST
    # The exponent lets small gains show beside very large ones.
    size = min(abs(math.log2(cell["ratio"])) / math.log2(end), 1.0) ** 0.7
    return size if cell["ratio"] >= 1 else -max(size, 0.25)


def _colour(strength: float) -> str:
    """White at 1, blue where faster, vermilion where slower; both darken away from 1, and the
    frame and the word distinguish them in grey."""
    end = BLUE if strength > 0 else VERMILION
    return "#" + "".join(f"{round(255 + abs(strength) * (part - 255)):02x}" for part in end)


FIGURE = Figure("speedup", ("loss",), select, caption, draw, by_dtype=True)
