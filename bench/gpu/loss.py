"""Time of one forward and backward pass on a CUDA device: as called, and replayed from a graph.

`python -m bench loss --device cuda` and the part `loss` of `python -m bench.gpu`. What matters most
comes first in the grid, every group is written when it is finished, and groups that the file holds
already, for the same sources on the same device, can be left out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import devices, results
from bench.devices import Cpu, Cuda, DeviceLostError, Peaks
from bench.floor import floor_seconds
from bench.gpu import exits, sources
from bench.gpu.group import Candidate, Case, Checks, Group
from bench.gpu.journal import Journal, lost
from bench.inputs import CUDA_VARIANTS, Variant, parse_shapes, parse_variants
from bench.optional import Console
from bench.peers import Peer, choose
from bench.results import Row, rounded
from bench.timing import Budget, percentile

SAMPLES = (64, 256, 1024, 2048, 4096)
DIMENSIONS = (512, 2048, 8192, 16384, 65536)
MANY_SAMPLES = (169343, 256)  # all nodes of a large graph at once: N far beyond D
FIRST_SHAPES = ((2048, 8192), (256, 8192), MANY_SAMPLES)
FIRST_VARIANTS = ("bf16-inputs", "bf16-autocast", "fp32")
COMPILED_SHAPES = ((2048, 8192), (256, 8192), (256, 2048), (4096, 512))
SECONDS = 0.12  # of calls, and again of replays, for each peer
COMPILED_VARIANTS = ("bf16-inputs", "fp32")
COMPILE_SECONDS = 60.0
LONGEST = {True: 60.0, False: 3.0}  # seconds of a group, with compiled peers and without; a guess
RESERVE = 5.0  # seconds at the end of the time in which no group is begun


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        budget: calls and replays of each peer.
        limit: seconds after which no group is begun; None for no limit.
        resume: leave out the groups that the file of results holds for the same sources and device.
        compiled_shapes: where peers that compile take part, in COMPILED_VARIANTS: each takes up to
            a minute, tuning included.
        compile_seconds: what each of them has for its first call.
    """

    budget: Budget = field(default_factory=lambda: Budget(SECONDS))
    limit: float | None = None
    resume: bool = False
    compiled_shapes: tuple[tuple[int, int], ...] = COMPILED_SHAPES
    compile_seconds: float = COMPILE_SECONDS

    def compiles(self, case: Case) -> bool:
        """Whether peers that compile take part in a case."""
        named = case.variant.name in COMPILED_VARIANTS
        return named and (case.n, case.d) in self.compiled_shapes


@dataclass
class Summary:
    """Groups measured and groups left for the next run; what of ours failed, with reasons."""

    measured: int = 0
    left: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def grid(variants: Sequence[Variant], shapes: list[tuple[int, int]] | None = None) -> list[Case]:
    """The cases, most important first; the given shapes in their own order instead of the grid."""
    if shapes is not None:
        return [Case(n, d, variant) for (n, d), variant in itertools.product(shapes, variants)]
    first = [v for name in FIRST_VARIANTS for v in variants if v.name == name]
    rest = [v for v in variants if v not in first]
    every = [MANY_SAMPLES, *itertools.product(SAMPLES, DIMENSIONS)]
    waves = (
        (FIRST_SHAPES, first),
        (COMPILED_SHAPES, first),
        (every, first),
        (FIRST_SHAPES, rest),
        (every, rest),
    )
    cases = [Case(*shape, v) for some, of in waves for v, shape in itertools.product(of, some)]
    return list(dict.fromkeys(cases))


def measure(
    cases: Sequence[Case],
    peers: Sequence[Peer],
    device: Cpu | Cuda,
    settings: Settings,
    out: Path | None,
    console: Console,
    journal: Path | None = None,
    command: str | None = None,
) -> Summary:
    """Measures the cases in order until the time is up; rows go to `out` group by group.

    A peer that is wrong, raises, or runs out of memory is a row with `problem`; one that cannot be
    captured has a `graph_problem`. DeviceLostError leaves the finished groups in `out`.
    """
    start = time.monotonic()
    origin = device.origin() | {"sources": sources.fingerprint(sources.MEASURED)}
    if command is not None:
        origin["command"] = command
    held = finished(out, origin) if settings.resume else set()
    todo = [case for case in cases if key(case) not in held]
    summary = Summary(left=len(todo))
    if not todo:
        return summary
    usable = available(peers, console)
    peaks = device.peaks()
    found = ", ".join(f"{name} {value}" for name, value in peaks.as_fields().items())
    console.print(f"peaks: {found}", markup=False)
    checks: Checks = {}
    limit = math.inf if settings.limit is None else settings.limit
    longest = dict(LONGEST)
    for case in todo:
        begun, compiled = time.monotonic(), settings.compiles(case)
        if begun - start + longest[compiled] + RESERVE > limit:
            continue  # a quicker one may still fit
        some = [peer for peer in usable if compiled or not peer.compiles]
        group = Group(
            case,
            device,
            settings.budget,
            settings.compile_seconds,
            checks,
            Journal(journal),
            lost(journal),
        )
        rows = [row(case, candidate, peaks, origin) for candidate in group.measure(some)]
        if out is not None and rows:
            results.merge(out, rows)
        console.print(line(case, rows), markup=False)
        device.release()
        summary.measured, summary.left = summary.measured + 1, summary.left - 1
        summary.failures |= failures_of_ours(rows)
        longest[compiled] = max(longest[compiled], time.monotonic() - begun)
    return summary


def finished(out: Path | None, origin: Row) -> set[tuple]:
    """The groups of `out` that were measured with the same sources, torch and device."""
    known = [] if out is None else results.read(out)
    keys = ("sources", "torch", "gpu")
    return {
        results.group(row)
        for row in known
        if all(row["provenance"].get(key) == origin.get(key) for key in keys)
    }


def failures_of_ours(rows: Sequence[Row]) -> dict[str, str]:
    """What went wrong with this repository's own losses, out of memory aside."""
    return {
        f"{row['n']}x{row['d']} {row['dtype']} {row['peer']}": row["problem"]
        for row in rows
        if row["peer"].startswith("ours") and row["problem"]
        if "memory" not in row["problem"]
    }


def available(peers: Sequence[Peer], console: Console) -> list[Peer]:
    """The peers that can run here; says why the others cannot."""
    reasons = {peer.name: peer.unavailable() for peer in peers}
    for name, reason in reasons.items():
        if reason is not None:
            console.print(f"{name} is left out: {reason}", markup=False)
    return [peer for peer in peers if reasons[peer.name] is None]


def row(case: Case, candidate: Candidate, peaks: Peaks, origin: Row) -> Row:
    """One line of results; times are None where there are none, with the reason beside them."""
    n, d, variant = case.n, case.d, case.variant
    itemsize = variant.dtype.itemsize
    floor = floor_seconds(n, d, itemsize, peaks.gemm(variant.gemm), peaks.copy)
    called = [] if candidate.problem else candidate.called
    replayed = [] if candidate.problem else candidate.replayed
    return {
        "suite": "loss",
        "device": origin.get("gpu", "cpu"),
        "n": n,
        "d": d,
        "dtype": variant.name,
        "peer": candidate.peer.name,
        "source": candidate.peer.source,
        "exact": candidate.peer.exact,
        "repeats": len(called),
        **_times("", called, floor),
        "graph_repeats": len(replayed),
        **_times("graph_", replayed, floor),
        "floor_ms": rounded(floor * 1e3),
        "problem": candidate.problem,
        "graph_problem": candidate.graph_problem or candidate.problem,
        "peaks": peaks.as_fields(),
        "provenance": origin,
    }


def _times(prefix: str, samples: list[float], floor: float) -> Row:
    names = [f"{prefix}p20_ms", f"{prefix}p80_ms"]
    names.insert(0, "graph_ms" if prefix else "median_ms")
    if not samples:
        return dict.fromkeys((*names, f"{prefix}fraction_of_floor"))
    median, *others = (percentile(samples, q) for q in (50, 20, 80))
    times = {k: rounded(v * 1e3) for k, v in zip(names, (median, *others), strict=True)}
    return times | {f"{prefix}fraction_of_floor": rounded(floor / median)}


def line(case: Case, rows: Sequence[Row]) -> str:
    """A group in one line: milliseconds called / replayed."""
    parts = [f"{case} floor {rows[0]['floor_ms']:.3g}"] if rows else [f"{case} no peers"]
    for each in rows:
        if each["problem"]:
            parts.append(f"{each['peer']}: {each['problem']}")
            continue
        replayed = each["graph_ms"]
        second = f"{replayed:.3g}" if replayed is not None else "–"
        parts.append(f"{each['peer']} {each['median_ms']:.3g} / {second}")
    return " | ".join(parts)


def key(case: Case) -> tuple:
    """What `results.group` calls the rows of a case."""
    return results.group({"suite": "loss", "n": case.n, "d": case.d, "dtype": case.variant.name})


def parser() -> argparse.ArgumentParser:
    """The options of `python -m bench.gpu.loss`, which needs neither typer nor rich."""
    options = argparse.ArgumentParser(prog="python -m bench.gpu.loss", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON Lines file of the rows")
    options.add_argument("--limit", type=float, help="seconds; what is left is for the next run")
    options.add_argument("--journal", type=Path, help="file that survives a crash")
    options.add_argument("--resume", action="store_true", help="leave out groups in the file")
    options.add_argument("--shapes", help="such as 256x8192,2048x8192; default: the grid")
    options.add_argument("--dtypes", default=",".join(CUDA_VARIANTS))
    options.add_argument("--peers", help="names, comma-separated, or 'all'; default: some")
    options.add_argument("--seconds", type=float, default=SECONDS, help="for each peer")
    options.add_argument(
        "--compiled-shapes", help="where torch.compile takes part; 'none': nowhere"
    )
    options.add_argument("--command", help="what the rows call the command")
    return options


def settings_of(
    seconds: float, repeats: int | None, limit: float | None, resume: bool, compiled: str | None
) -> Settings:
    """Settings from options; ValueError for a bad shape."""
    shapes = COMPILED_SHAPES
    if compiled is not None:
        shapes = () if compiled == "none" else tuple(parse_shapes(compiled))
    return Settings(Budget(seconds, repeats), limit, resume, shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an exit status of `bench.gpu.exits`."""
    options = parser().parse_args(arguments)
    try:
        variants = parse_variants(options.dtypes, CUDA_VARIANTS)
        cases = grid(variants, parse_shapes(options.shapes) if options.shapes else None)
        peers = choose(options.peers, "cuda")
        settings = settings_of(
            options.seconds, None, options.limit, options.resume, options.compiled_shapes
        )
        device = devices.choose("cuda")
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return exits.NO_DEVICE
    try:
        summary = measure(
            cases,
            peers,
            device,
            settings,
            options.out,
            Console(highlight=False, soft_wrap=True),
            options.journal,
            options.command,
        )
    except DeviceLostError as error:
        print(f"the CUDA context is broken: {error}", flush=True)
        return exits.RESTART
    print(f"{summary.measured} groups measured, {summary.left} left")
    if summary.left:
        return exits.UNFINISHED
    return exits.FAILED if failures_of_ours(_loss_rows(options.out)) else exits.COMPLETE


def _loss_rows(path: Path) -> list[Row]:
    return [each for each in results.read(path) if each["suite"] == "loss"]


if __name__ == "__main__":
    sys.exit(main())
