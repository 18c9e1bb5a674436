"""Markdown of the rows of one CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu.loss import COMPILED_SHAPES, FIRST_SHAPES, FIRST_VARIANTS
from bench.inputs import CUDA_VARIANTS
from bench.markdown import table_line
from bench.peers import discover
from bench.results import Row

Groups = dict[tuple[int, int], dict[str, Row]]
MEASURES = {"called": "median_ms", "replayed": "graph_ms"}


def loss(rows: Sequence[Row], brief: bool) -> str:
    """A wide table for each dtype; `brief`: the main shapes and dtypes, no percentiles."""
    parts = []
    for variant in CUDA_VARIANTS.values():
        groups = _groups(rows, variant.name)
        if brief:
            shown = {*FIRST_SHAPES, *COMPILED_SHAPES} if variant.name in FIRST_VARIANTS else ()
            groups = {shape: group for shape, group in groups.items() if shape in shown}
        if groups:
            parts += [f"**{variant.title}**", _wide_table(groups), _slowdowns(groups)]
            if not brief:
                parts += [_long_table(groups), *_problems(groups)]
    return "\n\n".join([_reading(), *parts]) if parts else ""


def memory(rows: Sequence[Row]) -> str:
    """One line for each row; what did not fit says so."""
    titles = _all_titles()
    lines = [
        "| N × D | inputs | implementation | MiB extra | multiple of the inputs |",
        "| ---: | --- | --- | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (row["n"], row["d"], row["dtype"])):
        cells = [f"{row['n']} × {row['d']}", CUDA_VARIANTS[row["dtype"]].title]
        cells.append(titles.get(row["peer"], row["peer"]))
        if row["problem"]:
            cells += [short_problem(row["problem"]), "–"]
        else:
            cells += [f"{row['extra_bytes'] / 2**20:.1f}", f"{row['extra_over_inputs']:.3g}"]
        lines.append(table_line(cells))
    reading = (
        "Extra: the most that torch's allocator had handed out during one forward and backward "
        "pass, less what it had before it (both inputs included) and less both gradients. "
        "Temporaries and saved matrices count; workspaces that the GEMM library keeps for good do "
        "not."
    )
    return reading + "\n\n" + "\n".join(lines)


def short_problem(problem: str) -> str:
    """A problem in two words, for a cell."""
    if "memory" in problem:
        return "no memory"
    return "wrong" if "off by" in problem else "fails"


def _reading() -> str:
    return (
        "Median milliseconds of one forward and backward pass on random data with cold caches, "
        "*called / replayed*: as user code calls it on an idle device, launches included; and "
        "replayed from a captured CUDA graph, the device's own time. × is how many times faster "
        "`barlow_fast` is, replayed where both can be, else called. *Of floor* is the floor "
        "divided by the replayed time of `barlow_fast`, where floor = 6·N·D·min(N, D) / (GEMM "
        "rate) + bytes / (copy bandwidth), with each input read twice and each gradient written "
        "once, at the peaks measured in the same run; the float32 rate is the better of the "
        "float32 GEMM and a third of the TF32 GEMM, as three TF32 products give float32 quality. "
        "Compiled peers take part at a few shapes only."
    )


def _groups(rows: Sequence[Row], dtype: str) -> Groups:
    groups: Groups = {}
    for row in sorted(rows, key=lambda row: (row["n"], row["d"])):
        if row["dtype"] == dtype:
            groups.setdefault((row["n"], row["d"]), {})[row["peer"]] = row
    return groups


def _all_titles() -> dict[str, str]:
    return {name: peer.title for name, peer in discover("cuda").items()}


def _titles(groups: Groups) -> dict[str, str]:
    present = {name for group in groups.values() for name in group}
    known = {name: title for name, title in _all_titles().items() if name in present}
    return known | {name: name for name in sorted(present - set(known))}


def _wide_table(groups: Groups) -> str:
    titles = _titles(groups)
    others = [name for name in titles if name != "ours"]
    heads = ["N × D", "floor", titles.get("ours", "barlow_fast"), "of floor"]
    heads += [titles[name] for name in others]
    lines = [table_line(heads), table_line(["---:"] * len(heads))]
    for (n, d), group in groups.items():
        ours = group.get("ours")
        cells = [f"{n} × {d}", _short(next(iter(group.values()))["floor_ms"])]
        cells += [f"**{_cell(ours)}**" if ours else "–", _fraction(ours)]
        cells += [_cell(group.get(name), ours) for name in others]
        lines.append(table_line(cells))
    return "\n".join(lines)


def _cell(row: Row | None, ours: Row | None = None) -> str:
    if row is None:
        return "–"
    if row["problem"]:
        return short_problem(row["problem"])
    text = " / ".join(_short(row[key]) for key in MEASURES.values())
    ratio = _ratio(row, ours)
    return text if ratio is None else f"{text} ({_times(ratio)})"


def _ratio(row: Row, ours: Row | None) -> float | None:
    """How many times faster ours is: replayed where both can be, else called."""
    for key in reversed(MEASURES.values()):
        if ours is not None and row[key] is not None and ours[key] is not None:
            return row[key] / ours[key]
    return None


def _times(ratio: float) -> str:
    digits = 0 if ratio >= 20 else 1 if ratio >= 2 else 2
    return f"{ratio:.{digits}f}×"


def _fraction(ours: Row | None) -> str:
    found = ours and (ours["graph_fraction_of_floor"] or ours["fraction_of_floor"])
    return f"{found:.0%}" if found else "–"


def _slowdowns(groups: Groups) -> str:
    """Where `barlow_fast` is slower than something, said as plainly as the speedups."""
    titles, found, compared = _titles(groups), [], False
    for (n, d), group in groups.items():
        ours = group.get("ours")
        for name, row in group.items():
            for measure, key in MEASURES.items():
                if ours is None or name == "ours" or None in (row[key], ours[key]):
                    continue
                compared = True
                ratio = ours[key] / row[key]
                if ratio > 1:
                    found.append(f"{n} × {d} {measure} ({ratio:.2f}× the time of {titles[name]})")
    if not compared:
        return "No comparison: `barlow_fast` or every peer is missing."
    if found:
        return "`barlow_fast` is slower at: " + "; ".join(found) + "."
    return "`barlow_fast` is the fastest in every row, called and replayed."


def _long_table(groups: Groups) -> str:
    titles = _titles(groups)
    heads = ["N × D", "implementation", "called ms", "p20", "p80", "repeats"]
    heads += ["replayed ms", "p20", "p80", "repeats", "of floor"]
    lines = [table_line(heads), table_line(["---:", "---", *["---:"] * 9])]
    for (n, d), group in groups.items():
        for name, row in ((name, group[name]) for name in titles if name in group):
            cells = [f"{n} × {d}", titles[name]]
            cells += [_short(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")]
            cells += [str(row["repeats"])]
            cells += [_short(row[key]) for key in ("graph_ms", "graph_p20_ms", "graph_p80_ms")]
            cells += [str(row["graph_repeats"]), _fraction(row)]
            lines.append(table_line(cells))
    return "<details><summary>Percentiles</summary>\n\n" + "\n".join(lines) + "\n\n</details>"


def _problems(groups: Groups) -> list[str]:
    """What could not be measured or captured, with the reasons; nothing where all could be."""
    titles, lines = _titles(groups), []
    for (n, d), group in groups.items():
        for name, row in group.items():
            what = "" if row["problem"] else ", replayed"
            reason = row["problem"] or row["graph_problem"]
            if reason:
                lines.append(f"- {n} × {d} {titles[name]}{what}: {reason}")
    if not lines:
        return []
    text = "\n".join(lines)
    return [f"<details><summary>What was not measured</summary>\n\n{text}\n\n</details>"]


def _short(value: float | None) -> str:
    """Three significant digits without an exponent; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
