"""Seconds from nothing to the first loss: imports, first calls, compilers. Each sample is a fresh
process (`bench/startup/child.py`), and the implementations take turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

from bench import cli, devices, provenance, sources
from bench.cli import Option
from bench.inputs import parse_shapes, parse_variants
from bench.markdown import rate, table
from bench.peers import discover
from bench.results import Row
from bench.session import Output, Session
from bench.startup import processes
from bench.startup.child import COMPILED
from bench.startup.processes import (
    CASES,
    COMPILE_REPEATS,
    COMPILED_OFFICIAL,
    DEADLINE,
    MODULES,
    PEERS,
    REPEATS,
    TORCH,
    Key,
)
from bench.timing import columns

SECTION = "Startup: imports, first calls, compilers"
SHAPES, DTYPES = "256x2048", "fp32"
QUICK_REPEATS = 3
QUICK_PEERS = ("ours", "official")
QUICK_CASES = ("import", "first-call", "second-call")


def command(
    given: Output,
    cases: Annotated[str | None, Option(f"Of {', '.join(CASES)}. Default: all.")] = None,
    peers: Annotated[str | None, Option(f"Of {', '.join(PEERS)}. Default: all.")] = None,
    shapes: Annotated[str, Option("Of the calls.")] = SHAPES,
    dtypes: Annotated[str, Option("Of the calls; as in the suite loss.")] = DTYPES,
    repeats: Annotated[
        int | None,
        Option(
            f"Processes of each. Default: {REPEATS}, or {COMPILE_REPEATS} where a compiler runs.",
            least=1,
        ),
    ] = None,
    deadline: Annotated[float, Option("Seconds after which a process is ended.")] = DEADLINE,
    kind: Annotated[str, Option("cpu or cuda.", name="--device")] = "cpu",
) -> int:
    """Time imports, first calls and compilers, each in fresh processes."""
    quick = given.quick
    with cli.reading():
        device = devices.choose(kind)
        chosen = cli.listed(cases, CASES, "case", QUICK_CASES if quick else None)
        names = cli.listed(peers, PEERS, "peer", QUICK_PEERS if quick else None)
        variants = parse_variants(dtypes, device.variants)
        grid = list(itertools.product(parse_shapes(shapes), variants))
    repeats = QUICK_REPEATS if quick and repeats is None else repeats
    session = Session(device, given, sources.STARTED)
    session.announce()
    end = None if given.minutes is None else session.begun + session.most
    for samples, failed in processes.measure(
        kind, chosen, names, grid, print, repeats, end, deadline, not quick
    ):
        session.failures |= failed
        session.measured += 1
        rows = [row(key, found, kind) for key, found in samples.items()]
        session.keep(rows, line_of)
    return session.end()


def row(key: Key, samples: Sequence[float], kind: str) -> Row:
    """A row of results without its provenance."""
    found: Row = {
        "suite": "startup",
        "case": key.case,
        "device": kind,
        "n": key.n,
        "d": key.d,
        "dtype": key.dtype,
        "peer": key.peer,
        "source": source(key.peer, kind),
        "repeats": len(samples),
        **columns(samples, "ms", 1e3),
    }
    return found | ({"kernels": key.kernels} if key.case == "triton-kernels" else {})


def source(peer: str, kind: str) -> str:
    """Where an implementation comes from, with its version."""
    if peer == TORCH:
        return f"torch {provenance.version('torch')}"
    found = discover(kind).get(peer.removesuffix(COMPILED))
    text = found.source if found is not None else peer
    return f"torch.compile (static shapes) of {text}" if peer.endswith(COMPILED) else text


def line_of(found: Row) -> str:
    """A row in words."""
    shape = f" {found['n']} x {found['d']} {found['dtype']}" if found["n"] else ""
    return (
        f"{found['case']}{shape} {found['peer']}: {rate(found['median_ms'])} ms "
        f"({rate(found['p20_ms'])} to {rate(found['p80_ms'])}, {found['repeats']} processes)"
    )


def titles() -> dict[str, str]:
    """What the tables call the implementations, in order."""
    known = {name: peer.title for name, peer in (discover("cuda") | discover()).items()}
    named = {name: known.get(name, name) for name in PEERS}
    return {TORCH: "torch"} | named | {COMPILED_OFFICIAL: f"{named['official']}, compiled"}


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: imports, calls, compilers."""
    parts = [_reading()]
    imports = {row["peer"]: row for row in rows if row["case"] == "import"}
    if imports:
        parts += ["**Imports**", _imports(imports), _import_verdict(imports)]
    calls: dict[tuple, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["n"]:
            shape = row["n"], row["d"], row["dtype"]
            calls.setdefault(shape, {})[row["case"], row["peer"]] = row
    for (n, d, dtype), found in calls.items():
        shape = f"{n} × {d}, {dtype}"
        kernels = found.pop(("triton-kernels", "ours"), None)
        if found:
            parts += [f"**Calls at {shape}**", _calls(found), _call_verdict(found)]
        if kernels is not None:
            parts.append(_kernels(kernels, f"{n} × {d} for {dtype}"))
    return "\n\n".join(part for part in parts if part)


def _reading() -> str:
    return (
        "Medians over fresh processes, which take turns. *Import* is what a package adds to "
        "`import torch`, with every file read once before. The *first call* is the time from "
        "imports done and inputs there to both gradients: building the module, loading native "
        "code, starting threads; the *second call* is the same again. *Compiler, nothing on disk*: "
        "the first call under `torch.compile` with static shapes (on a GPU also that of the Triton "
        "kernels) with an empty cache folder; *on disk*: that of the next process, with the folder "
        "that the first has left. Every first result is held against float64."
    )


SPREAD = "p20 to p80 (processes)"


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["–", "–"]
    spread = f"{rate(row['p20_ms'])} to {rate(row['p80_ms'])} ({row['repeats']})"
    return [rate(row["median_ms"]), spread]


def _imports(found: dict[str, Row]) -> str:
    heads = ["import", "ms", SPREAD, "× `import torch`"]
    lines, torch = [], found.get(TORCH)
    for name, title in titles().items():
        if name in found:
            ratio = found[name]["median_ms"] / torch["median_ms"] if torch else None
            shown = "" if ratio is None else f"{ratio:.3g}×"
            what = "`torch`" if name == TORCH else f"{title}: `{MODULES[name]}` beyond torch"
            lines.append([what, *_cells(found[name]), shown])
    return table(heads, lines)


def _import_verdict(found: dict[str, Row]) -> str:
    if not {TORCH, "ours"} <= found.keys():
        return ""
    share = found["ours"]["median_ms"] / found[TORCH]["median_ms"]
    slower = [
        titles()[name]
        for name, row in found.items()
        if name in MODULES and row["median_ms"] < found["ours"]["median_ms"]
    ]
    text = f"`import barlow_fast` adds {share:.1%} to `import torch`."
    return text + (f" It takes longer than: {', '.join(slower)}." if slower else "")


CALLS = {
    "first-call": "first call, ms",
    "second-call": "second call, ms",
    "compiler-cold": "compiler, nothing on disk, ms",
    "compiler-warm": "compiler, on disk, ms",
}


def _calls(found: dict[tuple[str, str], Row]) -> str:
    cases = [case for case in CALLS if any(case == key for key, _ in found)]
    heads = ["implementation"]
    for case in cases:
        heads += [CALLS[case], SPREAD]
    lines = []
    for name, title in titles().items():
        if any(peer == name for _, peer in found):
            cells = [_cells(found.get((case, name))) for case in cases]
            lines.append([title, *itertools.chain.from_iterable(cells)])
    return table(heads, lines)


def _call_verdict(found: dict[tuple[str, str], Row]) -> str:
    """Which first calls are faster than ours, if any."""
    ours = found.get(("first-call", "ours"))
    others = {p: r for (case, p), r in found.items() if case == "first-call" and p != "ours"}
    if ours is None or not others:
        return ""
    faster = [
        f"{titles()[peer]} ({row['median_ms'] / ours['median_ms']:.2f}× the time)"
        for peer, row in others.items()
        if row["median_ms"] < ours["median_ms"]
    ]
    if faster:
        return f"The first call of `barlow_fast` is slower than that of: {'; '.join(faster)}."
    return "The first call of `barlow_fast` is the fastest."


def _kernels(row: Row, shape: str) -> str:
    return (
        f"Triton compiles the {row['kernels']} kernels of one step at {shape} in "
        f"{rate(row['median_ms'])} ms ({rate(row['p20_ms'])} to {rate(row['p80_ms'])}, "
        f"{row['repeats']} processes), one after the other, with an empty cache and no GPU."
    )
