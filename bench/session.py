"""One run of a suite that can be resumed: its device and time, what is finished, where rows go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from bench import exits, results, sources
from bench.cli import Option
from bench.devices import Device
from bench.results import Row
from bench.state import Journal

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """The options that suites share."""

    out: Annotated[
        Path | None,
        Option("JSON Lines file. Default: the device's in bench/results, none for --quick."),
    ] = None
    quick: Annotated[bool, Option("A look at a few cases, in little time.")] = False
    minutes: Annotated[
        float | None,
        Option("At most about so long; what is most important comes first, the rest is named."),
    ] = None


@dataclass(frozen=True)
class Given(Output):
    """The options that suites share which can be resumed."""

    device: Annotated[str, Option("cpu or cuda.")] = "cpu"
    resume: Annotated[
        bool, Option("Leave out groups of rows that the file holds, of these sources and device.")
    ] = False
    journal: Annotated[
        Path | None,
        Option(f"File that survives a crash; exit status {exits.UNFINISHED} if time was up first."),
    ] = None
    command: Annotated[str | None, Option("What the rows call the command.")] = None


@dataclass(frozen=True)
class Chosen:
    """The options of suites that call peers; what is not given is the suite's choice."""

    shapes: Annotated[str | None, Option("N x D of the views, such as 256x8192,512x8192.")] = None
    dtypes: Annotated[
        str | None,
        Option(
            "Of fp32, tf32, bf16-autocast, bf16-inputs; bf16 stands for both. On cuda also "
            "fp16-inputs."
        ),
    ] = None
    peers: Annotated[str | None, Option("Names, comma-separated, or 'all'.")] = None


class Session:
    """See the module.

    Args:
        device: that is measured.
        given: options.

    Attributes:
        out: file of the rows; None for nowhere.
        origin: provenance of the rows.
        measured: number of cases that have rows.
        left: cases for which there was no time.
        failures: what makes the run fail, with reasons.
    """

    def __init__(self, device: Device, given: Output) -> None:
        given = given if isinstance(given, Given) else Given(**vars(given))
        self.device, self.given = device, given
        self.begun = time.monotonic()
        self.out = given.out
        if self.out is None and not given.quick:
            self.out = results.default_file(device.slug)
        self.origin = device.origin() | {"sources": sources.fingerprint()}
        if given.command is not None:
            self.origin["command"] = given.command
        self.journal = Journal(given.journal)
        self.measured = 0
        self.left: list[str] = []
        self.failures: dict[str, str] = {}

    def announce(self) -> None:
        """Prints what is measured."""
        origin = self.origin
        print(
            f"{origin.get('gpu', origin['cpu'])}, {origin['cores']} cores, "
            f"torch {origin['torch']}, kernels {origin['instruction_set']}, "
            f"load {origin['load_average']}, commit {origin['commit']}",
            flush=True,
        )

    def todo(
        self,
        cases: Iterable[T],
        group: Callable[[T], tuple],
        peers: Callable[[T], Iterable[str]] = lambda case: (),
    ) -> list[T]:
        """The cases whose group of rows the file does not hold, or not of all `peers`, if the run
        is resumed."""
        held: dict[tuple, set[str | None]] = {}
        if self.given.resume and self.out is not None:
            for row in results.read(self.out):
                if all(
                    row["provenance"].get(k) == self.origin.get(k) for k in self.device.identity
                ):
                    held.setdefault(results.group(row), set()).add(row.get("peer"))
        return [
            case
            for case in cases
            if group(case) not in held or not held[group(case)].issuperset(peers(case))
        ]

    def in_time(
        self,
        cases: Iterable[T],
        seconds: Callable[[T], float] = lambda case: 0.0,
        alike: Callable[[T], Hashable] = str,
    ) -> Iterator[T]:
        """The cases for which there is time, going by what each takes, or the longest so far of
        those that are `alike`; the others are left."""
        longest: dict[Hashable, float] = {}
        for case in cases:
            now, like = time.monotonic(), alike(case)
            needed = max(seconds(case), longest.get(like, 0.0))
            most = math.inf if self.given.minutes is None else 60 * self.given.minutes
            if not now - self.begun + needed <= most:
                self.left.append(str(case))
                continue
            yield case
            self.measured += 1
            longest[like] = max(needed, time.monotonic() - now)

    def keep(self, rows: Sequence[Row]) -> list[Row]:
        """Writes and prints the rows of whole groups, with their provenance."""
        rows = [row | {"provenance": self.origin} for row in rows]
        if self.out is not None and rows:
            results.merge(self.out, rows)
        for row in rows:
            print(results.line(row), flush=True)
        return rows

    def named(self, cases: Iterable[T]) -> Iterator[T]:
        """The cases for which there is time, in the journal by their names while they are measured;
        one that ended an earlier process is a failure."""
        for case in self.in_time(cases, lambda case: case.seconds):
            if case.name in self.journal.lost:
                self.failures[case.name] = self.journal.lost[case.name]
                continue
            with self.journal.entry(case.name):
                yield case

    def end(self) -> int:
        """Prints what was done; the exit status."""
        if self.left:
            limit = f"{self.given.minutes:g} minutes"
            print(f"left out, as beyond {limit}: {', '.join(self.left)}", flush=True)
        print(f"{self.measured} measured, {len(self.left)} left", flush=True)
        for name, reason in self.failures.items():
            print(f"failed: {name}: {reason}", flush=True)
        if self.out is not None and self.out.exists():
            print(f"rows are in {self.out}; `python -m bench report` makes the tables")
        if self.left and self.given.journal is not None:
            return exits.UNFINISHED
        return exits.FAILED if self.failures else exits.COMPLETE
