"""A task for every image of a source, in several processes, with results in the source's order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from .processes import leaving_to_parent, obey_parent
from .sources import Source

Result = TypeVar("Result")

# Images per message between processes: few, since results may be whole files.
CHUNK = 8

# Below this many images per process, starting it (importing torch) takes longer than it saves.
WORTH_A_PROCESS = 2000

# How many chunks per process are under way or wait to be fetched: the bound on memory.
AHEAD = 3

_task: Callable[[int], object] | None = None


def default_workers(count: int) -> int:
    """How many processes are worth it for `count` images on this machine; 0: none but this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, count // WORTH_A_PROCESS)
    return workers if workers > 1 else 0


def in_order(
    source: Source, task: Callable[[int], Result], workers: int | None = None
) -> Iterator[Result]:
    """`task(index)` for every index of a source, in order.

    Args:
        source: for its length, and its names where a process dies.
        task: picklable; called with sample numbers. What it raises is raised here.
        workers: processes, no more than there are chunks of images; 0 for this one alone; None:
            `default_workers`.

    Yields:
        Results. At most `workers * AHEAD * CHUNK` of them exist at a time.

    Raises:
        RuntimeError: a process died; the message names the images that it had.
    """
    count = len(source)
    workers = default_workers(count) if workers is None else min(workers, -(-count // CHUNK))
    if not workers:
        yield from map(task, range(count))
        return
    # Not forked: torch and rich have threads by now, and a fork copies their locks as they are.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(task,)
    )
    chunks = iter([range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)])
    waiting: deque[tuple[range, Future[list[Result]]]] = deque()
    try:
        for chunk in islice(chunks, workers * AHEAD):
            waiting.append((chunk, _submit(executor, chunk)))
        while waiting:
            chunk, future = waiting.popleft()
            results = future.result()
            following = next(chunks, None)
            if following is not None:
                waiting.append((following, _submit(executor, following)))
            yield from results
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process died at or after image {chunk[0]}, {source.identity(chunk[0])}: "
            "out of memory, or a decoder crashed; --workers 0 reads in this process"
        ) from error
    finally:
        with leaving_to_parent():
            if waiting:
                _kill(executor)
            executor.shutdown(cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, chunk: range) -> Future[list[object]]:
    # Processes start here, when there is work for them.
    with leaving_to_parent():
        return executor.submit(_run, chunk)


def _kill(executor: ProcessPoolExecutor) -> None:
    """Ends processes whose results are no longer needed, at once: they may wait for storage, and
    hold nothing that would have to be cleaned up."""
    for process in list((executor._processes or {}).values()):
        process.kill()


def _prepare(task: Callable[[int], object]) -> None:
    global _task
    _task = task
    obey_parent()


def _run(chunk: range) -> list[object]:
    return [_task(index) for index in chunk]
