"""Threads of this process that read images, and a task for every image of a source, with results in
the source's order.

What takes time releases the interpreter's lock: reading, decoding, resizing, the photometric
kernel. So threads do what processes would, without copies between them and without a second to
start.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from .sources import Source

LOG = logging.getLogger("barlow_fast.data")

Result = TypeVar("Result")

# The default number of threads that read files is at most this: they share the interpreter's lock
# with the training step.
MOST_THREADS = 16
# Seconds until a wait is logged.
REMARK_AFTER = 60.0
# Seconds without an image until the threads count as stopped, unless another time is set.
TIMEOUT = 1800.0
# How many images per thread are under way or wait to be fetched by `in_order`: the bound on memory.
AHEAD = 24
# Seconds per image below which threads are not worth it: most of it is under the interpreter's
# lock, and two threads that pass it to each other take longer than one. The least time of the first
# `TRIED` images counts.
WORTH_THREADS, TRIED = 4e-4, 8
# Seconds that `in_order` waits for the images in work when the rest is not needed. A thread that
# does not end, because storage does not answer, is left behind.
PATIENCE = 1.0


class Task(Generic[Result]):
    """A call, made by a thread or by any caller of `perform`.

    Attributes:
        ready: set when it has been made.
        error: what it raised in a thread.
    """

    def __init__(self, function: Callable[..., Result], *arguments: Any) -> None:
        self._function, self.arguments = function, arguments
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.result: Result | None = None

    def outcome(self) -> Result:
        """What the call returned, waiting for it; what it raised is raised."""
        self.ready.wait()
        if self.error is not None:
            raise self.error
        return self.result

    def perform(self) -> None:
        """Makes the call. One that raises has not been made."""
        self.result = self._function(*self.arguments)
        self.ready.set()

    def attempt(self) -> None:
        """Makes the call; keeps what it raises."""
        try:
            self.perform()
        except BaseException as error:
            self.error = error
            self.ready.set()


class Threads:
    """Up to `count` threads that make the calls of tasks, in the order of `put`. Each starts when
    there is a task for it, and lives until `end` or the end of this process, which does not wait
    for it. A fork of this process has none of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self.owner = os.getpid()

    def put(self, task: Task[Result]) -> Task[Result]:
        """The task, which a thread will make."""
        number = len(self._threads)
        if number < self._count:
            name = f"barlow_fast data thread {number}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._tasks.put(task)
        return task

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._stopped:
            task.attempt()
            # Not until the next task comes.
            del task

    def end(self, patience: float) -> None:
        """Waits up to `patience` seconds for the tasks in work, not for those behind them."""
        # A process that was forked from the owner has a copy of this object, and must not use it.
        if os.getpid() != self.owner:
            return
        self._stopped = True
        for _ in self._threads:
            self._tasks.put(None)
        end = time.monotonic() + patience
        for thread in self._threads:
            # A collection of garbage can happen in any thread.
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0))
        self._threads.clear()


def wait(task: Task, tasks: Iterable[Task], source: str, timeout: float) -> bool:
    """Whether a thread has made the call of `task`, waiting for it as long as others are made.

    Args:
        task: one of `tasks`.
        tasks: those that show whether any image is still read.
        source: what messages call the images.
        timeout: seconds without any of them until it is given up; 0: never.
    """

    def count() -> int:
        return sum(each.ready.is_set() for each in tasks)

    left, done = timeout or math.inf, count()
    # Counted rather than read from a clock: while the whole job is suspended, this process does not
    # wait either.
    while not task.ready.wait(min(REMARK_AFTER, left)):
        if count() > done:
            left, done = timeout or math.inf, count()
            continue
        left -= REMARK_AFTER
        if left <= 0:
            return False
        LOG.warning(
            "waiting for images for more than %d s: is the storage of %s slow?",
            REMARK_AFTER,
            source,
        )
    return True


def in_order(
    source: Source, call: Callable[[int], Result], workers: int | None = None
) -> Iterator[Result]:
    """`call(index)` for every index of a source, in order.

    Args:
        source: for its length, and its names in messages.
        call: called with sample numbers, in threads. What it raises is raised here.
        workers: threads; 0 for the one that calls alone; None: `default_workers`, or 0 where the
            first images take little time.

    Yields:
        Results. At most `workers * AHEAD` of them exist at a time.

    Raises:
        RuntimeError: no image came for `TIMEOUT` seconds; the message names one that is waited for.
    """
    indices = iter(range(len(source)))
    if workers is None:
        least = math.inf
        for index in islice(indices, TRIED):
            begun = time.perf_counter()
            result = call(index)
            least = min(least, time.perf_counter() - begun)
            yield result
        workers = default_workers() if least > WORTH_THREADS else 0
    if not workers:
        yield from map(call, indices)
        return
    threads, waiting = Threads(workers), deque()
    try:
        for index in islice(indices, workers * AHEAD):
            waiting.append(threads.put(Task(call, index)))
        while waiting:
            task = waiting[0]
            if not wait(task, waiting, source.name, TIMEOUT):
                raise RuntimeError(
                    f"no image has been read for {TIMEOUT:g} s, such as "
                    f"{source.identity(task.arguments[0])}: the storage of {source.name} does not "
                    "answer"
                )
            waiting.popleft()
            for following in islice(indices, 1):
                waiting.append(threads.put(Task(call, following)))
            yield task.outcome()
    finally:
        threads.end(PATIENCE)


def default_workers() -> int:
    """How many threads read files unless another number is set."""
    return min(cores_of_rank(), MOST_THREADS)


def cores_of_rank() -> int:
    """Cores that this process may use, shared evenly with the other ranks of this machine, at least
    1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    # Set by torchrun for the processes that it starts.
    ranks_here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(cores // int(ranks_here) if ranks_here.isdigit() and int(ranks_here) else cores, 1)
