"""Peak memory of one forward and backward pass beyond its inputs and gradients: what is counted is
in `bench/peak_memory.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from bench import agreement, cli, devices, peers, results, sources
from bench.cli import Option
from bench.devices import Device, DeviceLostError
from bench.grids import Case
from bench.inputs import CUDA_VARIANTS, parse_shapes, parse_variants
from bench.loss.tables import short_problem
from bench.markdown import table
from bench.peers import Peer
from bench.results import Row
from bench.session import Given, Session

SECTION = "Memory beyond inputs and gradients"
QUICK_SHAPES, QUICK_PEERS = "256x4096", "ours,official,gram-plain"
SECONDS = 10.0  # that a case takes


def command(
    given: Given,
    shapes: Annotated[str | None, Option("Default: 256x8192,512x65536, and more on cuda.")] = None,
    dtypes: Annotated[
        str | None,
        Option(
            "Of fp32, bf16-autocast, bf16-inputs; bf16 stands for both. On cuda also tf32 and "
            "fp16-inputs. Default: fp32; on cuda also bf16-inputs."
        ),
    ] = None,
    names: Annotated[
        str | None,
        Option("Comma-separated, or 'all'. Default: all that do not compile.", name="--peers"),
    ] = None,
) -> int:
    """Measure the peak memory of a pass beyond inputs and gradients (Linux)."""
    with cli.reading():
        device = devices.choose(given.device)
        known_shapes, known_dtypes = device.grid.memory
        shapes = shapes or (QUICK_SHAPES if given.quick else known_shapes)
        variants = parse_variants(dtypes or known_dtypes, device.variants)
        cases = device.grid.cases(variants, parse_shapes(shapes))
        chosen = peers.choose(names or (QUICK_PEERS if given.quick else None), device.kind)
        reason = device.why_no_memory()
        if reason is not None:
            raise RuntimeError(reason)
    if names is None:  # compiling changes the speed; its memory is compiled peers' own, by name
        chosen = [peer for peer in chosen if not peer.compiles]
    session = Session(device, given, sources.MEASURED)
    measure(session, cases, chosen)
    return session.end()


def measure(session: Session, cases: Sequence[Case], known: Sequence[Peer]) -> None:
    """One row for each case and peer; a peer that is wrong, does not fit or raises has a
    `problem`."""
    todo = session.todo(cases, key)
    usable = peers.available(known) if todo else []
    for case in session.in_time(todo, lambda case: SECONDS):
        session.keep([_row(session, case, peer) for peer in usable], line_of)


def key(case: Case) -> tuple:
    """The group of a case's rows."""
    row = {"suite": "memory", "n": case.n, "d": case.d, "dtype": case.variant.name}
    return results.group(row)


def _row(session: Session, case: Case, peer: Peer) -> Row:
    device, name = session.device, f"{case} {peer.name} memory"
    found: Row = {"problem": session.lost.get(name)}
    if found["problem"] is None:
        session.journal.start(name)
        found = _figures(device, case, peer)
        try:
            device.check_alive()
        except DeviceLostError:
            session.journal.lose(name, found["problem"] or "the context broke")
            raise
        session.journal.end(name)
    device.release()
    problem = found["problem"]
    if problem and "memory" not in problem and (peer.ours or device.judges_others):
        session.failures[name] = problem
    row = {"suite": "memory", **device.row(), "n": case.n, "d": case.d}
    return row | {"dtype": case.variant.name, "peer": peer.name, "source": peer.source} | found


def _figures(device: Device, case: Case, peer: Peer) -> Row:
    try:
        with case.variant.products():
            wrong = agreement.check_small(peer, [case.variant], device.torch)
            if wrong is not None:
                return {"problem": wrong}
            return {"problem": None} | device.peak_memory(case.n, case.d, case.variant, peer)
    except Exception as error:  # whatever a peer raises, the others are still to be measured
        return {"problem": device.problem(error)}


def line_of(row: Row) -> str:
    """A row in words."""
    what = f"{row['n']}x{row['d']} {row['dtype']} {row['peer']}"
    if row["problem"]:
        return f"{what}: not measured: {row['problem']}"
    return (
        f"{what}: {row['extra_bytes'] / 2**20:.1f} MiB beyond inputs and gradients = "
        f"{row['extra_over_inputs']:.3g} x the inputs"
    )


READING = {
    "cpu": "Extra: the highest resident memory during one forward and backward pass, less what was "
    "resident before it (both inputs included) and less both gradients; each in a process of "
    "its own. Temporaries, saved matrices and packing buffers all count. The pool of reused "
    "outputs is off here; in normal use it keeps outputs of past steps for the next one. "
    "*No memory*: more than most of what the machine had free.",
    "cuda": "Extra: the most that torch's allocator had handed out during one forward and backward "
    "pass, less what it had before it (both inputs included) and less both gradients. "
    "Temporaries and saved matrices count; workspaces that the GEMM library keeps for good do not.",
}


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    kind = "cuda" if any("device" in row for row in rows) else "cpu"
    titles = {name: peer.title for name, peer in peers.discover(kind).items()}
    lines = []
    for row in sorted(rows, key=lambda row: (row["n"], row["d"], row["dtype"])):
        variant = CUDA_VARIANTS[row["dtype"]]
        size = 2 * row["n"] * row["d"] * variant.dtype.itemsize
        cells = [f"{row['n']} × {row['d']}", f"{size / 2**20:.4g} MiB, {variant.title}"]
        cells.append(titles.get(row["peer"], row["peer"]))
        if row.get("problem"):
            cells += [short_problem(row["problem"]), "–"]
        else:
            cells += [f"{row['extra_bytes'] / 2**20:.1f}", f"{row['extra_over_inputs']:.3g}"]
        lines.append(cells)
    heads = ["N × D", "inputs", "implementation", "MiB extra", "multiple of the inputs"]
    return READING[kind] + "\n\n" + table(heads, lines, left=3)
