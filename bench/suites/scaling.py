"""A model of the loss on groups of GPUs: nothing in this suite is measured."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated

from bench import provenance, results
from bench.cli import Option
from bench.markdown import short, table, times
from bench.ranks import scaling
from bench.results import Row, rounded

SECTION = "Groups of GPUs: modelled, not measured"
FILE = results.FOLDER / "scaling.jsonl"


def command(
    out: Annotated[Path, Option("JSON Lines file.")] = FILE,
) -> None:
    """Model one step on 8, 64 and 512 GPUs; no GPU needed, none used."""
    origin = {
        "commit": provenance.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": "python -m bench scaling",
    }
    results.merge(out, [row | {"provenance": origin} for row in modelled()])
    print(f"rows are in {out}; `python -m bench report` makes the tables and the figure")


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


def origin(rows: list[Row], name: str) -> str:
    """Where the rows come from, in words."""
    first = rows[0]["provenance"]
    return (
        f"**Modelled, not measured**: computed on {first['date'][:10]} with `{first['command']}` "
        f"at commit {first['commit']}; no GPU has run any of it. Rows: `bench/results/{name}`."
    )


def tables(rows: list[Row]) -> str:
    """The assumptions, and a table for each group of GPUs."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["d"]):
        groups.setdefault((row["ranks"], row["n"]), []).append(row)
    parts = [_assumptions()]
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
    return table(
        heads, [_cells(row["d"], row["ours"], row["all_reduce"]) for row in rows], left=[2]
    )


def _cells(d: int, ours: Row, other: Row) -> list[str]:
    time, ratio = short(other["seconds"] * 1e3), times(other["seconds"] / ours["seconds"])
    return [
        str(d),
        f"**{short(ours['seconds'] * 1e3)}**",
        ours["layout"],
        short(ours["sent"] / 1e6),
        time if other["fits"] else f"does not fit ({time})",
        short(other["sent"] / 1e6),
        ratio if other["fits"] else f"({ratio})",
        times(other["sent"] / ours["sent"]),
    ]


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
