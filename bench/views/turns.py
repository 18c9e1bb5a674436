"""Feeds in turns: each in processes of its own, which wait while another one is timed.

Loaders work ahead in the background, but only so far. So a feed answers when its workers have had
the time to get there, and then waits for its next turn. Its next turn begins with full queues; what
was in them is not timed.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from bench import lifetime
from bench.cli import Option
from bench.lifetime import ChildError

AHEAD = 4  # batches
FEWEST = 4  # batches that are timed
DEADLINE = 120.0  # seconds for a process to start, or for a turn beyond its time

Figures = dict[str, float]


@dataclass(frozen=True)
class Pace:
    """How long feeds take turns; the options of suites that let them."""

    seconds: Annotated[float | None, Option("Time for each implementation of a case.")] = None
    rounds: Annotated[int | None, Option("Turns of each.", least=1)] = None
    deadline: Annotated[
        float | None, Option("Seconds without an answer after which a process is ended.")
    ] = None

    def over(
        self, usual: tuple[float, int, float], quick: tuple[float, int] | None = None
    ) -> tuple[float, int, float]:
        """Seconds, rounds and deadline: the usual ones, or the quick ones, except for what is
        given."""
        seconds, rounds, deadline = usual if quick is None else (*quick, usual[2])
        return self.seconds or seconds, self.rounds or rounds, self.deadline or deadline


@dataclass(frozen=True)
class Feed:
    """Counts without an end, and what a turn needs besides.

    Attributes:
        counts: of one batch after the other.
        settle: waits for what is under way.
        report: figures of the time since it was last called.
        rest: gives back what others need while it waits.
    """

    counts: Iterator[int]
    settle: Callable[[], object] = dict
    report: Callable[[], Figures] = dict
    rest: Callable[[], object] = dict

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self.counts)


class Runner:
    """One feed in a process of its own.

    Args:
        name: for messages.
        opener: called with `arguments` in the new process; the context of a `Feed`.
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
        opener: Callable[..., AbstractContextManager[Feed]],
        arguments: tuple[Any, ...],
        cores: set[int] | None,
        deadline: float = DEADLINE,
        ahead: int = AHEAD,
    ) -> None:
        self.name, self.deadline, self._ahead = name, deadline, ahead
        self.reports: list[Figures] = []
        self.pid: int | None = None
        self._opened = (opener, arguments)
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, _prepare, (cores,))

    def start(self) -> None:
        """Begins the process, and waits until its first batches have come; ChildError where they do
        not."""
        self.pid = self._answer(DEADLINE, os.getpid)
        self._answer(self.deadline, _open, *self._opened, self._ahead)

    def turn(self, seconds: float) -> float:
        """Counts per second of one turn of about so many seconds; ChildError where it fails."""
        given = seconds, self._ahead
        count, elapsed, report = self._answer(seconds + self.deadline, _turn, *given)
        self.reports.append(report)
        return count / elapsed

    def end(self) -> None:
        """Kills the process. May be called again, at any time."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._pool.shutdown()

    def _answer(self, seconds: float, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._pool.submit(action, *arguments).result(seconds)
        except TimeoutError:
            raise ChildError(f"did not answer within {seconds:.0f} s") from None
        except BrokenProcessPool:
            raise ChildError("its process died") from None
        except Exception as error:  # whatever a feed raises, the others are still to be timed
            raise ChildError(f"{type(error).__name__}: {error}") from None


def race(
    runners: list[Runner], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, Figures], dict[str, str]]:
    """Counts per second of every turn, medians of the figures, and what failed: name -> reason;
    that has no times.

    The runners take turns in an order shuffled anew each round, so that whatever disturbs the
    machine for a while disturbs all alike. All of them are ended, whatever happens.

    Args:
        runners: not yet started. They are started one after the other, so that nothing else delays
            a first batch, and for those that a device's memory does not hold at the same time.
        rounds: turns of each.
        seconds: of a turn.
    """
    from bench.timing import schedule  # not in the processes of feeds: it imports torch

    rates: dict[str, list[float]] = {runner.name: [] for runner in runners}
    failures: dict[str, str] = {}
    turns = [[(runner, None) for runner in runners]]
    turns += [
        [(runner, rates[runner.name]) for runner in order]
        for order in schedule(dict.fromkeys(runners, rounds))
    ]
    try:
        for runner, found in itertools.chain.from_iterable(turns):
            if runner.name in failures:
                continue
            try:
                runner.start() if found is None else found.append(runner.turn(seconds))
            except ChildError as error:
                failures[runner.name] = str(error)
                runner.end()
    finally:
        for runner in runners:
            runner.end()
    figures = {}
    for runner in runners:
        names = dict.fromkeys(name for report in runner.reports for name in report)
        figures[runner.name] = {
            name: statistics.median(report[name] for report in runner.reports) for name in names
        }
    return {name: found for name, found in rates.items() if name not in failures}, figures, failures


# What this process has opened: a context that nothing refers to would be closed.
_OPENED = contextlib.ExitStack()
_FEED: list[Feed] = []


def _prepare(cores: set[int] | None) -> None:
    lifetime.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C
    if cores is not None:
        os.sched_setaffinity(0, cores)


def _open(opener: Callable, arguments: tuple[Any, ...], ahead: int) -> None:
    _FEED.append(_OPENED.enter_context(opener(*arguments)))  # until the process is killed
    _timed(_FEED[0], 0.0, ahead)


def _turn(seconds: float, ahead: int) -> tuple[int, float, Figures]:
    return _timed(_FEED[0], seconds, ahead)


def _timed(feed: Feed, seconds: float, ahead: int) -> tuple[int, float, Figures]:
    """(count, seconds, figures), once nothing is left to do. An even number of batches, because two
    workers finish them in pairs."""
    for _ in range(ahead):
        next(feed)
    feed.settle()
    feed.report()
    total, number, elapsed, start = 0, 0, 0.0, time.perf_counter()
    while number < FEWEST or number % 2 or elapsed < seconds:
        total += next(feed)
        number += 1
        elapsed = time.perf_counter() - start
    feed.settle()
    elapsed = time.perf_counter() - start
    figures = feed.report()
    feed.rest()
    time.sleep(ahead * elapsed / number)
    return total, elapsed, figures
