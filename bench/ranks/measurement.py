"""What each rank does: check, then measure in turns.

All ranks take the same decisions, as these depend only on what all know: the slowest
rank's seconds, and any rank's problem.
"""

from __future__ import annotations

import functools
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from barlow_fast.distributed import count_traffic
from barlow_fast.files import write_whole
from bench import agreement
from bench.inputs import FP64, Pair, Variant, random_pair
from bench.peers import Loss
from bench.ranks import implementations, official
from bench.ranks.implementations import Implementation
from bench.ranks.processes import LOOPBACK
from bench.results import Row
from bench.timing import Budget, columns, interleave

COUNTER = LOOPBACK / "statistics" / "tx_bytes"
LONG = 5.0  # seconds; what takes longer gains nothing from warming up


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        data: file with the embeddings of all ranks and the true results (`prepare`).
        results: file that rank 0 writes.
    """

    n: int
    d: int
    variants: tuple[Variant, ...]
    peers: tuple[str, ...]
    budget: Budget
    data: Path
    results: Path


def prepare(n: int, d: int, path: Path) -> None:
    """Writes embeddings of all ranks, with the true loss and gradients of them together."""
    z_a, z_b = random_pair(n, d, torch.float32, torch.Generator().manual_seed(0))
    true = agreement.truth((z_a, z_b))
    grad_a, grad_b = (gradient.float() for gradient in true.gradients)
    named = {"z_a": z_a.detach(), "z_b": z_b.detach(), "loss": true.loss}
    torch.save(named | {"grad_a": grad_a, "grad_b": grad_b}, path)


def loopback_bytes() -> int | None:
    """Bytes that the system has sent over the loopback; None where it has no such count."""
    try:
        return int(COUNTER.read_text())
    except (OSError, ValueError):
        return None


class Group:
    """This rank's view of all of them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def slowest(self, seconds: float) -> float:
        """The largest of all ranks' seconds."""
        value = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return value.item()

    def mean(self, value: float) -> float:
        """The mean over ranks."""
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.size

    def problem(self, own: str | None) -> str | None:
        """What is wrong on the first rank on which something is."""
        all_ranks: list[str | None] = [None] * self.size
        dist.all_gather_object(all_ranks, own)
        found = [f"rank {rank}: {text}" for rank, text in enumerate(all_ranks) if text]
        return found[0] if found else None


def measure(task: Task) -> None:
    """The entry of each process; rank 0 writes {'rows': [...], 'failures': {...}} after each
    variant, so that what is finished survives a later failure."""
    group = Group()
    known = implementations.discover()
    peers = [known[name] for name in task.peers]
    failures: dict[str, str] = {}
    for peer in peers:
        problem = check_small(peer, task.variants, group)
        if problem is not None:
            failures[peer.name] = problem
    timed: list[Row] = []
    for variant in task.variants:
        usable = [p for p in peers if p.name not in failures and variant.name in p.dtypes]
        timed += _measure_group(task, variant, usable, group, failures)
        if group.rank == 0:
            write_whole(task.results, json.dumps({"rows": timed, "failures": failures}))


def bound(peer: Implementation, rows: list[int]) -> Loss:
    """The loss for ranks of so many rows, as a function of this rank's embeddings."""
    return functools.partial(_call, peer, rows)


def _call(peer: Implementation, rows: list[int], z_a, z_b):
    return peer.loss(z_a, z_b, rows)


def check_small(peer: Implementation, variants: tuple[Variant, ...], group: Group) -> str | None:
    """None if the implementation agrees with the reference in float64 and in `variants` on small
    shapes, on all ranks, else what it got wrong."""
    for n, d in agreement.SMALL_SHAPES:
        for variant in (FP64, *(v for v in variants if v.name in peer.dtypes)):
            whole = random_pair(n, d, variant.dtype, torch.Generator().manual_seed(n))
            true = agreement.run(agreement.reference_loss, agreement.in_double(whole), FP64)
            plain = agreement.errors(agreement.run(agreement.reference_loss, whole, variant), true)
            noise = agreement.NOISE[variant.name]
            allowed = [agreement.SLACK * error + noise for error in (plain.loss, plain.gradient)]
            rows = implementations.split(n, group.size)
            pair = _own(whole, rows, group)
            outcome = _scaled(agreement.run(bound(peer, rows), pair, variant), peer, group)
            found = agreement.errors(outcome, _own_truth(true, rows, group))
            own = None
            if not found.within(*allowed):
                text = agreement.describe(variant.name, outcome, found, *allowed)
                own = f"{n} x {d} {text}"
            problem = group.problem(own)
            if problem is not None:
                return problem
    return None


def _own(whole: Pair, rows: list[int], group: Group) -> Pair:
    z_a, z_b = (implementations.own_rows(z.detach(), rows, group.rank) for z in whole)
    return z_a, z_b


def _own_truth(true: agreement.Outcome, rows: list[int], group: Group) -> agreement.Outcome:
    gradients = (implementations.own_rows(g, rows, group.rank).detach() for g in true.gradients)
    return agreement.Outcome(true.loss, tuple(gradients))


def _scaled(outcome: agreement.Outcome, peer: Implementation, group: Group) -> agreement.Outcome:
    """Gradients that are meant to be averaged over ranks are W times the derivative."""
    return replace(outcome, scale=outcome.scale * group.size) if peer.exact else outcome


@dataclass
class Samples:
    """What was measured of one implementation."""

    action: Callable[[], float]
    wire: list[int]
    counted: float = 0.0
    by_step: dict[str, int] | None = None
    first: tuple[float, ...] = ()


def _measure_group(
    task: Task,
    variant: Variant,
    peers: list[Implementation],
    group: Group,
    failures: dict[str, str],
) -> list[Row]:
    """A row for each implementation that is right."""
    rows = implementations.split(task.n, group.size)
    data = torch.load(task.data, weights_only=True, mmap=True)
    pair = _own((data["z_a"], data["z_b"]), rows, group)
    whole_truth = agreement.Outcome(data["loss"], (data["grad_a"], data["grad_b"]))
    true = _own_truth(whole_truth, rows, group)
    samples: dict[str, Samples] = {}
    counts: dict[str, int] = {}
    for peer in peers:
        loss, wire, outcomes = bound(peer, rows), [], []
        with count_traffic() as traffic:
            estimate = _step(loss, pair, variant, group, wire, outcomes)
        outcome = _scaled(outcomes.pop(), peer, group)
        problem = group.problem(agreement.check_timed(outcome, true, variant))
        del outcome
        if problem is not None:
            failures[peer.name] = f"{task.n} x {task.d} {problem}"
            continue
        found = Samples(functools.partial(_step, loss, pair, variant, group, wire), wire)
        if peer.layout is None:
            found.counted = official.wire_bytes(task.d, group.size, variant.dtype.itemsize)
        else:
            found.counted = group.mean(traffic.sent)
            found.by_step = dict(traffic.by_step)
        if estimate >= LONG:
            found.first = (estimate,)
        else:
            estimate = found.action()  # warm
        samples[peer.name] = found
        counts[peer.name] = max(task.budget.count(estimate) - len(found.first), 0)
    if not samples:
        return []
    gc.collect()
    gc.disable()
    try:
        later = interleave({name: each.action for name, each in samples.items()}, counts)
    finally:
        gc.enable()
    automatic = implementations.automatic(rows, task.d, variant)
    timed = []
    for peer in peers:
        if peer.name in samples:
            found = samples[peer.name]
            seconds = [*found.first, *later[peer.name]]
            timed.append(_row(task, variant, peer, found, seconds, group, automatic))
    return timed


def _step(
    loss: Loss,
    pair: Pair,
    variant: Variant,
    group: Group,
    wire: list[int],
    outcomes: list[agreement.Outcome] | None = None,
) -> float:
    """Seconds of one forward and backward pass of the slowest rank; appends what the system sent
    meanwhile to `wire`, and this rank's results to `outcomes`."""
    dist.barrier()
    before = loopback_bytes()
    dist.barrier()  # no rank begins before all have read
    start = time.perf_counter()
    outcome = agreement.run(loss, pair, variant)
    seconds = time.perf_counter() - start
    dist.barrier()
    after = loopback_bytes()
    if before is not None and after is not None:
        wire.append(after - before)
    if outcomes is not None:
        outcomes.append(outcome)
    return group.slowest(seconds)


def _row(
    task: Task,
    variant: Variant,
    peer: Implementation,
    found: Samples,
    seconds: list[float],
    group: Group,
    automatic: str,
) -> Row:
    # Other programs' traffic only ever adds.
    wire = round(min(found.wire) / group.size) if found.wire else None
    return {
        "suite": "distributed",
        "n": task.n,
        "d": task.d,
        "dtype": variant.name,
        "ranks": group.size,
        "threads": torch.get_num_threads(),
        "peer": peer.name,
        "layout": peer.layout,
        "auto": peer.layout == automatic,
        "source": peer.source,
        "repeats": len(seconds),
        **columns(seconds, "s"),
        "counted_bytes": round(found.counted),
        "counted_by_step": found.by_step,
        "wire_bytes": wire,
    }
