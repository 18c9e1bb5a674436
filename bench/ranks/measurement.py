"""Ranks as processes of this machine: what each does, check, then measure in turns.

They meet on 127.0.0.1 and end in time, whatever happens.

All ranks take the same decisions, as these depend only on what all know: the slowest
rank's seconds, and any rank's problem.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from barlow_fast.data.loader import cores_of_rank
from barlow_fast.distributed import count_traffic
from barlow_fast.files import write_whole
from bench import agreement, lifetime, peak_memory
from bench.agreement import Outcome
from bench.inputs import FP64, Pair, Variant, random_pair
from bench.peers import Loss
from bench.peers.peer import PAPER
from bench.ranks import implementations
from bench.ranks.implementations import Implementation
from bench.results import Row
from bench.timing import Budget, columns, interleave, without_collections

HOST = "127.0.0.1"
LOOPBACK = Path("/sys/class/net/lo")
COUNTER = LOOPBACK / "statistics" / "tx_bytes"
POLL = 0.5  # seconds
LONG = 5.0  # seconds; what takes longer gains nothing from warming up


def threads_of_each(ranks: int) -> int:
    """Equal shares of the cores, at least one thread each."""
    return max(cores_of_rank() // ranks, 1)


def run(entry: Callable[..., None], ranks: int, arguments: tuple[Any, ...], seconds: float) -> None:
    """Calls `entry(*arguments)` in `ranks` new processes that form torch's default process group.

    Raises:
        TimeoutError: they did not end within `seconds`.
        RuntimeError: one of them raised, with its traceback, or died.
    """
    end = time.monotonic() + seconds
    # This process keeps the store, so the port is free when it is given out and stays taken.
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    context = mp.start_processes(
        _rank, (entry, ranks, store.port, seconds, arguments), ranks, join=False, daemon=True,
        start_method="spawn",
    )  # fmt: skip
    try:
        while not context.join(timeout=POLL):
            if time.monotonic() > end:
                raise TimeoutError(f"{ranks} ranks did not end within {seconds:.0f} s")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise RuntimeError(str(error).strip()) from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _rank(
    rank: int,
    entry: Callable[..., None],
    ranks: int,
    port: int,
    seconds: float,
    arguments: tuple[Any, ...],
) -> None:
    lifetime.end_with_parent()
    # And should an exchange never end:
    faulthandler.dump_traceback_later(seconds, exit=True)
    torch.set_num_threads(threads_of_each(ranks))
    if LOOPBACK.exists():
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK.name
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(HOST, port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        with peak_memory.within(share=0.85 / ranks):
            entry(*arguments)
        dist.barrier()
    finally:
        with contextlib.suppress(RuntimeError):  # of what has failed already
            dist.destroy_process_group()


@dataclass(frozen=True)
class Task:
    """What to measure: a shape on so many ranks; `folder` is for what they read and write."""

    n: int
    d: int
    ranks: int
    variants: tuple[Variant, ...]
    peers: tuple[Implementation, ...]
    budget: Budget
    folder: Path

    def __str__(self) -> str:
        return f"{self.n} x {self.d} on {self.ranks} ranks"

    @property
    def data(self) -> Path:
        """The file with the embeddings of all ranks and the true results."""
        return self.folder / f"{self.n}x{self.d}.pt"

    @property
    def results(self) -> Path:
        """The file that rank 0 writes."""
        return self.folder / "results.json"

    def prepare(self) -> None:
        """Writes embeddings, with the true loss and gradients of all of them together, unless they
        are there."""
        if self.data.exists():
            return
        pair = random_pair(self.n, self.d, torch.float32, torch.Generator().manual_seed(0))
        true = agreement.truth(pair)
        gradients = [gradient.float() for gradient in true.gradients]
        views = [z.detach() for z in pair]
        torch.save({"views": views, "loss": true.loss, "gradients": gradients}, self.data)

    def row(self, variant: Variant, peer: Implementation) -> Row:
        """What its rows begin with."""
        row = {"suite": "distributed", "n": self.n, "d": self.d, "dtype": variant.name}
        row |= {"ranks": self.ranks, "peer": peer.name, "layout": peer.layout}
        return row | {"source": peer.source}


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

    def own(self, whole: Iterable[torch.Tensor]) -> Pair:
        """Copies of this rank's samples of two tensors, gradients wanted."""
        z_a, z_b = (z.detach().tensor_split(self.size)[self.rank].clone() for z in whole)
        return z_a.requires_grad_(), z_b.requires_grad_()

    def wrong(
        self, outcome: Outcome, true: Outcome, peer: Implementation, variant: Variant,
        allowed: agreement.Errors,
    ) -> str | None:  # fmt: skip
        """What is wrong with this rank's outcome, or with that of the first rank on which something
        is; `true` is the outcome of all ranks together."""
        if peer.exact:  # gradients that are meant to be averaged over ranks: W times the derivative
            outcome = replace(outcome, scale=outcome.scale * self.size)
        true = Outcome(true.loss, tuple(z.detach() for z in self.own(true.gradients)))
        all_ranks: list[str | None] = [None] * self.size
        dist.all_gather_object(all_ranks, agreement.problem(outcome, true, variant, allowed))
        found = (f"rank {rank}: {text}" for rank, text in enumerate(all_ranks) if text)
        return next(found, None)


def measure(task: Task) -> None:
    """The entry of each process; rank 0 writes {'rows': [...], 'failures': {...}} after each
    variant, so that what is finished survives a later failure."""
    group = Group()
    checks = {peer.name: check_small(peer, task.variants, group) for peer in task.peers}
    failures = {name: problem for name, problem in checks.items() if problem is not None}
    rows: list[Row] = []
    for variant in task.variants:
        some = [p for p in task.peers if p.name not in failures and variant.name in p.dtypes]
        rows += _measured(task, variant, some, group, failures)
        if group.rank == 0:
            write_whole(task.results, json.dumps({"rows": rows, "failures": failures}))


def check_small(peer: Implementation, variants: Iterable[Variant], group: Group) -> str | None:
    """None if the implementation agrees with the reference in float64 and in `variants` on small
    shapes, on all ranks, else what it got wrong."""
    some = [FP64, *(variant for variant in variants if variant.name in peer.dtypes)]
    for whole, variant, true, allowed in agreement.small_cases(PAPER, some):
        n, d = whole[0].shape
        outcome = agreement.run(functools.partial(peer.loss, n=n), group.own(whole), variant)
        problem = group.wrong(outcome, true, peer, variant, allowed)
        if problem is not None:
            return f"{n} x {d} {problem}"
    return None


@dataclass
class Timed:
    """One implementation on this rank: its loss, and what was measured of it."""

    peer: Implementation
    loss: Loss
    pair: Pair
    variant: Variant
    group: Group
    wire: list[int] = field(default_factory=list)
    first: tuple[float, ...] = ()
    traffic: Any = None

    def step(self) -> tuple[float, Outcome]:
        """(seconds of the slowest rank, this rank's results) of one forward and backward pass; what
        the system sent meanwhile is appended to `wire`."""
        dist.barrier()
        before = loopback_bytes()
        dist.barrier()  # no rank begins before all have read
        start = time.perf_counter()
        outcome = agreement.run(self.loss, self.pair, self.variant)
        seconds = time.perf_counter() - start
        dist.barrier()
        after = loopback_bytes()
        if before is not None and after is not None:
            self.wire.append(after - before)
        return self.group.slowest(seconds), outcome

    def seconds(self) -> float:
        """Of one pass of the slowest rank."""
        return self.step()[0]

    def bytes(self, d: int) -> Row:
        """The columns of bytes that a rank sends; of the all-reduce by a formula."""
        if self.peer.layout is None:
            itemsize = self.variant.dtype.itemsize
            counted, by_step = implementations.wire_bytes(d, self.group.size, itemsize), None
        else:
            counted, by_step = self.group.mean(self.traffic.sent), dict(self.traffic.by_step)
        # Other programs' traffic only ever adds.
        wire = round(min(self.wire) / self.group.size) if self.wire else None
        return {"counted_bytes": round(counted), "counted_by_step": by_step, "wire_bytes": wire}


def _measured(
    task: Task,
    variant: Variant,
    peers: list[Implementation],
    group: Group,
    failures: dict[str, str],
) -> list[Row]:
    """A row for each implementation that is right; the others are added to `failures`."""
    data = torch.load(task.data, weights_only=True, mmap=True)
    pair, true = group.own(data["views"]), Outcome(data["loss"], tuple(data["gradients"]))
    allowed = agreement.Errors(variant.tolerance, variant.tolerance)
    timed, counts = {}, {}
    for peer in peers:
        each = Timed(peer, functools.partial(peer.loss, n=task.n), pair, variant, group)
        with count_traffic() as each.traffic:
            estimate, outcome = each.step()
        problem = group.wrong(outcome, true, peer, variant, allowed)
        del outcome
        if problem is not None:
            failures[peer.name] = f"{task.n} x {task.d} {problem}"
            continue
        if estimate >= LONG:
            each.first = (estimate,)
        else:
            estimate = each.seconds()  # warm
        timed[peer.name] = each
        counts[peer.name] = max(task.budget.count(estimate) - len(each.first), 0)
    if not timed:
        return []
    with without_collections():
        later = interleave({name: each.seconds for name, each in timed.items()}, counts)
    samples = implementations.split(task.n, group.size)
    automatic = implementations.automatic(samples, task.d, variant)
    return [
        task.row(variant, each.peer)
        | {"threads": torch.get_num_threads(), "auto": each.peer.layout == automatic}
        | {"repeats": len(seconds), **columns(seconds, "s")}
        | each.bytes(task.d)
        for name, each in timed.items()
        if (seconds := [*each.first, *later[name]])
    ]
