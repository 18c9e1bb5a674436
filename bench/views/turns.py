"""Feeds in turns: each in processes of its own, which wait while another one is timed.

Loaders work ahead in the background, but only so far. So a feed answers when its workers have had
the time to get there, and then waits for its next turn. Its next turn begins with full queues; what
was in them is not timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Annotated, Any

from bench import lifetime
from bench.cli import Option

AHEAD = 4  # batches
FEWEST = 4  # batches that are timed
DEADLINE = 120.0  # seconds for a process to start, or for a turn beyond its time

Opener = Callable[..., AbstractContextManager[Iterator[int]]]
Figures = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """How long feeds take turns; the options of suites that let them."""

    seconds: Annotated[float | None, Option("Time for each implementation of a case.")] = None
    rounds: Annotated[int | None, Option("Turns of each.", least=1)] = None
    deadline: Annotated[
        float | None, Option("Seconds without an answer after which a process is ended.")
    ] = None

    def over(self, usual: tuple[float, int, float]) -> tuple[float, int, float]:
        """The usual seconds, rounds and deadline, except for what is given."""
        seconds, rounds, deadline = usual
        return self.seconds or seconds, self.rounds or rounds, self.deadline or deadline


class FeedError(Exception):
    """A feed that raised, died or did not answer."""


class Runner:
    """One feed in a process of its own.

    Args:
        name: for messages.
        opener: called with `arguments` in the new process; yields counts without an end. The
            iterator may have three more methods: `settle()` waits for what is under way, `report()`
            returns figures of the time since it was last called, `rest()` gives back what others
            need while it waits.
        arguments: must be picklable.
        cores: that the processes may use.
        deadline: in seconds, for the start, and for a turn beyond its time.
        ahead: batches that it has ready at most, and so many are not timed in a turn.

    Attributes:
        reports: figures of every turn; empty where the feed has none.
    """

    def __init__(
        self,
        name: str,
        opener: Opener,
        arguments: tuple[Any, ...],
        cores: set[int] | None,
        deadline: float = DEADLINE,
        ahead: int = AHEAD,
    ) -> None:
        self.name, self.deadline = name, deadline
        self.reports: list[Figures] = []
        self._task = (opener, arguments, cores, ahead)
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """Begins the process, and waits until its first batches have come.

        Raises:
            FeedError: they do not come.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        # Not a daemon, which could not have workers; `end` is called whatever happens.
        self._process = context.Process(target=_serve, args=(other, *self._task))
        self._process.start()
        other.close()
        self._answer(self.deadline)

    def turn(self, seconds: float) -> float:
        """Counts per second of one turn of about so many seconds.

        Raises:
            FeedError: it fails.
        """
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(seconds)
        count, elapsed, report = self._answer(seconds + self.deadline)
        self.reports.append(report)
        return count / elapsed

    def end(self) -> None:
        """Kills the process. May be called again, at any time."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()

    def _answer(self, seconds: float) -> Any:
        if not wait([self._connection, self._process.sentinel], seconds):
            raise FeedError(f"did not answer within {seconds:.0f} s")
        failed = content = None
        # Workers keep the other end of the pipe open when their parent has died.
        if self._connection.poll():
            with contextlib.suppress(EOFError):
                failed, content = self._connection.recv()
        if failed is None:
            # Its sentinel is closed a moment before its exit status can be had.
            self._process.join(seconds)
            raise FeedError(f"died with exit status {self._process.exitcode}")
        if failed:
            raise FeedError(content)
        return content


def race(
    runners: list[Runner],
    rounds: int,
    seconds: float,
    moved: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Counts per second of every turn, and what failed: name -> reason; that has no times.

    The runners take turns in an order shuffled anew each round, so that whatever disturbs the
    machine for a while disturbs all alike. All of them are ended, whatever happens.

    Args:
        runners: not yet started. They are started one after the other, so that nothing else delays
            a first batch, and for those that a device's memory does not hold at the same time.
        rounds: turns of each.
        seconds: of a turn.
        moved: called with the name of a runner that is ready, or had its turn.
    """
    rates: dict[str, list[float]] = {runner.name: [] for runner in runners}
    failures: dict[str, str] = {}
    generator = random.Random(0)

    def turn(runner: Runner) -> None:
        rates[runner.name].append(runner.turn(seconds))

    try:
        for action in (Runner.start, *[turn] * rounds):
            order = [runner for runner in runners if runner.name not in failures]
            if action is turn:
                generator.shuffle(order)
            for runner in order:
                try:
                    action(runner)
                    moved(runner.name)
                except FeedError as error:
                    failures[runner.name] = str(error)
                    runner.end()
    finally:
        for runner in runners:
            runner.end()
    return {name: found for name, found in rates.items() if name not in failures}, failures


def _serve(
    connection: Connection,
    opener: Opener,
    arguments: tuple[Any, ...],
    cores: set[int] | None,
    ahead: int,
) -> None:
    """A feed's process: sends (whether it failed, the reason or what `_timed` returns)."""
    lifetime.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        with opener(*arguments) as counts:
            seconds = 0.0
            while True:
                connection.send((False, _timed(counts, seconds, ahead)))
                seconds = connection.recv()
    except (EOFError, BrokenPipeError):
        pass  # the parent has closed the pipe
    except Exception as error:  # whatever a feed raises, the others are still to be timed
        with contextlib.suppress(BrokenPipeError):
            connection.send((True, f"{type(error).__name__}: {error}"))


def _timed(counts: Iterator[int], seconds: float, ahead: int) -> tuple[int, float, Figures]:
    """(count, seconds, figures), once nothing is left to do. An even number of batches, because two
    workers finish them in pairs."""
    settle, report, rest = (
        getattr(counts, name, dict) for name in ("settle", "report", "rest")
    )  # without the method: `dict()`, no figures
    for _ in range(ahead):
        next(counts)
    settle()
    report()
    total, number, elapsed, start = 0, 0, 0.0, time.perf_counter()
    while number < FEWEST or number % 2 or elapsed < seconds:
        total += next(counts)
        number += 1
        elapsed = time.perf_counter() - start
    settle()
    elapsed = time.perf_counter() - start
    figures = report()
    rest()
    time.sleep(ahead * elapsed / number)
    return total, elapsed, figures
