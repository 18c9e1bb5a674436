"""Views of files, by threads of this process.

What takes time releases the interpreter's lock: reading, decoding, resizing, the photometric
kernel. So threads do what processes would, without copies of pixels between them, without shared
memory, and without a second to start. A thread takes a few images of a batch at a time, and writes
what it renders into the batch itself.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
import traceback
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import kernels
from ...plan import choose_backend
from ..decoding import pillow
from ..faults import BadImage
from ..sources import Source
from . import Crops, check_room, crop_shapes, without
from .files import DrawnViews, crop_rows

if TYPE_CHECKING:
    from ..presets import Views

LOG = logging.getLogger("barlow_fast.data")

# Images of a batch that a thread takes at a time: their crops stay in a core's own cache until the
# photometric kernel reads them.
CHUNK = 4
# Seconds until a wait is logged.
REMARK_AFTER = 60.0
# Seconds without an image until the threads count as stopped, unless another time is set.
TIMEOUT = 1800.0
# Seconds that `close` waits for the images in work. A thread that does not end, because storage
# does not answer, is left behind.
PATIENCE = 10.0


class Finish(NamedTuple):
    """The photometric part, for the threads that crop: on a CPU, whose cores they use anyway."""

    mean: Tensor  # (C,) float32
    std: Tensor
    dtype: torch.dtype  # of the views

    @staticmethod
    def possible(device: torch.device) -> bool:
        """Whether there is a kernel that works in the thread that calls it."""
        return device.type == "cpu" and choose_backend("auto", device) == "cpu"


@dataclass
class _Batch:
    """One under way."""

    views: DrawnViews
    out: list[Tensor]  # per view (B, H, W, C)
    rows: list[Tensor]  # per view (B, PARAMETERS), where the threads finish
    chunks: list[range]  # of its rows
    done: list[range] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)
    bad: list[tuple[int, BadImage]] = field(default_factory=list)
    failure: str = ""  # traceback of what went wrong in a thread, apart from images


class _Engine:
    """The work of the threads, without a reference to the renderer, so that that can be
    collected."""

    def __init__(
        self, source: Source, shapes: list[tuple[int, int, int]], finish: Finish | None
    ) -> None:
        self.source, self.shapes, self.finish = source, shapes, finish
        self.tasks: queue.SimpleQueue[tuple[_Batch, range] | None] = queue.SimpleQueue()
        self.stopped = False

    def run(self) -> None:
        """Chunks from `tasks`, until `stopped`."""
        scratch = self.scratch()
        while (task := self.tasks.get()) is not None and not self.stopped:
            batch, chunk = task
            try:
                self.render(batch, chunk, scratch)
            except BaseException:
                batch.failure = batch.failure or traceback.format_exc()
                self.complete(batch, chunk)
            # Not until the next task comes.
            del task, batch

    def scratch(self) -> list[Tensor]:
        """Memory for the crops of a chunk that are finished at once."""
        shapes = self.shapes if self.finish else []
        return [torch.empty(CHUNK, *shape, dtype=torch.uint8, device="cpu") for shape in shapes]

    def render(self, batch: _Batch, chunk: range, scratch: list[Tensor]) -> None:
        part = slice(chunk.start, chunk.stop)
        out = [view[part] for view in batch.out]
        crops = [view[: len(chunk)] for view in scratch] if self.finish else out
        batch.bad += crop_rows(self.source, batch.views, chunk, crops)
        if self.finish:
            mean, std = self.finish.mean, self.finish.std
            native = kernels.load("cpu")
            for pixels, rows, view in zip(crops, batch.rows, out, strict=True):
                native.photometric_in_thread(pixels, rows[part], mean, std, view)
        self.complete(batch, chunk)

    def complete(self, batch: _Batch, chunk: range) -> None:
        batch.done.append(chunk)
        if len(batch.done) == len(batch.chunks):
            batch.ready.set()


class ThreadRenderer:
    """Renders in `workers` threads, which share every batch, or in the thread that calls `receive`.

    They start with the first batch, and live until `close`, the end of this object or the end of
    this process. A fork of this process has none of them.

    Args:
        source: any; arrays are taken image by image.
        views: what is drawn; only windows that are upright (`windows`).
        workers: how many threads; 0: none.
        seed: of the parameters.
        prefetch: how many batches may be under way. Memory: prefetch + 1 batches.
        timeout: seconds without any image until `receive` gives up; 0: never.
        pinned: whether crops are in memory from which a GPU copies without the CPU.
        finish: the photometric part: then what is received as `crops` are views, in its dtype.

    Raises:
        ValueError: views that need another renderer; a negative number of workers.
        ModuleNotFoundError: Pillow is missing.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        *,
        workers: int = 0,
        seed: int = 0,
        prefetch: int = 2,
        timeout: float = TIMEOUT,
        pinned: bool = False,
        finish: Finish | None = None,
    ) -> None:
        pillow()
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        self._views, self._seed, self._workers = views, seed, workers
        self._prefetch, self._timeout, self._pinned = prefetch, timeout, pinned
        self._shapes = crop_shapes(source, views)
        self._engine = _Engine(source, self._shapes, finish)
        self._under_way: deque[_Batch] = deque()
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self._closed = False
        running = (self._owner, self._engine, self._threads)
        self._finalizer = weakref.finalize(self, _end, *running, PATIENCE)

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        self._check_process()
        check_room(self._closed, len(self._under_way), self._prefetch)
        batch = self._begin(epoch, samples)
        if self._workers:
            self._start()
            for chunk in batch.chunks:
                self._engine.tasks.put((batch, chunk))
        # Last: Ctrl-C may come before, and then nothing is waited for.
        self._under_way.append(batch)

    def receive(self) -> Crops:
        self._check_process()
        if self._closed:
            raise RuntimeError("the renderer is closed")
        if not self._under_way:
            raise RuntimeError("no batch is under way")
        batch = self._under_way[0]
        if self._workers:
            self._wait(batch)
        else:
            # Ctrl-C may leave some for the next call.
            scratch = self._engine.scratch()
            for chunk in batch.chunks[len(batch.done) :]:
                self._engine.render(batch, chunk, scratch)
        self._under_way.popleft()
        if batch.failure:
            raise RuntimeError(f"a data thread failed:\n{batch.failure}")
        bad = sorted(batch.bad, key=lambda item: item[0])
        return without(Crops(batch.out, batch.views.samples, []), bad)

    def close(self) -> None:
        self._closed = True
        self._under_way.clear()
        self._finalizer()

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this loader was made in process {self._owner}, and its threads do not exist in a "
                "fork of it: make one in this process"
            )

    def _start(self) -> None:
        for number in range(len(self._threads), self._workers):
            name = f"barlow_fast data thread {number}"
            thread = threading.Thread(target=self._engine.run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _begin(self, epoch: int, samples: np.ndarray) -> _Batch:
        count = len(samples)
        drawn = DrawnViews(self._views, self._seed, epoch, samples, self._shapes)
        finish, rows = self._engine.finish, []
        out = [self._empty((count, *shape)) for shape in self._shapes]
        if finish:
            rows = [
                torch.from_numpy(parameters.photometric_rows(*shape[:2]))
                for parameters, shape in zip(drawn.parameters, self._shapes, strict=True)
            ]
        chunks = [range(n, min(n + CHUNK, count)) for n in range(0, count, CHUNK)]
        return _Batch(drawn, out, rows, chunks)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        finish = self._engine.finish
        if finish:
            return kernels.load("cpu").POOL.empty(shape, finish.dtype)
        # Torch keeps pinned memory, and lends it again when all copies from it are done.
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)

    def _wait(self, batch: _Batch) -> None:
        left, done = self._timeout or math.inf, len(batch.done)
        # Counted rather than read from a clock: while the whole job is suspended, this process does
        # not wait either.
        while not batch.ready.wait(min(REMARK_AFTER, left)):
            if len(batch.done) > done:
                left, done = self._timeout or math.inf, len(batch.done)
                continue
            left -= REMARK_AFTER
            if left <= 0:
                self._give_up(batch)
            LOG.warning(
                "waiting for images for more than %d s: is the storage of %s slow?",
                REMARK_AFTER,
                self._engine.source.name,
            )

    def _give_up(self, batch: _Batch) -> None:
        source = self._engine.source
        missing = next(chunk for chunk in batch.chunks if chunk not in batch.done)
        identity = source.identity(int(batch.views.samples[missing.start]))
        _end(self._owner, self._engine, self._threads, patience=0)
        self.close()
        raise RuntimeError(
            f"no image has been read for {self._timeout:g} s, such as {identity} or one of the "
            f"{len(missing)} from there on: the storage of {source.name} does not answer. "
            "--worker-timeout (timeout= of a loader) sets how long to wait"
        )


def _end(owner: int, engine: _Engine, threads: list[threading.Thread], patience: float) -> None:
    """Waits for the images in work, not for those behind them."""
    # A process that was forked from the owner has copies of these objects, and must not use them.
    if os.getpid() != owner:
        return
    engine.stopped = True
    for _ in threads:
        engine.tasks.put(None)
    end = time.monotonic() + patience
    for thread in threads:
        # A collection of garbage can happen in any thread.
        if thread is not threading.current_thread():
            thread.join(max(end - time.monotonic(), 0))
    threads.clear()
