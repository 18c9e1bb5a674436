"""Crops by Pillow in worker processes.

Pixels are never sent: a worker receives sample numbers and writes its rows into memory that it
shares with this process. That memory is a fixed number of slots of one batch
each, so what is rendered ahead is bounded.

Workers are not forked from this process: a fork copies locks that other threads hold (torch's,
CUDA's, DALI's), and a worker could wait for them forever. They are forked from Python's fork
server, where there is one, which is started without threads and imports torch once for all of them
instead of once for each; elsewhere they are spawned. Each worker has a pipe of its own, because a
queue that all share stays locked when a worker is killed that was just reading from it. The end of
that pipe is how either side learns that the other is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..decoding import pillow
from ..faults import BadImage
from ..processes import STOP_SIGNALS, leaving_to_parent, obey_parent
from ..sources import Source
from . import Crops, check_room, crop_shapes, without
from .pil import crop_rows

if TYPE_CHECKING:
    from ..presets import Views

LOG = logging.getLogger("barlow_fast.data")

START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
FORK_SERVER = f"{__package__}.fork_server"

# Seconds: until a wait is logged, and until a process whose pipe has ended must have an exit
# code.
REMARK_AFTER = 60.0
PATIENCE = 60.0
# Seconds until a worker that does not answer counts as stopped, unless another time is set.
TIMEOUT = 1800.0


class Slots:
    """Shared memory for a fixed number of batches: sample numbers and crops.

    The memory is a file without a name, so nothing of it can be left behind, however the processes
    end.

    Args:
        count: how many.
        batch_size: the largest batch.
        shapes: (H, W, C) of each view.
        memory: as another process made it; None to make it.
    """

    def __init__(self, count, batch_size, shapes, memory=None) -> None:
        self.arguments = (count, batch_size, shapes)
        pixels = [batch_size * int(np.prod(shape)) for shape in shapes]
        each = 8 * batch_size + sum(pixels)
        each += -each % 8  # sample numbers stay aligned
        if memory is None:
            memory = multiprocessing.get_context(START).RawArray("B", count * each)
        self.memory = memory
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        self.samples, self.crops = [], []
        for slot in buffer.split(each):
            samples, *views = slot[: 8 * batch_size + sum(pixels)].split([8 * batch_size, *pixels])
            self.samples.append(samples.view(torch.int64).numpy())
            self.crops.append(
                [v.view(batch_size, *shape) for v, shape in zip(views, shapes, strict=True)]
            )


@dataclass
class _Batch:
    """One under way."""

    slot: int
    samples: np.ndarray
    waiting: set[int]  # workers that have not answered yet
    bad: list[tuple[int, BadImage]] = field(default_factory=list)
    failure: str = ""  # traceback of what went wrong in a worker, apart from images


class WorkerRenderer:
    """Renders in `workers` processes, each a part of every batch.

    They start with the first batch, in a few seconds, and live until `close`, the end of this
    object or the end of this process, whatever ends it. (Python's fork server and its resource
    tracker stay until the end of this process.)

    Args:
        source, views, seed: as for `PilRenderer`; the source is pickled.
        batch_size: the largest batch.
        workers: how many processes.
        prefetch: how many batches may be under way. Memory: (prefetch + 1) batches of crops.
        timeout: seconds without any answer until `receive` gives up; 0: never.

    Raises:
        ValueError: views that need another renderer; no workers.
        ModuleNotFoundError: Pillow is missing.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        batch_size: int,
        *,
        workers: int = 2,
        seed: int = 0,
        prefetch: int = 2,
        timeout: float = TIMEOUT,
    ) -> None:
        pillow()
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._task = (source, views, seed)
        self._workers = workers
        self._batch_size = batch_size
        self._shapes = crop_shapes(source, views)
        self._prefetch = prefetch
        self._timeout = timeout
        self._slots: Slots | None = None
        self._free: list[int] = []
        self._shown: int | None = None  # the slot whose batch was handed out last
        self._under_way: deque[_Batch] = deque()
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[Connection] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _end, os.getpid(), self._processes, self._pipes)

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        check_room(self._closed, len(self._under_way), self._prefetch)
        if self._slots is None:
            self._start()
        slot = self._free.pop()
        self._slots.samples[slot][: len(samples)] = samples
        batch = _Batch(slot, samples, set())
        bounds = [len(samples) * n // self._workers for n in range(self._workers + 1)]
        self._under_way.append(batch)
        for worker, (first, end) in enumerate(itertools.pairwise(bounds)):
            if first == end:
                continue
            batch.waiting.add(worker)
            # A task is a few dozen bytes and no more than `prefetch` wait, so the pipe never fills
            # and this never waits.
            try:
                self._pipes[worker].send((slot, first, end, epoch))
            except OSError:
                self._died(worker)

    def receive(self) -> Crops:
        if self._closed:
            raise RuntimeError("the renderer is closed")
        if not self._under_way:
            raise RuntimeError("no batch is under way")
        if self._shown is not None:
            self._free.append(self._shown)
            self._shown = None
        batch = self._under_way[0]
        while batch.waiting:
            self._collect(batch.waiting)
        self._under_way.popleft()
        self._shown = batch.slot
        if batch.failure:
            raise RuntimeError(f"a data worker failed:\n{batch.failure}")
        crops = [view[: len(batch.samples)] for view in self._slots.crops[batch.slot]]
        return without(Crops(crops, batch.samples, []), sorted(batch.bad, key=lambda item: item[0]))

    def close(self) -> None:
        self._closed = True
        self._under_way.clear()
        self._slots = None
        self._finalizer()

    @property
    def processes(self) -> list[int]:
        """The workers' process numbers."""
        return [process.pid for process in self._processes]

    def _start(self) -> None:
        context = multiprocessing.get_context(START)
        if START == "forkserver":
            context.set_forkserver_preload([FORK_SERVER, crop_rows.__module__])
        # One more than may be under way: the batch that was handed out last.
        self._slots = Slots(self._prefetch + 1, self._batch_size, self._shapes)
        self._free = list(range(self._prefetch + 1))
        for number in range(self._workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, self._slots.memory, self._slots.arguments, *self._task),
                name=f"barlow_fast data worker {number}",
                daemon=True,
            )
            self._processes.append(process)
            self._pipes.append(ours)
            with leaving_to_parent(STOP_SIGNALS):
                process.start()
            # With this end closed, the worker's death closes the last one and ends our wait.
            theirs.close()

    def _collect(self, workers: set[int]) -> None:
        """Takes in what has come from any of `workers`, after waiting for it."""
        pipes = {self._pipes[worker]: worker for worker in workers}
        left = self._timeout or math.inf
        while not (ready := wait(list(pipes), timeout=min(REMARK_AFTER, left))):
            # Counted rather than read from a clock: while the whole job is suspended, this process
            # does not wait either.
            left -= REMARK_AFTER
            if left <= 0:
                self._give_up(sorted(workers))
            LOG.warning(
                "waiting for %d data workers for more than %d s: is the storage of %s slow?",
                len(pipes),
                REMARK_AFTER,
                self._task[0].name,
            )
        for pipe in ready:
            worker = pipes[pipe]
            try:
                slot, bad, failure = pipe.recv()
            except (EOFError, OSError):
                self._died(worker)
            # A worker answers in the order of its tasks, but may be ahead of the others.
            batch = next(b for b in self._under_way if b.slot == slot)
            batch.waiting.discard(worker)
            batch.bad += bad
            batch.failure = batch.failure or failure

    def _give_up(self, workers: list[int]) -> None:
        pids = ", ".join(str(self._processes[worker].pid) for worker in workers)
        self.close()
        raise RuntimeError(
            f"data workers (processes {pids}) have not answered for {self._timeout:g} s: they are "
            f"stopped, or the storage of {self._task[0].name} does not answer. --worker-timeout "
            "(timeout= of a loader) sets how long to wait"
        )

    def _died(self, worker: int) -> None:
        process = self._processes[worker]
        process.join(PATIENCE)
        pid, code = process.pid, process.exitcode
        self.close()
        why = f"exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                why += f", {signal.Signals(-code).name}"
        if code == -9:
            why += "; the kernel ends processes like this when memory runs out"
        raise RuntimeError(f"data worker {worker} (process {pid}) died: {why}") from None


def _end(owner: int, processes: list[multiprocessing.Process], pipes: list[Connection]) -> None:
    """Ends the workers, at once: they hold nothing that would have to be put in order first."""
    # A process that was forked from the owner has copies of these objects, and must not use them.
    if os.getpid() != owner:
        return
    for pipe in pipes:
        pipe.close()
    for process in processes:
        if process.pid is not None:
            process.kill()
    for process in processes:
        if process.pid is not None:
            process.join()
            process.close()
    processes.clear()
    pipes.clear()


def _work(pipe: Connection, memory, arguments: tuple, source: Source, views: Views, seed: int):
    """The main function of a worker: renders rows of slots until the pipe closes."""
    # A run that receives a signal to stop finishes its step and saves, which needs the batch.
    obey_parent(STOP_SIGNALS)
    slots = Slots(*arguments, memory=memory)
    crops = [[view.numpy() for view in views_of_slot] for views_of_slot in slots.crops]
    with contextlib.suppress(EOFError, OSError):
        while True:
            slot, first, end, epoch = pipe.recv()
            bad, failure = [], ""
            try:
                rows = [view[first:end] for view in crops[slot]]
                found = crop_rows(source, views, seed, epoch, slots.samples[slot][first:end], rows)
                bad = [(first + row, image) for row, image in found]
            except Exception:
                failure = traceback.format_exc()
            pipe.send((slot, bad, failure))
