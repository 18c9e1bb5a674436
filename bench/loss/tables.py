"""Markdown of the rows of one CPU, and the table that a run prints."""

from __future__ import annotations

from bench.inputs import VARIANTS
from bench.loss import grid
from bench.markdown import table_line
from bench.optional import Table
from bench.peers import discover
from bench.results import Row

Groups = dict[tuple[int, int], dict[str, Row]]
# What the README shows beside the fastest of the public implementations.
SHOWN = ("official", "lightly", "gram-plain")
NOT_PUBLIC = ("gram-plain", "gram-compiled")  # nobody ships the Gram form


def console_table(rows: list[Row]) -> Table:
    """What a run prints of one shape and dtype."""
    first = rows[0]
    table = Table(
        title=f"{first['n']} x {first['d']} {first['dtype']}: floor {short(first['floor_ms'])} ms",
        title_justify="left",
    )
    heads = ("peer", "median ms", "p20", "p80", "forward", "repeats", "of floor", "ours is faster")
    for heading in heads:
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    timed = [row for row in rows if not row.get("problem")]
    ours = {row["peer"]: row for row in timed}.get("ours")
    for row in timed:
        table.add_row(
            row["peer"],
            *(short(row[key]) for key in ("median_ms", "p20_ms", "p80_ms", "forward_ms")),
            str(row["repeats"]),
            f"{row['fraction_of_floor']:.2f}",
            f"{row['median_ms'] / ours['median_ms']:.2f}x" if ours and row is not ours else "",
        )
    return table


def tables(rows: list[Row], brief: bool) -> str:
    """A wide table for each dtype; `brief`: the main shapes and peers, no percentiles."""
    parts = []
    for variant in VARIANTS.values():
        groups = _groups(rows, variant.name)
        if not groups:
            continue
        if brief:
            main = {shape: groups[shape] for shape in grid.SHAPES if shape in groups}
            table = _brief_table(main or groups)
        else:
            table = _wide_table(groups)
        parts += [f"**{variant.title}**", table, _slowdowns(groups)]
        if not brief:
            parts += [_long_table(groups), *_problems(groups)]
    if parts:
        parts.insert(0, _reading(brief))
    return "\n\n".join(parts)


def short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _groups(rows: list[Row], dtype: str) -> Groups:
    """Rows of one dtype by shape: those of the tables first, in their order, then by size."""
    groups: Groups = {}
    for row in rows:
        if row["dtype"] == dtype:
            groups.setdefault((row["n"], row["d"]), {})[row["peer"]] = row
    first = grid.SHAPES
    order = sorted(
        groups, key=lambda shape: (first.index(shape) if shape in first else len(first), shape)
    )
    return {shape: groups[shape] for shape in order}


def _reading(brief: bool) -> str:
    text = (
        "Median milliseconds of one forward and backward pass; × is how many times faster "
        "`barlow_fast` is. *Of floor* is the floor divided by the median of `barlow_fast`, where "
        "floor = 6·N·D·min(N, D) / (GEMM rate) + bytes / (copy bandwidth), with each input read "
        "twice and each gradient written once, at the peaks measured in the same run. "
    )
    if brief:
        return text + (
            "*Fastest other* is the fastest exact implementation that others publish, eager or "
            "compiled (compiled at a few shapes only); the Gram form in plain torch is ours to "
            "beat as well, though nobody ships it."
        )
    return text + (
        "Compiled peers take part at a few shapes only. *Not exact* compute another loss. A cell "
        "says `memory` where a peer does not fit, `slow` where it was not tried because it took "
        "too long at a smaller shape."
    )


def _titles(groups: Groups) -> dict[str, str]:
    """Peers that occur, in the order of the tables, with their titles."""
    present = {name for group in groups.values() for name in group}
    known = {name: peer.title for name, peer in discover().items() if name in present}
    titles = known | {name: name for name in sorted(present - set(known))}
    inexact = {
        name for group in groups.values() for name, row in group.items() if not row.get("exact", 1)
    }
    return {
        name: f"{title} (not exact)" if name in inexact and "exact" not in title else title
        for name, title in titles.items()
    }


def _wide_table(groups: Groups) -> str:
    titles = _titles(groups)
    others = [name for name in titles if name != "ours"]
    heads = ["N × D", "floor", titles.get("ours", "ours"), "of floor"]
    heads += [titles[name] for name in others]
    lines = [table_line(heads), table_line(["---:"] * len(heads))]
    for shape, group in groups.items():
        ours = _timed(group, "ours")
        cells = _first_cells(shape, group, ours)
        cells += [_cell(group.get(name), ours) for name in others]
        lines.append(table_line(cells))
    return "\n".join(lines)


def _brief_table(groups: Groups) -> str:
    titles = _titles(groups)
    shown = [name for name in SHOWN if name in titles]
    heads = ["N × D", "floor", titles.get("ours", "ours"), "of floor", "fastest other"]
    heads += [titles[name] for name in shown]
    lines = [table_line(heads), table_line(["---:"] * len(heads))]
    for shape, group in groups.items():
        ours = _timed(group, "ours")
        cells = _first_cells(shape, group, ours)
        best = fastest_public(group)
        cells.append(f"{_cell(best, ours)} {titles[best['peer']]}" if best else "–")
        cells += [_cell(group.get(name), ours) for name in shown]
        lines.append(table_line(cells))
    return "\n".join(lines)


def fastest_public(group: dict[str, Row]) -> Row | None:
    """The fastest exact implementation of one shape and dtype that somebody else publishes."""
    known = discover()
    rows = [
        row
        for name, row in group.items()
        if not row.get("problem")
        and row.get("exact", True)
        and name not in NOT_PUBLIC
        and not (name in known and known[name].ours)
    ]
    return min(rows, key=lambda row: row["median_ms"], default=None)


def _timed(group: dict[str, Row], name: str) -> Row | None:
    row = group.get(name)
    return None if row is None or row.get("problem") else row


def _first_cells(shape: tuple[int, int], group: dict[str, Row], ours: Row | None) -> list[str]:
    cells = [f"{shape[0]} × {shape[1]}", short(next(iter(group.values()))["floor_ms"])]
    if ours is None:
        return [*cells, "–", "–"]
    return [*cells, f"**{short(ours['median_ms'])}**", f"{ours['fraction_of_floor']:.0%}"]


def _cell(row: Row | None, ours: Row | None) -> str:
    if row is None:
        return "–"
    if row.get("problem"):
        return _short_problem(row["problem"])
    if ours is None:
        return short(row["median_ms"])
    ratio = row["median_ms"] / ours["median_ms"]
    digits = 0 if ratio >= 20 else 1 if ratio >= 2 else 2
    return f"{short(row['median_ms'])} ({ratio:.{digits}f}×)"


def _short_problem(problem: str) -> str:
    return "memory" if "memory" in problem else "slow" if " took " in problem else "fails"


def _slowdowns(groups: Groups) -> str:
    """Where `barlow_fast` is slower than something; said as plainly as the speedups."""
    titles, found, compared = _titles(groups), [], 0
    for (n, d), group in groups.items():
        ours = _timed(group, "ours")
        for name, row in group.items():
            if ours is None or name == "ours" or row.get("problem"):
                continue
            compared += 1
            if row["median_ms"] < ours["median_ms"]:
                ratio = ours["median_ms"] / row["median_ms"]
                noise = ", within noise" if ours["p20_ms"] < row["p80_ms"] else ""
                found.append(f"{n} × {d} ({ratio:.2f}× the time of {titles[name]}{noise})")
    if not compared:
        return "No comparison: `barlow_fast` or every peer is missing."
    if found:
        return (
            f"In {len(found)} of {compared} comparisons `barlow_fast` is slower at: "
            + "; ".join(found)
            + "."
        )
    return f"`barlow_fast` is the fastest in every row ({compared} comparisons)."


def _long_table(groups: Groups) -> str:
    titles = _titles(groups)
    heads = [
        "N × D", "implementation", "median ms", "p20", "p80", "repeats", "of floor", "forward ms",
        "p20", "p80",
    ]  # fmt: skip
    lines = [table_line(heads), table_line(["---:", "---", *["---:"] * 8])]
    for (n, d), group in groups.items():
        for name in titles:
            row = _timed(group, name)
            if row is None:
                continue
            times = [short(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")]
            forward = [
                short(row[key]) if key in row else "–"
                for key in ("forward_ms", "forward_p20_ms", "forward_p80_ms")
            ]
            fraction = f"{row['fraction_of_floor']:.1%}"
            cells = [*times, str(row["repeats"]), fraction, *forward]
            lines.append(table_line([f"{n} × {d}", titles[name], *cells]))
    return "<details><summary>Percentiles, and the forward half alone</summary>\n\n" + (
        "\n".join(lines) + "\n\n</details>"
    )


def _problems(groups: Groups) -> list[str]:
    """What was left out, each reason once."""
    titles = _titles(groups)
    lines = [
        f"- {n} × {d}, {titles[name]}: {row['problem']}"
        for (n, d), group in groups.items()
        for name, row in group.items()
        if row.get("problem") and not row["problem"].startswith("not tried")
    ]
    if not lines:
        return []
    return ["<details><summary>Left out</summary>\n\n" + "\n".join(lines) + "\n\n</details>"]
