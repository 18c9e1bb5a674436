"""Peak memory of one forward and backward pass beyond its inputs and gradients: what is counted is
in `bench/peak_memory.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench import agreement, cli, devices, peers, results
from bench.devices import Device, DeviceLostError
from bench.inputs import CUDA_VARIANTS, Case, parse_shapes, parse_variants
from bench.markdown import SHAPE, Column, joined, reading, table_of, titled
from bench.peers import Peer
from bench.results import Row
from bench.session import Chosen, Given, Session
from bench.suites.loss import short_problem

SECTION = "Memory beyond inputs and gradients"
QUICK_SHAPES, QUICK_PEERS = "256x4096", "ours,official,gram-plain"


def command(given: Given, chosen: Chosen) -> int:
    """Measure the peak memory of a pass beyond inputs and gradients (Linux)."""
    with cli.reading():
        device = devices.choose(given.device)
        shapes, dtypes = device.grid.memory
        shapes = chosen.shapes or (QUICK_SHAPES if given.quick else shapes)
        variants = parse_variants(chosen.dtypes or dtypes, device.variants)
        names = chosen.peers or (QUICK_PEERS if given.quick else None)
        # Compiling changes the speed; the memory of compiled peers is measured by name.
        known = peers.choose(names, device.kind, compiled=False)
        reason = device.why_no_memory()
        if reason is not None:
            raise RuntimeError(reason)
    session = Session(device, given)
    measure(session, device.grid.cases(variants, parse_shapes(shapes)), known)
    return session.end()


def measure(session: Session, cases: Sequence[Case], known: Sequence[Peer]) -> None:
    """One row for each case and peer; a peer that is wrong, does not fit or raises has a
    `problem`."""
    todo = session.todo(cases, lambda case: results.group({"suite": "memory", **case.columns()}))
    usable = peers.available(known) if todo else []
    for case in session.in_time(todo, alike=lambda case: case.variant):
        session.keep([_row(session, case, peer) for peer in usable])


def _row(session: Session, case: Case, peer: Peer) -> Row:
    device, name = session.device, f"{case} {peer.name} memory"
    found: Row = {"problem": session.journal.lost.get(name)}
    if found["problem"] is None:
        with session.journal.entry(name):
            found = _figures(device, case, peer)
            try:
                device.check_alive()
            except DeviceLostError:
                session.journal.lose(name, found["problem"] or "the context broke")
                raise
    device.release()
    problem = found["problem"]
    if problem and "memory" not in problem and (peer.ours or device.judges_others):
        session.failures[name] = problem
    return {"suite": "memory", **device.row, **case.columns(), **peer.columns(), **found}


def _figures(device: Device, case: Case, peer: Peer) -> Row:
    try:
        with case.variant.products():
            wrong = agreement.check_small(peer, [case.variant], device.torch)
            if wrong is not None:
                return {"problem": wrong}
            return {"problem": None} | device.peak_memory(case.n, case.d, case.variant, peer)
    except Exception as error:  # whatever a peer raises, the others are still to be measured
        return {"problem": device.problem(error)}


def _inputs(row: Row) -> str:
    variant = CUDA_VARIANTS[row["dtype"]]
    size = 2 * row["n"] * row["d"] * variant.dtype.itemsize
    return f"{size / 2**20:.4g} MiB, {variant.title}"


def _extra(row: Row) -> str:
    problem = row.get("problem")
    return short_problem(problem) if problem else f"{row['extra_bytes'] / 2**20:.1f}"


def columns(kind: str) -> list[Column]:
    """Of the table of a kind of device."""
    return [
        replace(SHAPE, left=True),
        Column("inputs", _inputs, left=True),
        titled(peers.titles(kind)),
        Column("MiB extra", _extra),
        Column("multiple of the inputs", "extra_over_inputs", ".3g"),
    ]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    kind = "cuda" if any("device" in row for row in rows) else "cpu"
    rows = sorted(rows, key=lambda row: (row["n"], row["d"], row["dtype"]))
    return joined(reading(f"memory {kind}"), table_of(columns(kind), rows))
