"""Whole steps of pretraining on a CUDA device: the part `train` of `python -m bench.gpu`.

Each run is a process of its own. They take turns; one that stands still gives its memory back, so
that each has the device to itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import devices, results
from bench.devices import Cpu, Cuda
from bench.gpu import exits, loss, sources
from bench.gpu.journal import Journal, lost
from bench.suites import train
from bench.training import cases
from bench.training.cases import Case

ROUNDS, SECONDS = 3, 9.0  # turns, and seconds in all, of each run
DEADLINE = 90.0  # for a process to start, kernels compiled; for a turn beyond its time


def measure(
    chosen: Sequence[Case],
    peers: Sequence[str],
    device: Cpu | Cuda,
    out: Path,
    limit: float | None = None,
    resume: bool = False,
    journal: Path | None = None,
    command: str | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> loss.Summary:
    """Rows of each case; a case for which the time is too short is left for the next run."""
    start = time.monotonic()
    origin = device.origin() | {"sources": sources.fingerprint(sources.TRAINED)}
    if command is not None:
        origin["command"] = command
    held = loss.finished(out, origin) if resume else set()
    known = lost(journal)
    todo = [case for case in chosen if key(case) not in held]
    summary = loss.Summary(left=len(todo))
    with train.image_files(todo) as folder:
        for case in todo:
            if case.name in known:
                summary.failures[case.name] = known[case.name]
                summary.left -= 1
                continue
            if limit is not None and time.monotonic() - start + case.seconds > limit:
                continue  # a quicker one may still fit
            log = Journal(journal)
            log.start(case.name)
            rows, failed = train.measure(
                case, peers, device, origin, folder, seconds, rounds, DEADLINE,
                moved=lambda name, case=case, log=log: log.end(f"{case.name} {name}"),
            )  # fmt: skip
            log.end(case.name)
            if rows:
                results.merge(out, rows)
            summary.measured, summary.left = summary.measured + 1, summary.left - 1
            summary.failures |= failed
    return summary


def key(case: Case) -> tuple:
    """The group of a case's rows."""
    return results.group(train.row(case, cases.OURS, [1.0], [], case.kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """The part `train` of `python -m bench.gpu`; an exit status of `bench.gpu.exits`."""
    options = argparse.ArgumentParser(prog="python -m bench.gpu.train", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON Lines file of the rows")
    options.add_argument("--limit", type=float, help="seconds; what is left is for the next run")
    options.add_argument("--journal", type=Path, help="file that survives a crash")
    options.add_argument("--resume", action="store_true", help="leave out cases in the file")
    options.add_argument("--cases", help="names, comma-separated; default: all")
    options.add_argument("--peers", help=f"of {', '.join(cases.PEERS)}; default: all")
    options.add_argument("--command", help="what the rows call the command")
    given = options.parse_args(arguments)
    try:
        chosen, peers = cases.parse(given.cases, "cuda"), cases.choose_peers(given.peers)
        device = devices.choose("cuda")
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return exits.NO_DEVICE
    reasons = {cases.unavailable(cases.OURS, case) for case in chosen}
    if None not in reasons:
        print("; ".join(sorted(filter(None, reasons))), flush=True)
        return exits.UNUSABLE
    summary = measure(
        chosen, peers, device, given.out, given.limit, given.resume, given.journal, given.command
    )
    print(f"{summary.measured} cases measured, {summary.left} left")
    if summary.left:
        return exits.UNFINISHED
    return exits.FAILED if summary.failures else exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
