"""Views of files, by threads of this process.

A thread takes a few images of a batch at a time, and writes what it renders into the batch itself:
pixels are never copied, and no memory is shared between processes.
"""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import kernels
from ...plan import choose_backend
from ..decoding import pillow
from ..faults import BadImage
from ..parallel import TIMEOUT, Task, Threads, wait
from ..sources import Source
from . import Crops, check_room, crop_shapes, without
from .files import DrawnViews, crop_rows

if TYPE_CHECKING:
    from ..presets import Views

# Images of a batch that a thread takes at a time: their crops stay in a core's own cache until the
# photometric kernel reads them.
CHUNK = 4
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
    tasks: list[Task[list[tuple[int, BadImage]]]]  # of `CHUNK` rows each, in order


class _Engine:
    """The work of the threads, without a reference to the renderer, so that that can be
    collected."""

    def __init__(
        self, source: Source, shapes: list[tuple[int, int, int]], finish: Finish | None
    ) -> None:
        self.source, self.shapes, self.finish = source, shapes, finish
        self._of_thread = threading.local()

    def scratch(self) -> list[Tensor]:
        """Memory of this thread for the crops of a chunk that are finished at once."""
        if not hasattr(self._of_thread, "scratch"):
            self._of_thread.scratch = [
                torch.empty(CHUNK, *shape, dtype=torch.uint8, device="cpu") for shape in self.shapes
            ]
        return self._of_thread.scratch

    def render(
        self, drawn: DrawnViews, out: list[Tensor], rows: list[Tensor], chunk: range
    ) -> list[tuple[int, BadImage]]:
        """Renders rows of a batch.

        Args:
            drawn: its views.
            out: per view (B, H, W, C), to be filled.
            rows: per view (B, PARAMETERS), where the photometric part is done.
            chunk: which of the batch.

        Returns:
            as `crop_rows`.
        """
        part = slice(chunk.start, chunk.stop)
        out = [view[part] for view in out]
        if not self.finish:
            return crop_rows(self.source, drawn, chunk, out)
        crops = [view[: len(chunk)] for view in self.scratch()]
        found = crop_rows(self.source, drawn, chunk, crops)
        mean, std = self.finish.mean, self.finish.std
        native = kernels.load("cpu")
        for pixels, parameters, view in zip(crops, rows, out, strict=True):
            native.photometric_in_thread(pixels, parameters[part], mean, std, view)
        return found


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
        self._threads = Threads(workers)
        self._closed = False
        self._finalizer = weakref.finalize(self, self._threads.end, PATIENCE)

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        self._check_process()
        check_room(self._closed, len(self._under_way), self._prefetch)
        batch = self._begin(epoch, samples)
        if self._workers:
            for task in batch.tasks:
                self._threads.put(task)
        # Last: Ctrl-C may come before, and then nothing is waited for.
        self._under_way.append(batch)

    def receive(self) -> Crops:
        self._check_process()
        if self._closed:
            raise RuntimeError("the renderer is closed")
        if not self._under_way:
            raise RuntimeError("no batch is under way")
        batch = self._under_way[0]
        for task in batch.tasks:
            if self._workers:
                self._wait(batch, task)
            elif not task.ready.is_set():
                # Ctrl-C may leave some for the next call.
                task.perform()
        self._under_way.popleft()
        for error in (task.error for task in batch.tasks if task.error is not None):
            lines = "".join(traceback.format_exception(error))
            raise RuntimeError(f"a data thread failed:\n{lines}") from error
        bad = [image for task in batch.tasks for image in task.result]
        return without(Crops(batch.out, batch.views.samples, []), bad)

    def close(self) -> None:
        self._closed = True
        self._under_way.clear()
        self._finalizer()

    def _check_process(self) -> None:
        owner = self._threads.owner
        if os.getpid() != owner:
            raise RuntimeError(
                f"this loader was made in process {owner}, and its threads do not exist in a "
                "fork of it: make one in this process"
            )

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
        render = self._engine.render
        return _Batch(drawn, out, [Task(render, drawn, out, rows, chunk) for chunk in chunks])

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        finish = self._engine.finish
        if finish:
            return kernels.load("cpu").POOL.empty(shape, finish.dtype)
        # Torch keeps pinned memory, and lends it again when all copies from it are done.
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)

    def _wait(self, batch: _Batch, task: Task) -> None:
        source = self._engine.source
        if wait(task, batch.tasks, source.name, self._timeout):
            return
        row = batch.tasks.index(task) * CHUNK
        samples = batch.views.samples[row : row + CHUNK]
        self._threads.end(patience=0)
        self.close()
        raise RuntimeError(
            f"no image has been read for {self._timeout:g} s, such as "
            f"{source.identity(int(samples[0]))} or one of the {len(samples)} from there on: the "
            f"storage of {source.name} does not answer. --worker-timeout (timeout= of a loader) "
            "sets how long to wait"
        )
