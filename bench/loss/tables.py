"""Markdown of the rows of one device, and what a run prints.

Rows of a CPU have times of calls and of their forward half; those of a GPU, times of calls and of
replays. Older rows lack some columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from bench import markdown, peers, results
from bench.devices import GRAPH, WHOLE
from bench.inputs import CPU_GRID, CUDA_GRID, CUDA_VARIANTS, Grid
from bench.markdown import SHAPE, Column, joined, reading, short, table_of, titled
from bench.results import Row, by_shape

Group = dict[str, Row]
Groups = dict[tuple[int, int], Group]
# Of the table in the README at the root: from many features for few samples to the reverse.
OVERVIEW_SHAPES = ((256, 1024), (256, 8192), (1024, 4096), (1024, 1024), (16384, 256))
NOT_PUBLIC = ("gram-plain", "gram-compiled")  # no library ships the Gram form


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
            titles = titles_of(groups, layout)
            wide = table_of(_wide(titles, layout), groups.values())
            parts += [f"**{variant.title}**", wide]
            timed = (_timed(group, name) for group in groups.values() for name in titles)
            percentiles = table_of(_long(titles, layout), filter(None, timed))
            half = "" if layout.several else ", and the forward half alone"
            parts.append(markdown.details(f"Percentiles{half}", percentiles))
            lines = "\n".join(_problems(groups, titles))
            parts += [markdown.details("Left out", lines)] if lines else []
    return joined(reading(f"loss {layout.kind}"), *parts) if parts else ""


def overview(files: Mapping[str, Sequence[Row]]) -> str:
    """A few float32 shapes on all machines side by side, for the README at the root."""
    columns, sources = [], []
    for name, rows in results.rows_of(files, "loss"):
        layout = Layout(rows)
        groups = _groups(rows, "fp32", layout.grid)
        if any(shape in groups for shape in OVERVIEW_SHAPES):
            columns += _overview_columns(results.machine(rows), groups, layout)
            sources.append(f"`bench/results/{name}`")
    if not columns:
        return ""
    shape = Column("N × D", lambda shape: f"{shape[0]} × {shape[1]}")
    return joined(table_of([shape, *columns], OVERVIEW_SHAPES), f"Rows: {', '.join(sources)}.")


def _overview_columns(machine: str, groups: Groups, layout: Layout) -> list[Column]:
    def fastest(group: Group) -> str | None:
        row = fastest_public(group, layout)
        return row and _cell(row["peer"], layout, group)

    kinds = {
        f"{machine}: barlow_fast": functools.partial(_own, layout),
        "fastest other": fastest,
        "official": functools.partial(_cell, "official", layout),
    }
    return [
        Column(head, lambda shape, cell=cell: cell(groups.get(shape, {})))
        for head, cell in kinds.items()
    ]


def _groups(rows: Sequence[Row], dtype: str, grid: Grid) -> Groups:
    """Rows of one dtype by shape: the main ones first, in their order, then by size."""
    groups = by_shape(row for row in rows if row["dtype"] == dtype)
    first = dict.fromkeys(shape for shape in grid.main if shape in groups)
    return {shape: groups[shape] for shape in first | dict.fromkeys(sorted(groups))}


def titles_of(groups: Groups, layout: Layout) -> dict[str, str]:
    """Peers that occur, in the order of the tables, with their titles."""
    known = peers.titles(layout.kind)
    present = {name for group in groups.values() for name in group}
    order = [*known, *sorted(present - known.keys())]
    return {name: known.get(name, name) for name in order if name in present}


def _wide(titles: Mapping[str, str], layout: Layout) -> list[Column]:
    """The columns of groups: a line for each shape."""

    def of_any(group: Group) -> Row:
        return next(iter(group.values()))

    return [
        Column("N × D", lambda group: SHAPE.cell(of_any(group))),
        Column("floor", lambda group: of_any(group)["floor_ms"], short),
        Column(titles.get("ours", "barlow_fast"), functools.partial(_own, layout)),
        Column("of floor", lambda group: _fraction(_timed(group, "ours") or {}), ".0%"),
        *(
            Column(title, functools.partial(_cell, name, layout))
            for name, title in titles.items()
            if name != "ours"
        ),
    ]


def _long(titles: Mapping[str, str], layout: Layout) -> list[Column]:
    """The columns of rows: a line for each shape and implementation."""
    columns = [SHAPE, titled(titles)]
    for called, measure in layout.measures.items():
        head = f"{called if layout.several else 'median'} ms"
        columns.append(Column(head, functools.partial(median, measure=measure), short))
        columns += [Column(key, f"{measure}{key}_ms", short) for key in ("p20", "p80")]
        columns.append(Column("repeats", f"{measure}repeats"))
    columns.append(Column("of floor", _fraction, ".1%"))
    if not layout.several:
        columns.append(Column("forward ms", "forward_ms", short))
        columns += [Column(key, f"forward_{key}_ms", short) for key in ("p20", "p80")]
    return columns


def fastest_public(group: Group, layout: Layout) -> Row | None:
    """The fastest exact implementation of one shape and dtype that others publish."""
    known = peers.discover(layout.kind)
    rows = [
        row
        for name, row in group.items()
        if _timed(group, name)
        and row.get("exact", True)
        and name not in NOT_PUBLIC
        and not (name in known and known[name].ours)
    ]
    return min(rows, key=lambda row: median(row, GRAPH) or median(row, WHOLE), default=None)


def _timed(group: Group, name: str) -> Row | None:
    row = group.get(name)
    return None if row is None or row.get("problem") else row


def _own(layout: Layout, group: Group) -> str | None:
    row = _timed(group, "ours")
    return row and f"**{_times(row, layout)}**"


def _cell(name: str, layout: Layout, group: Group) -> str | None:
    """The times of a peer, and how many times faster ours is; or its problem."""
    row = group.get(name)
    if row is None:
        return None
    if row.get("problem"):
        return short_problem(row["problem"])
    ratio = _ratio(layout, _timed(group, "ours"), row)
    return f"{_times(row, layout)} ({ratio})" if ratio else _times(row, layout)


def _times(row: Row, layout: Layout) -> str:
    found = (median(row, measure) for measure in layout.measures.values())
    return " / ".join("–" if value is None else short(value) for value in found)


def _ratio(layout: Layout, ours: Row | None, row: Row) -> str | None:
    """How many times faster ours is: replayed where both can be, else called."""
    for measure in reversed(layout.measures.values()):
        theirs, own = median(row, measure), median(ours, measure)
        if row is not ours and theirs is not None and own is not None:
            return markdown.times(theirs / own)
    return None


def short_problem(problem: str) -> str:
    """Abbreviate a problem for a cell."""
    if "memory" in problem:
        return "no memory"
    if "off by" in problem:
        return "wrong"
    return "slow" if " took " in problem else "fails"


def _fraction(row: Row) -> float | None:
    return row.get("graph_fraction_of_floor") or row.get("fraction_of_floor")


def _problems(groups: Groups, titles: Mapping[str, str]) -> Iterator[str]:
    """What could not be measured or captured, each reason once."""
    for (n, d), group in groups.items():
        for name, row in group.items():
            reason = row.get("problem") or row.get("graph_problem")
            if reason and not reason.startswith("not tried"):
                what = "" if row.get("problem") else ", replayed"
                yield f"- {n} × {d}, {titles[name]}{what}: {reason}"
