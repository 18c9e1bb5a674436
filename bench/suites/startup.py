"""Seconds from nothing to the first loss: imports, first calls, compilers. Each sample is a fresh
process (`bench/startup/child.py`), and the implementations take turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

from bench import cli, devices, peers, provenance, sources
from bench.cli import Option
from bench.inputs import parse_shapes, parse_variants
from bench.markdown import Column, in_words, joined, rate, reading, table_of, titled
from bench.results import Row, chosen, grouped, listed
from bench.session import Chosen, Output, Session
from bench.startup import processes
from bench.startup.child import COMPILED
from bench.startup.processes import MODULES, STAGES, TORCH, Key
from bench.timing import columns

SECTION = "Startup: imports, first calls, compilers"
CASES = {
    "import": "Import of torch, and what each package adds to it",
    "first-call": "First call",
    "second-call": "Second call",
    "triton-kernels": "Triton kernels, compiled ahead of time",
    "compiler-cold": "First call under torch.compile, nothing on disk",
    "compiler-warm": "First call under torch.compile, compiled code on disk",
}
SHAPES, DTYPES = "256x2048", "fp32"
QUICK_REPEATS = 2
QUICK_PEERS = ("ours", "official")
QUICK_CASES = ("import", "first-call", "second-call")


def command(
    given: Output,
    some: Chosen,
    cases: Annotated[str | None, Option(f"Of {', '.join(processes.CASES)}. Default: all.")] = None,
    repeats: Annotated[
        int | None, Option("Processes of each, instead of 5, or 3 where a compiler runs.", least=1)
    ] = None,
    deadline: Annotated[
        float, Option("Seconds after which a process is ended.")
    ] = processes.DEADLINE,
    kind: Annotated[str, Option("cpu or cuda.", name="--device")] = "cpu",
) -> int:
    """Time imports, first calls and compilers, each in fresh processes."""
    quick = given.quick
    with cli.reading():
        device = devices.choose(kind)
        chosen = cli.listed(cases, processes.CASES, "case", QUICK_CASES if quick else None)
        names = cli.listed(some.peers, processes.PEERS, "peer", QUICK_PEERS if quick else None)
        variants = parse_variants(some.dtypes or DTYPES, device.variants)
        grid = list(itertools.product(parse_shapes(some.shapes or SHAPES), variants))
    repeats = QUICK_REPEATS if quick and repeats is None else repeats
    session = Session(device, given, sources.STARTED)
    session.announce()
    shown = in_words(Column("", "case", left=True), titled({}), *_figures("ms"))
    for stage in session.in_time(stage for stage in STAGES if {*stage.cases} & {*chosen}):
        samples, failed = stage.measure(stage.visits(kind, names, grid, print), repeats, deadline)
        session.failures |= failed
        rows = [row(key, each, kind) for key, each in samples.items() if key.case in chosen]
        session.keep(rows, shown)
    return session.end()


def row(key: Key, samples: Sequence[float], kind: str) -> Row:
    """A row of results without its provenance."""
    found: Row = {"suite": "startup", "device": kind, "source": source(key.peer, kind)}
    found |= key._asdict() | {"repeats": len(samples), **columns(samples, "ms", 1e3)}
    return {name: value for name, value in found.items() if (name, value) != ("kernels", 0)}


def source(peer: str, kind: str) -> str:
    """Where an implementation comes from, with its version."""
    if peer == TORCH:
        return f"torch {provenance.version('torch')}"
    found = peers.discover(kind).get(peer.removesuffix(COMPILED))
    text = found.source if found is not None else peer
    return f"torch.compile (static shapes) of {text}" if peer.endswith(COMPILED) else text


def titles() -> dict[str, str]:
    """What the tables call the implementations, in order."""
    known = peers.titles("cuda") | peers.titles()
    return {TORCH: "torch"} | {name: known.get(name, name) for name in processes.PEERS}


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: imports, calls, compilers."""
    parts = [reading("startup")]
    imports = {row["peer"]: row for row in rows if row["case"] == "import"}
    if imports:
        torch = imports.get(TORCH, {}).get("median_ms")
        lines = [
            row | {"share": row["median_ms"] / torch if torch else None}
            for row in chosen(titles(), imports)
        ]
        parts += ["**Imports**", table_of(IMPORTS, lines)]
    called = (row for row in rows if row["n"])
    for (n, d, dtype), some in listed(called, "n", "d", "dtype").items():
        by_case = {case: group for (case,), group in grouped(some, "case").items()}
        kernels = by_case.pop("triton-kernels", {}).get("ours")
        if by_case:
            known = [case for case in CALLS if case in by_case]
            heads = [titled(titles()), *(c for case in known for c in _figures(CALLS[case], case))]
            lines = [
                {"peer": name} | {case: by_case[case].get(name) for case in known}
                for name in titles()
                if any(name in by_case[case] for case in known)
            ]
            parts += [f"**Calls at {n} × {d}, {dtype}**", table_of(heads, lines)]
        if kernels is not None:
            ends = {key: rate(kernels[f"{key}_ms"]) for key in ("median", "p20", "p80")}
            parts.append(reading("startup kernels", **kernels | ends))
    return joined(*parts)


def _figures(head: str, case: str | None = None) -> list[Column]:
    """The columns of milliseconds of a row, or of the row of a case."""

    def of(row: Row) -> Row | None:
        return row if case is None else row[case]

    def spread(row: Row) -> str:
        return f"{rate(row['p20_ms'])} to {rate(row['p80_ms'])} ({row['repeats']})"

    median = Column(head, of, lambda row: rate(row["median_ms"]))
    return [median, Column("p20 to p80 (processes)", of, spread)]


def _package(row: Row) -> str:
    name = row["peer"]
    return "`torch`" if name == TORCH else f"{titles()[name]}: `{MODULES[name]}` beyond torch"


IMPORTS = [
    Column("import", _package, left=True),
    *_figures("ms"),
    Column("× `import torch`", "share", lambda share: f"{share:.3g}×", missing=""),
]
CALLS = {
    "first-call": "first call, ms",
    "second-call": "second call, ms",
    "compiler-cold": "compiler, nothing on disk, ms",
    "compiler-warm": "compiler, on disk, ms",
}
