"""A model of one step on groups of H100s: `barlow_fast` against the all-reduce of C.

Nothing here has run. Operations and bytes are exact; rates are assumed (the tables list them). Both
are charged by the same network: an all-reduce leaves a machine through all of its links at once and
takes the steps of a tree. C travels in two bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch

from barlow_fast.distributed import LayoutCost, Network, cost
from bench import provenance, results
from bench.cli import Option
from bench.markdown import Column, joined, reading, short, table_of, times, unmeasured
from bench.ranks import implementations
from bench.results import Row, rounded

SECTION = "Groups of GPUs: modelled, not measured"
origin = functools.partial(unmeasured, "scaling")
FILE = results.FOLDER / "scaling.jsonl"

GPUS_PER_NODE = 8
# (GPUs, samples of all of them): the paper's 2048, then at least 32 on each GPU, then 2048 again.
GROUPS = ((8, 2048), (64, 2048), (512, 16384), (512, 2048))
DIMENSIONS = (8192, 16384, 32768, 65536, 131072, 262144)
PRECISION, DTYPE = "bf16", torch.bfloat16

PASSES = 26  # over D x D in memory, beside the matrix products
MATRICES = 3  # D x D ones in two bytes, alive at once
MEMORY = 80e9  # bytes of a GPU
# Of C, and of the statistics of two views, forward and backward (SyncBatchNorm), whose bytes are
# left out.
SUMS = 5


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
            "dtype": PRECISION,
            "ranks": gpus,
            "ours": ours(gpus, n, d),
            "all_reduce": all_reduce(gpus, n, d),
        }
        for gpus, n in GROUPS
        for d in DIMENSIONS
    ]


def network(gpus: int) -> Network:
    """What `barlow_fast` itself assumes of such a group when it chooses a layout."""
    return cost.network_of("cuda", -(-gpus // GPUS_PER_NODE), PRECISION)


def _step(found: LayoutCost, gpus: int) -> dict[str, Any]:
    """One forward and backward pass of one rank, in the columns of a row."""
    seconds = rounded(found.seconds(network(gpus), gpus))
    return {"seconds": seconds, "flops": found.flops, "sent": found.sent}


def ours(gpus: int, n: int, d: int) -> dict[str, Any]:
    """`layout="auto"`, by the model with which it chooses."""
    rows, net = tuple(implementations.split(n, gpus)), network(gpus)
    layout = cost.choose_layout("auto", "auto", rows, d, DTYPE, PRECISION, net)
    found = cost.cost(layout, rows, d, DTYPE, PRECISION, use_all_reduce=net.use_all_reduce)
    return _step(found, gpus) | {"layout": layout, "fits": True}


def all_reduce(gpus: int, n: int, d: int) -> dict[str, Any]:
    """C in two bytes an element: products, passes through memory, the ring and the sums."""
    matrix = DTYPE.itemsize * d * d
    sent = implementations.wire_bytes(d, gpus, DTYPE.itemsize)
    # What is kept counts as four passes.
    found = LayoutCost(6.0 * n / gpus * d * d, 0, sent, 0, SUMS, PASSES * matrix // 4)
    return _step(found, gpus) | {"layout": None, "fits": MATRICES * matrix <= MEMORY}


def tables(rows: list[Row]) -> str:
    """The assumptions, and a table for each group of GPUs."""
    groups = results.listed(sorted(rows, key=lambda row: row["d"]), "ranks", "n")
    parts = [_assumptions()]
    for gpus, n in (group for group in GROUPS if group in groups):
        title = f"**{gpus} GPUs, N = {n} ({n // gpus} on each): modelled**"
        parts += [title, table_of(COLUMNS, groups[gpus, n])]
    slower = [
        f"{row['ranks']} GPUs at N = {row['n']}, D = {row['d']} ({1 / times:.1f}× the time)"
        for row in rows
        if (times := row["all_reduce"]["seconds"] / row["ours"]["seconds"]) < 1
    ]
    where = f"slower on {'; '.join(slower)}" if slower else "nowhere slower"
    return joined(*parts, f"In this model `barlow_fast` is {where}.")


def _assumptions() -> str:
    inside, across = (network(gpus) for gpus in (8, 64))
    return reading(
        "scaling",
        products=inside.matmul / 1e12,
        memory=inside.memory / 1e12,
        inside_link=inside.bandwidth / 1e9,
        per_node=GPUS_PER_NODE,
        link=across.bandwidth / 1e9,
        shared_link=across.shared_bandwidth / 1e9,
        latency=across.latency * 1e6,
        inside_latency=inside.latency * 1e6,
        per_rank=across.per_rank * 1e6,
        inside_per_rank=inside.per_rank * 1e6,
        passes=PASSES,
        sums=SUMS,
        matrices=MATRICES,
        capacity=MEMORY / 1e9,
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
