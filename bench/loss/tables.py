"""Markdown of the rows of one device, and what a run prints.

Rows of a CPU have times of calls and of their forward half; those of a GPU, times of calls and of
replays. Older rows lack some columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import results
from bench.console import aligned
from bench.devices import GRAPH, WHOLE
from bench.grids import CPU_GRID, CUDA_GRID, Case, Grid
from bench.inputs import CUDA_VARIANTS
from bench.markdown import details, short, table, times
from bench.peers import discover
from bench.results import Row, by_shape

Groups = dict[tuple[int, int], dict[str, Row]]
# Of the table in the README at the root: from many features for few samples to the reverse.
OVERVIEW_SHAPES = ((256, 1024), (256, 8192), (1024, 4096), (1024, 1024), (16384, 256))
NOT_PUBLIC = ("gram-plain", "gram-compiled")  # no library ships the Gram form
FLOOR = (
    "floor = 6·N·D·min(N, D) / (GEMM rate) + bytes / (copy bandwidth), with each input read twice "
    "and each gradient written once, at the peaks measured in the same run"
)


class Layout:
    """Which columns the rows of one device have.

    Attributes:
        grid: whose main shapes are shown first.
        kind: of the device, whose peers have the titles.
        measures: columns whose medians are shown and compared, by what they are called where there
            are several.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        replayed = any("graph_ms" in row for row in rows)
        self.kind, self.grid = ("cuda", CUDA_GRID) if replayed else ("cpu", CPU_GRID)
        self.measures = {"called": WHOLE} | ({"replayed": GRAPH} if replayed else {})

    @property
    def several(self) -> bool:
        return len(self.measures) > 1


def median(row: Row | None, measure: str) -> float | None:
    """Milliseconds; None where there are none."""
    return None if row is None else row.get(f"{measure}ms" if measure else "median_ms")


def tables(rows: Sequence[Row]) -> str:
    """A wide table for each dtype, then one with percentiles, and problems."""
    layout, parts = Layout(rows), []
    for variant in CUDA_VARIANTS.values():
        groups = _groups(rows, variant.name, layout.grid)
        if groups:
            wide = _wide_table(groups, layout)
            parts += [f"**{variant.title}**", wide, _slowdowns(groups, layout)]
            parts += [_long_table(groups, layout), *_problems(groups, layout)]
    return "\n\n".join([_reading(layout), *parts]) if parts else ""


def overview(files: Mapping[str, Sequence[Row]]) -> str:
    """A few float32 shapes on all machines side by side, for the README at the root."""
    heads, columns, sources = ["N × D"], [], []
    for name, rows in results.rows_of(files, "loss"):
        layout = Layout(rows)
        groups = _groups(rows, "fp32", layout.grid)
        if any(shape in groups for shape in OVERVIEW_SHAPES):
            machine = results.machine(rows)
            heads += [f"{machine}: barlow_fast", "fastest other", "official"]
            columns.append([_overview_cells(groups.get(s, {}), layout) for s in OVERVIEW_SHAPES])
            sources.append(f"`bench/results/{name}`")
    if not columns:
        return ""
    lines = [
        [f"{n} × {d}", *(cell for cells in shape for cell in cells)]
        for (n, d), *shape in zip(OVERVIEW_SHAPES, *columns, strict=True)
    ]
    return f"{table(heads, lines, left=0)}\n\nRows: {', '.join(sources)}."


def _overview_cells(group: dict[str, Row], layout: Layout) -> list[str]:
    ours = _timed(group, "ours")
    others = (fastest_public(group, layout), group.get("official"))
    own = f"**{_cell(ours, None, layout)}**" if ours else "–"
    return [own, *(_cell(other, ours, layout) for other in others)]


def printed(case: Case, rows: Sequence[Row]) -> str:
    """What a run prints of one shape and dtype."""
    if not rows:
        return f"{case}: no peers"
    layout = Layout(rows)
    ours = {row["peer"]: row for row in rows}.get("ours")
    lines = [
        [row["peer"], *(_short(median(row, m)) for m in layout.measures.values()),
         *(_short(row.get(key)) for key in ("p20_ms", "p80_ms", "forward_ms")),
         str(row["repeats"]), _fraction(row), "" if row is ours else _ratio_text(row, ours, layout)]
        for row in rows if not row["problem"]
    ]  # fmt: skip
    heads = ["peer", *(f"{name} ms" for name in layout.measures), "p20", "p80", "forward"]
    heads += ["repeats", "of floor", "ours is faster"]
    text = [f"{case}: floor {short(rows[0]['floor_ms'])} ms"]
    text += [aligned(heads, lines)] if lines else []
    text += [f"{row['peer']}: {row['problem']}" for row in rows if row["problem"]]
    return "\n".join(text)


def _groups(rows: Sequence[Row], dtype: str, grid: Grid) -> Groups:
    """Rows of one dtype by shape: the main ones first, in their order, then by size."""
    groups = by_shape(row for row in rows if row["dtype"] == dtype)
    first = dict.fromkeys(shape for shape in grid.main if shape in groups)
    return {shape: groups[shape] for shape in first | dict.fromkeys(sorted(groups))}


def _reading(layout: Layout) -> str:
    text = "Median milliseconds of one forward and backward pass; "
    if layout.several:
        text = (
            "Median milliseconds of one forward and backward pass on random data with cold caches, "
            "*called / replayed*: as user code calls it on an idle device, launches included; and "
            "replayed from a captured CUDA graph, the device's own time. "
        )
    text += "× is how many times faster `barlow_fast` is"
    if layout.several:
        text += (
            ", replayed where both can be, else called. *Of floor* is the floor divided by the "
            f"replayed time of `barlow_fast`, where {FLOOR}; the float32 rate is the better of the "
            "float32 GEMM and a third of the TF32 GEMM, as three TF32 products give float32 "
            "quality. "
        )
    else:
        text += f". *Of floor* is the floor divided by the median of `barlow_fast`, where {FLOOR}. "
    return text + (
        "Compiled peers take part at a few shapes only. *Not exact* compute another loss. A cell "
        "says `no memory` where a peer does not fit, `slow` where it was not tried because it took "
        "too long at a smaller shape."
    )


def titles_of(groups: Groups, layout: Layout) -> dict[str, str]:
    """Peers that occur, in the order of the tables, with their titles."""
    present = {name: row for group in groups.values() for name, row in sorted(group.items())}
    known = {name: peer.title for name, peer in discover(layout.kind).items() if name in present}
    titles = known | {name: name for name in sorted(present) if name not in known}
    exact = {
        name: all(group[name].get("exact", 1) for group in groups.values() if name in group)
        for name in titles
    }
    return {
        name: title if exact[name] or "exact" in title else f"{title} (not exact)"
        for name, title in titles.items()
    }


def _wide_table(groups: Groups, layout: Layout) -> str:
    """A line for each shape."""
    titles = titles_of(groups, layout)
    others = [name for name in titles if name != "ours"]
    heads = ["N × D", "floor", titles.get("ours", "barlow_fast"), "of floor"]
    heads += [titles[name] for name in others]
    lines = []
    for (n, d), group in groups.items():
        ours = _timed(group, "ours")
        cells = [f"{n} × {d}", short(next(iter(group.values()))["floor_ms"])]
        cells += [f"**{_cell(ours, None, layout)}**" if ours else "–", _fraction(ours)]
        lines.append(cells + [_cell(group.get(name), ours, layout) for name in others])
    return table(heads, lines, left=0)


def fastest_public(group: dict[str, Row], layout: Layout) -> Row | None:
    """The fastest exact implementation of one shape and dtype that others publish."""
    known = discover(layout.kind)
    rows = [
        row
        for name, row in group.items()
        if _timed(group, name)
        and row.get("exact", True)
        and name not in NOT_PUBLIC
        and not (name in known and known[name].ours)
    ]
    return min(rows, key=_fastest, default=None)


def _fastest(row: Row) -> float:
    return median(row, GRAPH) or median(row, WHOLE)


def _timed(group: dict[str, Row], name: str) -> Row | None:
    row = group.get(name)
    return None if row is None or row.get("problem") else row


def _cell(row: Row | None, ours: Row | None, layout: Layout) -> str:
    if row is None:
        return "–"
    if row.get("problem"):
        return short_problem(row["problem"])
    text = " / ".join(_short(median(row, measure)) for measure in layout.measures.values())
    ratio = _ratio_text(row, ours, layout)
    return f"{text} ({ratio})" if ratio else text


def _ratio_text(row: Row, ours: Row | None, layout: Layout) -> str:
    """How many times faster ours is: replayed where both can be, else called."""
    for measure in reversed(layout.measures.values()):
        theirs, own = median(row, measure), median(ours, measure)
        if theirs is not None and own is not None:
            return times(theirs / own)
    return ""


def short_problem(problem: str) -> str:
    """Abbreviate a problem for a cell."""
    if "memory" in problem:
        return "no memory"
    if "off by" in problem:
        return "wrong"
    return "slow" if " took " in problem else "fails"


def _fraction(row: Row | None) -> str:
    found = row and (row.get("graph_fraction_of_floor") or row.get("fraction_of_floor"))
    return f"{found:.0%}" if found else "–"


def _slowdowns(groups: Groups, layout: Layout) -> str:
    """List where `barlow_fast` is slower than a peer."""
    titles, found, compared = titles_of(groups, layout), [], 0
    for (n, d), group in groups.items():
        ours = _timed(group, "ours")
        for (name, row), (called, measure) in (
            (pair, kind) for pair in group.items() for kind in layout.measures.items()
        ):
            theirs, own = median(row, measure), median(ours, measure)
            if name == "ours" or row.get("problem") or None in (theirs, own):
                continue
            compared += 1
            if theirs < own:
                noise = ours[f"{measure}p20_ms"] < row[f"{measure}p80_ms"]
                text = f"{own / theirs:.2f}× the time of {titles[name]}"
                where = f"{n} × {d}" + (f" {called}" if layout.several else "")
                found.append(f"{where} ({text}{', within noise' if noise else ''})")
    if not compared:
        return "No comparison: `barlow_fast` or every peer is missing."
    if found:
        count = f"In {len(found)} of {compared} comparisons"
        return f"{count} `barlow_fast` is slower at: {'; '.join(found)}."
    return f"`barlow_fast` is the fastest in every row ({compared} comparisons)."


def _long_table(groups: Groups, layout: Layout) -> str:
    """A line for each shape and implementation."""
    titles, title = titles_of(groups, layout), "Percentiles"
    heads, keys = ["N × D", "implementation"], []
    for called, measure in layout.measures.items():
        heads += [f"{called if layout.several else 'median'} ms", "p20", "p80", "repeats"]
        keys += [f"{measure}ms" if measure else "median_ms"]
        keys += [f"{measure}{key}" for key in ("p20_ms", "p80_ms", "repeats")]
    heads.append("of floor")
    keys.append("of floor")
    if not layout.several:
        title += ", and the forward half alone"
        heads += ["forward ms", "p20", "p80"]
        keys += ["forward_ms", "forward_p20_ms", "forward_p80_ms"]
    lines = [
        [f"{n} × {d}", titles[name], *(_long_cell(row, key) for key in keys)]
        for (n, d), group in groups.items()
        for name in titles
        if (row := _timed(group, name))
    ]
    return details(title, table(heads, lines, left=[1]))


def _long_cell(row: Row, key: str) -> str:
    if key == "of floor":
        return f"{row.get('graph_fraction_of_floor') or row['fraction_of_floor']:.1%}"
    return str(row[key]) if "repeats" in key else _short(row.get(key))


def _problems(groups: Groups, layout: Layout) -> list[str]:
    """What could not be measured or captured, each reason once."""
    titles, lines = titles_of(groups, layout), []
    for (n, d), group in groups.items():
        for name, row in group.items():
            reason = row.get("problem") or row.get("graph_problem")
            if reason and not reason.startswith("not tried"):
                what = "" if row.get("problem") else ", replayed"
                lines.append(f"- {n} × {d}, {titles[name]}{what}: {reason}")
    return [details("Left out", "\n".join(lines))] if lines else []


def _short(value: float | None) -> str:
    return "–" if value is None else short(value)
