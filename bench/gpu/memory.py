"""Peak memory of one forward and backward pass on a CUDA device beyond its inputs and gradients.

Counted is what torch's allocator hands out: the most that was allocated during the pass, less what
was allocated before it (both inputs, and workspaces that the libraries keep), less both gradients.
A pass of the same shape has run before, so nothing that is made once is counted. Peers that compile
are left out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import agreement, devices, results
from bench.devices import Cuda, DeviceLostError, brief
from bench.gpu import exits, loss, sources
from bench.gpu.journal import Journal, lost
from bench.inputs import CUDA_VARIANTS, parse_shapes, parse_variants, random_pair
from bench.optional import Console
from bench.peers import Peer, choose
from bench.results import Row

SHAPES = "256x8192,2048x8192,169343x256,4096x16384,512x65536"
DTYPES = "fp32,bf16-inputs"
RESERVE = 10.0  # seconds at the end of the time in which no case is begun


def measure(
    cases: Sequence[loss.Case],
    peers: Sequence[Peer],
    device: Cuda,
    out: Path | None,
    console: Console,
    limit: float | None = None,
    resume: bool = False,
    journal: Path | None = None,
    command: str | None = None,
) -> loss.Summary:
    """One row for each case and peer; a peer that does not fit or raises has a `problem`."""
    start = time.monotonic()
    origin = device.origin() | {"sources": sources.fingerprint(sources.MEASURED)}
    if command is not None:
        origin["command"] = command
    held = loss.finished(out, origin) if resume else set()
    todo = [case for case in cases if ("memory", *loss.key(case)[1:]) not in held]
    summary = loss.Summary(left=len(todo))
    usable = [peer for peer in loss.available(peers, console) if not peer.compiles]
    for case in todo:
        if limit is not None and time.monotonic() - start + RESERVE > limit:
            break
        rows = [
            _row(case, peer, device, origin, Journal(journal), lost(journal)) for peer in usable
        ]
        if out is not None and rows:
            results.merge(out, rows)
        for row in rows:
            console.print(line(row), markup=False)
        summary.measured, summary.left = summary.measured + 1, summary.left - 1
        summary.failures |= loss.failures_of_ours(rows)
    return summary


def _row(
    case: loss.Case,
    peer: Peer,
    device: Cuda,
    origin: Row,
    journal: Journal,
    known: dict[str, str],
) -> Row:
    key = f"{case} {peer.name} memory"
    found: Row = {"problem": known.get(key)}
    if key not in known:
        journal.start(key)
        found = _tried(case, peer, device)
        try:
            device.check_alive()
        except DeviceLostError:
            journal.lose(key, found["problem"] or "the context broke")
            raise
        journal.end(key)
    device.release()
    row = {"suite": "memory", "device": device.properties.name, "n": case.n, "d": case.d}
    row |= {"dtype": case.variant.name, "peer": peer.name, "source": peer.source}
    return row | found | {"provenance": origin}


def _tried(case: loss.Case, peer: Peer, device: Cuda) -> Row:
    try:
        with case.variant.products():
            return _figures(case, peer, device) | {"problem": None}
    except Exception as error:  # whatever a peer raises, the others are still to be measured
        return {"problem": brief(error)}


def _figures(case: loss.Case, peer: Peer, device: Cuda) -> Row:
    n, d, variant = case.n, case.d, case.variant
    pair = random_pair(n, d, variant.dtype, torch.Generator(device.torch).manual_seed(0))
    chosen = agreement.built(peer, n, d, variant, device.torch)
    agreement.run(chosen, pair, variant)
    device.release()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outcome = agreement.run(chosen, pair, variant)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    inputs = sum(z.nbytes for z in pair)
    gradients = sum(gradient.nbytes for gradient in outcome.gradients)
    extra = max(peak - gradients, 0)
    return {
        "input_bytes": inputs,
        "gradient_bytes": gradients,
        "peak_bytes": peak,
        "extra_bytes": extra,
        "extra_over_inputs": round(extra / inputs, 4),
    }


def line(row: Row) -> str:
    """A row in words."""
    what = f"{row['n']}x{row['d']} {row['dtype']} {row['peer']}"
    if row["problem"]:
        return f"{what}: not measured: {row['problem']}"
    return (
        f"{what}: {row['extra_bytes'] / 2**20:.1f} MiB beyond inputs and gradients = "
        f"{row['extra_over_inputs']:.3g} x the inputs"
    )


def cases_of(shapes: str | None, dtypes: str | None) -> list[loss.Case]:
    """Every shape in every dtype; ValueError for a bad name."""
    variants = parse_variants(dtypes or DTYPES, CUDA_VARIANTS)
    pairs = itertools.product(parse_shapes(shapes or SHAPES), variants)
    return [loss.Case(n, d, variant) for (n, d), variant in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """The part `memory` of `python -m bench.gpu`; an exit status of `bench.gpu.exits`."""
    options = argparse.ArgumentParser(prog="python -m bench.gpu.memory", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON Lines file of the rows")
    options.add_argument("--limit", type=float, help="seconds; what is left is for the next run")
    options.add_argument("--journal", type=Path, help="file that survives a crash")
    options.add_argument("--resume", action="store_true", help="leave out groups in the file")
    options.add_argument("--shapes", help=f"default: {SHAPES}")
    options.add_argument("--dtypes", help=f"default: {DTYPES}")
    options.add_argument("--peers", help="names; default: all that compile nothing")
    options.add_argument("--command", help="what the rows call the command")
    given = options.parse_args(arguments)
    try:
        cases, peers = cases_of(given.shapes, given.dtypes), choose(given.peers, "cuda")
        device = devices.choose("cuda")
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return exits.NO_DEVICE
    console = Console(highlight=False, soft_wrap=True)
    try:
        summary = measure(
            cases, peers, device, given.out, console, given.limit, given.resume, given.journal,
            given.command,
        )  # fmt: skip
    except DeviceLostError as error:
        print(f"the CUDA context is broken: {error}", flush=True)
        return exits.RESTART
    print(f"{summary.measured} groups measured, {summary.left} left")
    if summary.left:
        return exits.UNFINISHED
    return exits.FAILED if summary.failures else exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
