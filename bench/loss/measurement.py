"""Times peers in turns on a CPU: forward, and forward + backward, in the same calls."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import agreement, memory_limit, provenance, results
from bench.floor import Peaks, floor_seconds, measure_peaks
from bench.inputs import Pair, Variant, rotation
from bench.loss import grid
from bench.loss.prediction import Prediction
from bench.loss.tables import console_table
from bench.optional import Console
from bench.peers import Loss, Peer
from bench.results import Row, rounded
from bench.timing import Budget, interleave, percentile, warm_up

LONG = 1.0  # seconds; longer calls are not warmed up
VERY_LONG = 2.0  # seconds; such calls vary little, and are timed FEW times
FEW = 3
LONGEST = 15.0  # seconds of one call


@dataclass(frozen=True)
class Limits:
    """What is left out, with a reason in the results.

    Attributes:
        longest: seconds; a peer that takes longer at a shape is not tried at larger ones.
        minutes: no group is begun that would not be done by then, going by those before it;
            None for all.
        compiled_shapes: where peers that compile take part, in grid.COMPILED_VARIANTS; None for
            everywhere.
    """

    longest: float = LONGEST
    minutes: float | None = None
    compiled_shapes: tuple[grid.Shape, ...] | None = tuple(grid.COMPILED_SHAPES)

    def takes_part(self, peer: Peer, shape: grid.Shape, variant: Variant) -> bool:
        """Whether a peer is timed at a shape: those that compile only at some."""
        if not peer.compiles or self.compiled_shapes is None:
            return True
        return shape in self.compiled_shapes and variant.name in grid.COMPILED_VARIANTS


@dataclass
class Samples:
    """Seconds of the calls of one peer, of the whole pass and of its forward half."""

    both: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)


@dataclass
class Group:
    """What became of each peer at one shape and dtype."""

    samples: dict[Peer, Samples] = field(default_factory=dict)
    problems: dict[Peer, str] = field(default_factory=dict)


class TimedCall:
    """One forward and backward pass on the next inputs; remembers how long the forward half
    took."""

    def __init__(self, loss: Loss, turns: Iterator[Pair], variant: Variant) -> None:
        self.loss, self.turns, self.variant = loss, turns, variant
        self.forward: list[float] = []

    def __call__(self) -> float:
        return self.on(next(self.turns))[0]

    def on(self, pair: Pair) -> tuple[float, agreement.Outcome]:
        """Seconds of both halves, and the result, which is given back after the clock has
        stopped."""
        start = time.perf_counter()
        with self.variant.context():
            value = self.loss(*pair)
        middle = time.perf_counter()
        gradients = torch.autograd.grad(value, pair)
        end = time.perf_counter()
        self.forward.append(middle - start)
        return end - start, agreement.Outcome(value.detach(), gradients)


class TooLarge:
    """Shapes at which a peer ran out of memory or patience: larger ones are not tried."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[tuple[grid.Shape, str]]] = {}

    def add(self, peer: Peer, variant: Variant, shape: grid.Shape, reason: str) -> None:
        self._found.setdefault((peer.name, variant.name), []).append((shape, reason))

    def reason(self, peer: Peer, variant: Variant, shape: grid.Shape) -> str | None:
        """None, or why a peer is not tried at a shape."""
        for (n, d), reason in self._found.get((peer.name, variant.name), ()):
            if shape[0] >= n and shape[1] >= d:
                return f"not tried, as at {n} x {d}: {reason}"
        return None


def measure(
    shapes: list[grid.Shape],
    variants: list[Variant],
    peers: list[Peer],
    budget: Budget,
    out: Path | None,
    console: Console,
    limits: Limits | None = None,
    more_shapes: Sequence[grid.Shape] = (),
) -> dict[str, str]:
    """Runs the suite: all `shapes` in all `variants`, then `more_shapes` in the first of them.

    Returns the peers that failed a check, with reasons; they are not timed.
    """
    limits = limits or Limits(compiled_shapes=None)
    begun = time.perf_counter()
    origin = provenance.collect()
    console.print(
        f"{origin['cpu']}, {origin['cores']} cores, torch {origin['torch']}, "
        f"kernels {origin['instruction_set']}, commit {origin['commit']}"
    )
    cases = list(itertools.product(variants, shapes))
    cases += [(variants[0], shape) for shape in more_shapes if shape not in shapes]
    peers = [
        peer
        for peer in available(peers, console)
        if any(limits.takes_part(peer, shape, variant) for variant, shape in cases)
    ]
    failures: dict[str, str] = {}
    if any(peer.compiles for peer in peers) and limits.compiled_shapes is not None:
        where = ", ".join(f"{n}x{d}" for n, d in limits.compiled_shapes)
        console.print(f"compiled peers take part at {where} in {grid.COMPILED_VARIANTS[0]}")
    for peer in peers:
        problem = agreement.check_small(peer, variants)
        if problem is not None:
            report_failure(console, failures, peer, problem)
    peaks = measure_peaks()
    console.print(
        f"peaks: fp32 GEMM {peaks.gemm_fp32:.0f} GFLOP/s, bf16 GEMM {peaks.gemm_bf16:.0f} GFLOP/s, "
        f"copy {peaks.copy:.1f} GB/s"
    )
    too_large, left = TooLarge(), []
    prediction = Prediction(lambda seconds: calls_of(seconds, budget))
    for variant, (n, d) in cases:
        sound = [
            peer
            for peer in peers
            if peer.name not in failures and limits.takes_part(peer, (n, d), variant)
        ]
        if limits.minutes is not None:
            tried = [peer for peer in sound if not too_large.reason(peer, variant, (n, d))]
            spent = time.perf_counter() - begun
            if spent + prediction.seconds(tried, (n, d)) > 60 * limits.minutes:
                left.append(f"{n}x{d} {variant.name}")
                continue
        with memory_limit.within():
            group = measure_group(
                n, d, variant, sound, budget, origin, console, failures, limits.longest, too_large
            )
        prediction.add(
            (n, d),
            {peer: percentile(samples.both, 50) for peer, samples in group.samples.items()},
        )
        rows = rows_of(n, d, variant, group, peaks, origin)
        if rows:
            console.print(console_table(rows))
            for row in rows:
                if "problem" in row:
                    console.print(f"{row['peer']}: {row['problem']}", markup=False)
            if out is not None:
                results.merge(out, rows)
    if left:
        console.print(f"left out, as beyond {limits.minutes:g} minutes: {', '.join(left)}")
    if out is not None and out.exists():
        console.print(f"rows are in {out}; `python -m bench report` makes the tables")
    return failures


def available(peers: list[Peer], console: Console) -> list[Peer]:
    """The peers that can run here; says why the others cannot."""
    usable = []
    for peer in peers:
        reason = peer.unavailable()
        if reason is None:
            usable.append(peer)
        else:
            console.print(f"[yellow]{peer.name} is left out: {reason}[/]")
    return usable


def report_failure(console: Console, failures: dict[str, str], peer: Peer, problem: str) -> None:
    failures[peer.name] = problem
    console.print(f"[bold red]{peer.name} fails the check and is not timed: {problem}[/]")


def measure_group(
    n: int,
    d: int,
    variant: Variant,
    peers: list[Peer],
    budget: Budget,
    origin: Row,
    console: Console,
    failures: dict[str, str],
    longest: float = LONGEST,
    too_large: TooLarge | None = None,
) -> Group:
    """Times all peers at one shape and dtype; adds those that are wrong to `failures`."""
    too_large = too_large or TooLarge()
    pairs = rotation(n, d, variant.dtype, origin["last_level_cache_bytes"])
    turns = itertools.cycle(pairs)
    truths = agreement.Truths(pairs[0])
    group = Group()
    actions: dict[str, Callable[[], float]] = {}
    counts: dict[str, int] = {}
    ready: dict[str, tuple[Peer, TimedCall, list[float]]] = {}
    for peer in peers:
        reason = too_large.reason(peer, variant, (n, d))
        if reason is not None:
            group.problems[peer] = reason
            continue
        try:
            action = TimedCall(peer.build(n, d, variant.dtype), turns, variant)
            estimate, outcome = action.on(pairs[0])
            problem = agreement.check_timed(outcome, truths.of(peer.mathematics), variant)
            del outcome
        except Exception as error:  # whatever a peer raises, the others are still to be timed
            problem = f"raises {type(error).__name__}: {error}"
            if memory_limit.is_memory_error(error):
                first = (str(error).splitlines() or [""])[0]
                group.problems[peer] = f"does not fit into memory: {first}"
                too_large.add(peer, variant, (n, d), group.problems[peer])
                gc.collect()
                continue
        if problem is not None:
            report_failure(console, failures, peer, f"{n} x {d} {problem}")
            continue
        if estimate > longest and not peer.ours:
            too_large.add(peer, variant, (n, d), f"one call took {estimate:.0f} s")
        if peer.compiles or estimate < LONG:
            estimate = warm_up(action, LONG)
            action.forward.clear()
        # What takes longer than LONG gains nothing from warming up: that is its first sample.
        earlier = [estimate] if estimate >= LONG and action.forward else []
        count = calls_of(estimate, budget)
        ready[peer.name] = peer, action, earlier
        actions[peer.name], counts[peer.name] = action, max(count - len(earlier), 1)
    if not actions:
        return group
    gc.collect()
    gc.disable()
    try:
        samples = interleave(actions, counts)
    finally:
        gc.enable()
    for name, (peer, action, earlier) in ready.items():
        group.samples[peer] = Samples(earlier + samples[name], action.forward)
    return group


def calls_of(seconds: float, budget: Budget) -> int:
    """How often a call of so many seconds is timed."""
    if seconds >= VERY_LONG and budget.repeats is None:
        return FEW
    return budget.count(seconds)


def rows_of(n: int, d: int, variant: Variant, group: Group, peaks: Peaks, origin: Row) -> list[Row]:
    """A row for each peer; `problem` instead of times for one that was left out."""
    floor = floor_seconds(n, d, variant.dtype.itemsize, peaks.gemm(variant.gemm), peaks.copy)
    rows = []
    for peer in (*group.samples, *group.problems):
        row = {
            "suite": "loss",
            "n": n,
            "d": d,
            "dtype": variant.name,
            "peer": peer.name,
            "source": peer.source,
            "exact": peer.exact,
        }
        if peer in group.problems:
            row["problem"] = group.problems[peer]
        else:
            row |= _times(group.samples[peer], floor)
        rows.append(
            row
            | {"floor_ms": rounded(floor * 1e3), "peaks": peaks.as_fields(), "provenance": origin}
        )
    return rows


def _times(samples: Samples, floor: float) -> Row:
    median, p20, p80 = (percentile(samples.both, q) for q in (50, 20, 80))
    forward, forward_p20, forward_p80 = (percentile(samples.forward, q) for q in (50, 20, 80))
    return {
        "repeats": len(samples.both),
        "median_ms": rounded(median * 1e3),
        "p20_ms": rounded(p20 * 1e3),
        "p80_ms": rounded(p80 * 1e3),
        "forward_ms": rounded(forward * 1e3),
        "forward_p20_ms": rounded(forward_p20 * 1e3),
        "forward_p80_ms": rounded(forward_p80 * 1e3),
        "fraction_of_floor": rounded(floor / median),
    }
