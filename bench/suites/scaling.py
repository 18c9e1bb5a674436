"""A model of the loss on groups of GPUs: nothing in this suite is measured."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path
from typing import Annotated

from bench import provenance, results
from bench.cli import Option
from bench.markdown import table_line
from bench.ranks import figure, scaling
from bench.results import Row, rounded

SECTION = "Groups of GPUs: modelled, not measured"
FILE = results.FOLDER / "scaling.jsonl"


def command(
    out: Annotated[Path, Option("JSON Lines file; the figure has its name, with .svg.")] = FILE,
) -> None:
    """Model one step on 8, 64 and 512 GPUs; no GPU needed, none used."""
    origin = {
        "commit": provenance.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": "python -m bench scaling",
    }
    rows = [row | {"provenance": origin} for row in modelled()]
    results.merge(out, rows)
    drawing = figure_file(out)
    drawing.write_text(figure.draw(rows, mark(rows)), encoding="utf-8")
    print(f"rows are in {out}, drawn in {drawing}; `python -m bench report` makes the tables")


def modelled() -> list[Row]:
    """The rows, without provenance."""
    rows = []
    for gpus, n in scaling.GROUPS:
        for d in scaling.DIMENSIONS:
            steps = {
                "ours": dataclasses.asdict(scaling.ours(gpus, n, d)),
                "all_reduce": dataclasses.asdict(scaling.all_reduce(gpus, n, d)),
            }
            for step in steps.values():
                step["seconds"] = rounded(step["seconds"])
            row = {"suite": "scaling", "n": n, "d": d, "dtype": scaling.PRECISION, "ranks": gpus}
            rows.append(row | steps)
    return rows


def figure_file(rows: Path) -> Path:
    """The figure beside a file of rows."""
    return rows.with_suffix(".svg")


def mark(rows: list[Row]) -> str:
    """The fingerprint of rows that their figure carries."""
    shown = [{k: v for k, v in row.items() if k != "provenance"} for row in rows]
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    return f"modelled, not measured; rows {digest[:16]}"


def origin(rows: list[Row], name: str) -> str:
    """Where the rows come from, in words."""
    first = rows[0]["provenance"]
    return (
        f"**Modelled, not measured**: computed on {first['date'][:10]} with `{first['command']}` "
        f"at commit {first['commit']}; no GPU has run any of it. Rows: `bench/results/{name}`."
    )


def tables(rows: list[Row], brief: bool) -> str:
    """The assumptions, the figure, and a table for each group of GPUs."""
    folder = "bench/results/" if brief else ""
    picture = f"![Modelled seconds per step]({folder}{figure_file(FILE).name})"
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["d"]):
        groups.setdefault((row["ranks"], row["n"]), []).append(row)
    parts = [_assumptions(), picture]
    for gpus, n in (group for group in scaling.GROUPS if group in groups):
        title = f"**{gpus} GPUs, N = {n} ({n // gpus} on each): modelled**"
        parts += [title, _table(groups[gpus, n])]
    return "\n\n".join([*parts, _slower(rows)])


def _assumptions() -> str:
    inside, across = (scaling.network(gpus) for gpus in (8, 64))
    return (
        "Seconds of one forward and backward pass of the loss alone, embeddings in bfloat16, "
        "nothing overlapped. What both are assumed to reach: "
        f"{inside.matmul / 1e12:.0f} TFLOP/s in products and {inside.memory / 1e12:.1f} TB/s of "
        "memory, both measured on an H100 (not by this suite). Links are assumed after data "
        f"sheets, not measured: {inside.bandwidth / 1e9:.0f} GB/s each way for each GPU among the "
        f"{scaling.GPUS_PER_NODE} of a machine; between machines {across.bandwidth / 1e9:.0f} GB/s "
        f"for what a GPU sends to others, {across.shared_bandwidth / 1e9:.0f} GB/s in rings and "
        "trees, which leave a machine through all links at once. A sum or an all-reduce takes "
        f"1 + log2 W steps of {across.latency * 1e6:.0f} µs ({inside.latency * 1e6:.0f} within a "
        "machine).\n\n"
        '*barlow_fast*: the layout that `layout="auto"` takes, by the model with which it takes it '
        "(`barlow_fast/distributed/cost.py`): operations, bytes, "
        f"{across.latency * 1e6:.0f} µs ({inside.latency * 1e6:.0f} within a machine) for each "
        f"exchange and {across.per_rank * 1e6:.1f} µs ({inside.per_rank * 1e6:.1f}) for each "
        "further rank that it addresses; steps of sums as above.\n\n"
        "*All-reduce of C*: C in two bytes an element, as under autocast; 6·n·D² operations for n "
        f"samples of a rank; {scaling.PASSES} passes over D × D in two bytes, as few as were "
        "counted of a public implementation in eager torch; an all-reduce, 2 (W − 1) / W · D² "
        f"elements sent; the latency of {scaling.SUMS} sums: C, and the statistics of two views "
        "forward and backward (SyncBatchNorm), whose bytes are left out. It *does not fit* where "
        f"{scaling.MATRICES} D × D matrices of two bytes exceed {scaling.MEMORY / 1e9:.0f} GB "
        "(eager torch was counted to hold 4)."
    )


def _table(rows: list[Row]) -> str:
    heads = [
        "D", "barlow_fast, ms", "layout", "MB sent", "all-reduce of C, ms", "MB sent",
        "times as fast", "fewer bytes",
    ]  # fmt: skip
    lines = [table_line(heads), table_line(["---:", "---:", "---", *["---:"] * (len(heads) - 3)])]
    for row in rows:
        ours, other = row["ours"], row["all_reduce"]
        time = _short(other["seconds"] * 1e3)
        ratio = _ratio(other["seconds"] / ours["seconds"])
        lines.append(
            table_line(
                [
                    str(row["d"]),
                    f"**{_short(ours['seconds'] * 1e3)}**",
                    ours["layout"],
                    _short(ours["sent"] / 1e6),
                    time if other["fits"] else f"does not fit ({time})",
                    _short(other["sent"] / 1e6),
                    ratio if other["fits"] else f"({ratio})",
                    _ratio(other["sent"] / ours["sent"]),
                ]
            )
        )
    return "\n".join(lines)


def _slower(rows: list[Row]) -> str:
    """Where the model finds `barlow_fast` slower."""
    found = [
        f"{row['ranks']} GPUs at N = {row['n']}, D = {row['d']} "
        f"({row['ours']['seconds'] / row['all_reduce']['seconds']:.1f}× the time)"
        for row in rows
        if row["ours"]["seconds"] > row["all_reduce"]["seconds"]
    ]
    if not found:
        return "In this model `barlow_fast` is nowhere slower."
    return "In this model `barlow_fast` is slower on " + "; ".join(found) + "."


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.0f}×" if value >= 20 else f"{value:.1f}×"
