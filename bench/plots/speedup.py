"""How many times faster the loss is, over N and D: a heat map for each machine and dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench import markdown, results
from bench.inputs import CUDA_VARIANTS
from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row

PLACE = 1
# A GPU's own time where both have it, else the time of a call.
MEASURES = ("graph_ms", "median_ms")
FASTEST, OFFICIAL = "fastest", "official"
HEADINGS = {
    FASTEST: "Against the fastest other",
    OFFICIAL: "Against the official one",
}
MOST, LEAST = 64.0, 0.5  # where the colours end
SIDE_BY_SIDE = 9  # columns at most


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file and dtype with times of ours."""
    return drawing.by_dtype("speedup", "loss", files, _data, _caption, draw)


def compared(group: Mapping[str, Row], against: str) -> Data | None:
    """`{"ratio": …, "peer": …}`, how many times faster ours is; `{"only": "ours"}` where all others
    failed, `{"only": "others"}` where ours failed; None where there is nothing to compare."""
    ours = group.get("ours", {})
    others = {
        peer: row
        for peer, row in group.items()
        if (peer == OFFICIAL if against == OFFICIAL else not drawing.is_ours(peer))
        and row.get("exact", True)
    }
    ratios = {peer: ratio for peer, row in others.items() if (ratio := _ratio(row, ours))}
    if ratios:
        peer = min(ratios, key=lambda name: (ratios[name], name))
        return {"ratio": float(f"{ratios[peer]:.4g}"), "peer": peer}
    if _timed(ours):
        return {"only": "ours"} if others and not any(map(_timed, others.values())) else None
    return {"only": "others"} if ours and any(map(_timed, others.values())) else None


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


def _timed(row: Row) -> bool:
    return any(drawing.number(row.get(key)) for key in MEASURES)


def _ratio(row: Row, ours: Row) -> float | None:
    for key in MEASURES:
        theirs, own = drawing.number(row.get(key)), drawing.number(ours.get(key))
        if theirs and own:
            return theirs / own
    return None


def _data(rows: Sequence[Row], dtype: str) -> Data | None:
    shapes = results.by_shape(rows)
    if not any(_timed(group.get("ours", {})) for group in shapes.values()):
        return None
    panels = {}
    for against in HEADINGS:
        cells = {shape: compared(group, against) for shape, group in sorted(shapes.items())}
        panels[against] = [
            {"n": n, "d": d} | cell for (n, d), cell in cells.items() if cell is not None
        ]
    return {
        "machine": drawing.device(rows),
        "dtype": CUDA_VARIANTS[dtype].title,
        "n": _axis(n for n, _ in shapes),
        "d": _axis(d for _, d in shapes),
        "panels": panels,
    }


def _axis(values: Any) -> list[int]:
    """All powers of two from the least to the most, and whatever lies between them."""
    values = sorted(set(values))
    powers = {2**k for k in range(values[0].bit_length() - 1, values[-1].bit_length())}
    return sorted({*values, *(p for p in powers if values[0] <= p <= values[-1])})


def _headline(data: Data) -> str:
    cells = measured(data["panels"][FASTEST])
    if not cells:
        return "No other implementation was timed"
    faster, slower, *_ = extremes(cells)
    of = f"{faster} of" if slower != "0" else "all"
    return f"barlow_fast is the fastest exact implementation at {of} {len(cells)} shapes"


def break_even(data: Data) -> str:
    """State up to which N/D ours is the fastest."""
    cells = measured(data["panels"][FASTEST])
    if not cells:
        return "Nothing to compare with."
    slower = [cell for cell in cells if cell["ratio"] < 1]
    if not slower:
        most = max(cells, key=lambda cell: cell["n"] / cell["d"])
        return (
            f"Break-even is not reached: the fastest up to N/D = {most['n'] / most['d']:g}, the "
            "most that was measured."
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


def _caption(data: Data) -> str:
    parts = [f"{_headline(data)} ({data['machine']}, {data['dtype']}, forward + backward)."]
    for against, cells in data["panels"].items():
        if measured(cells):
            _, _, least, most = extremes(measured(cells))
            parts.append(f"{HEADINGS[against]}: {least} to {most}.")
    return " ".join(parts)


def draw(data: Data) -> Any:
    """The heat maps: one panel for each comparison, side by side while they are narrow."""
    narrow = len(data["d"]) <= SIDE_BY_SIDE
    height = 0.34 * len(data["n"]) + 0.85
    figure = drawing.figure(
        (1 if narrow else 2) * height + 0.75, _headline(data),
        f"{data['machine']}, {data['dtype']}, forward + backward. "
        "Times as fast; framed: slower; hatched: not measured.",
    )  # fmt: skip
    grid = (1, 2) if narrow else (2, 1)
    panels = figure.subplots(*grid, squeeze=False).flat
    for axes, (against, cells) in zip(panels, data["panels"].items(), strict=True):
        _panel(axes, data, against, cells)
    return figure


def _panel(axes: Any, data: Data, against: str, cells: Sequence[Data]) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = data["n"], data["d"]
    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), len(columns), len(rows), facecolor="#f6f7f8", edgecolor="#dadde1",
            hatch="////", zorder=1,
        )
    )  # fmt: skip
    for count, line in ((len(rows), axes.axhline), (len(columns), axes.axvline)):
        for edge in range(1, count):
            line(edge - 0.5, color="white", linewidth=1.5, zorder=2)
    for cell in cells:
        n, d = cell["n"], cell["d"]
        _cell(axes, columns.index(d), rows.index(n), cell, f"{against}-{n}x{d}")
    _diagonal(axes, rows, columns)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel="D", ylabel="N")
    axes.set_xticks(range(len(columns)), [drawing.size(d) for d in columns])
    axes.set_yticks(range(len(rows)), [drawing.size(n) for n in rows])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    ratios = [cell["ratio"] for cell in measured(cells)]
    faster = sum(ratio >= 1 for ratio in ratios)
    axes.set_title(f"{HEADINGS[against]}: faster at {faster} of {len(ratios)}")


def _cell(axes: Any, x: int, y: int, cell: Data, name: str) -> None:
    """One shape; measured cells lie over the diagonal."""
    from matplotlib.patches import Rectangle

    slower = cell.get("ratio", 1.0) < 1
    style = {"facecolor": _colour(cell), "edgecolor": "#aeb4bb", "linewidth": 0.8, "zorder": 2.6}
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
    if slower:
        frame = {"fill": False, "edgecolor": "black", "linewidth": 1.8, "zorder": 3}
        axes.add_patch(Rectangle((x - 0.45, y - 0.43), 0.9, 0.86, **frame))
    text = axes.text(
        x, y, _label(cell), ha="center", va="center", zorder=4, linespacing=1.0,
        fontsize=9 if cell.get("ratio", 0) >= 1 else 7.5,
        fontweight="bold" if slower else "normal",
        color="white" if _dark(cell) else drawing.INK,
    )  # fmt: skip
    text.set_gid(name)


def _diagonal(axes: Any, rows: Sequence[int], columns: Sequence[int]) -> None:
    """Where N = D: above it D × D is the smaller matrix, below it N × N."""
    both = [value for value in columns if value in rows]
    if len(both) > 1:
        x, y = [columns.index(v) for v in both], [rows.index(v) for v in both]
        axes.plot(
            [x[0] - 0.5, x[-1] + 0.5], [y[0] - 0.5, y[-1] + 0.5], color=drawing.SOFT,
            linewidth=0.9, linestyle=(0, (4, 3)), zorder=2.5,
        )  # fmt: skip
        style = {"ha": "right", "va": "top", "color": drawing.SOFT, "zorder": 4}
        drawing.note(axes, "N = D", (x[-1] + 0.5, y[-1] + 0.5), (-14, -1), **style)


def _label(cell: Data) -> str:
    if "ratio" in cell:
        return times(cell["ratio"]) + ("\nslower" if cell["ratio"] < 1 else "")
    return "only\nours" if cell["only"] == "ours" else "ours\nfails"


def times(ratio: float) -> str:
    """As in the tables, with a third decimal where a slower result would round to 1.00×."""
    return f"{ratio:.3f}×" if 0.995 <= ratio < 1 else markdown.times(ratio)


def _strength(cell: Data) -> float:
    """From -1, half the speed or less, over 0, the same, to 1, MOST times as fast or more."""
    if "ratio" not in cell:
        return 0.25 if cell["only"] == "ours" else -1.0
    end = MOST if cell["ratio"] >= 1 else 1 / LEAST
    # The exponent lets small gains show beside very large ones.
    size = min(abs(math.log2(cell["ratio"])) / math.log2(end), 1.0) ** 0.7
    return size if cell["ratio"] >= 1 else -max(size, 0.25)


def _dark(cell: Data) -> bool:
    return _strength(cell) > 0.55 or _strength(cell) < -0.6


def _colour(cell: Data) -> Any:
    """White at 1, blue where faster, vermilion where slower; both darken away from 1, and the
    frame and the word distinguish them in grey."""
    from matplotlib.colors import to_hex, to_rgb

    strength = _strength(cell)
    end = to_rgb("#08519c" if strength > 0 else "#c44601")
    return to_hex([1 + abs(strength) * (part - 1) for part in end])
