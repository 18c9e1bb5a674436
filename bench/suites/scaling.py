"""A model of the loss on groups of GPUs: nothing in this suite is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from bench import provenance, results
from bench.cli import Option
from bench.markdown import Column, joined, reading, short, table_of, times, unmeasured
from bench.ranks import scaling
from bench.results import Row

SECTION = "Groups of GPUs: modelled, not measured"
origin = functools.partial(unmeasured, "scaling")
FILE = results.FOLDER / "scaling.jsonl"


def command(out: Annotated[Path, Option("JSON Lines file.")] = FILE) -> None:
    """Model one step on 8, 64 and 512 GPUs; no GPU needed, none used."""
    origin = provenance.unmeasured("python -m bench scaling")
    results.merge(out, [row | {"provenance": origin} for row in modelled()])
    print(f"rows are in {out}; `python -m bench report` makes the tables and the figure")


def modelled() -> list[Row]:
    """The rows, without provenance."""
    return [
        {
            "suite": "scaling",
            "n": n,
            "d": d,
            "dtype": scaling.PRECISION,
            "ranks": gpus,
            "ours": scaling.ours(gpus, n, d),
            "all_reduce": scaling.all_reduce(gpus, n, d),
        }
        for gpus, n in scaling.GROUPS
        for d in scaling.DIMENSIONS
    ]


def tables(rows: list[Row]) -> str:
    """The assumptions, and a table for each group of GPUs."""
    groups = results.listed(sorted(rows, key=lambda row: row["d"]), "ranks", "n")
    parts = [_assumptions()]
    for gpus, n in (group for group in scaling.GROUPS if group in groups):
        title = f"**{gpus} GPUs, N = {n} ({n // gpus} on each): modelled**"
        parts += [title, table_of(COLUMNS, groups[gpus, n])]
    return joined(*parts, _slower(rows))


def _assumptions() -> str:
    inside, across = (scaling.network(gpus) for gpus in (8, 64))
    return reading(
        "scaling",
        products=inside.matmul / 1e12,
        memory=inside.memory / 1e12,
        inside_link=inside.bandwidth / 1e9,
        per_node=scaling.GPUS_PER_NODE,
        link=across.bandwidth / 1e9,
        shared_link=across.shared_bandwidth / 1e9,
        latency=across.latency * 1e6,
        inside_latency=inside.latency * 1e6,
        per_rank=across.per_rank * 1e6,
        inside_per_rank=inside.per_rank * 1e6,
        passes=scaling.PASSES,
        sums=scaling.SUMS,
        matrices=scaling.MATRICES,
        capacity=scaling.MEMORY / 1e9,
    )


def _ratio(row: Row, key: str) -> str:
    return times(row["all_reduce"][key] / row["ours"][key])


def _if_it_fits(text: Callable[[Row], str], otherwise: str) -> Callable[[Row], str]:
    """A cell of the all-reduce; where C does not fit, `otherwise` around it."""
    return lambda row: text(row) if row["all_reduce"]["fits"] else otherwise.format(text(row))


def _milliseconds(side: str) -> Callable[[Row], str]:
    return lambda row: short(row[side]["seconds"] * 1e3)


def _megabytes(side: str) -> Column:
    return Column("MB sent", lambda row: row[side]["sent"] / 1e6, short)


COLUMNS = [
    Column("D", "d"),
    Column("barlow_fast, ms", _milliseconds("ours"), bold=bool),
    Column("layout", lambda row: row["ours"]["layout"], left=True),
    _megabytes("ours"),
    Column("all-reduce of C, ms", _if_it_fits(_milliseconds("all_reduce"), "does not fit ({})")),
    _megabytes("all_reduce"),
    Column("times as fast", _if_it_fits(lambda row: _ratio(row, "seconds"), "({})")),
    Column("fewer bytes", lambda row: _ratio(row, "sent")),
]


def _slower(rows: list[Row]) -> str:
    """Where the model finds `barlow_fast` slower."""
    found = [
        f"{row['ranks']} GPUs at N = {row['n']}, D = {row['d']} ({ratio:.1f}× the time)"
        for row in rows
        if (ratio := row["ours"]["seconds"] / row["all_reduce"]["seconds"]) > 1
    ]
    where = f"slower on {'; '.join(found)}" if found else "nowhere slower"
    return f"In this model `barlow_fast` is {where}."
