"""The suites under pytest-benchmark: measured by their own method, handed over sample by sample.

pytest-benchmark times one test after the other; our numbers come from implementations that take
turns. So each group is measured once, by its suite, and every test then replays the samples of its
implementation: its timer is a `Replay`, its function does nothing. Reports, files and comparisons
of pytest-benchmark then show these samples and no others.

A suite is one module here, found by being in this folder. It defines `groups(choice)`, the
implementations of every group by the group's name, or ValueError for options that it does not
understand; and `measure(choice, group, peers)`, a `Timed` for each of these implementations.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from bench.results import rounded
from bench.timing import percentile


@dataclass(frozen=True)
class Choice:
    """What the options of pytest say, as text; None where they say nothing."""

    device: str = "cpu"
    dtypes: str | None = None
    shapes: str | None = None
    peers: str | None = None


@dataclass
class Timed:
    """What became of one implementation of a group.

    Attributes:
        samples: seconds.
        extra: told beside the samples: provenance, source, floor, whatever the suite knows.
        problem: why it must not be timed: a wrong result, an exception.
        unavailable: why it cannot run here.
    """

    samples: Sequence[float] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    unavailable: str | None = None

    def told(self) -> dict[str, Any]:
        """`extra` with the percentiles that our rows have, in milliseconds."""
        names = {"median_ms": 50, "p20_ms": 20, "p80_ms": 80}
        found = {n: rounded(percentile(self.samples, q) * 1e3) for n, q in names.items()}
        return found | self.extra


class Replay:
    """A timer whose n-th pair of calls is as far apart as the n-th sample that was loaded.

    A pair begins at 0, so that the difference is the sample itself, to the last bit.
    """

    __name__ = "replay"

    def __init__(self) -> None:
        self._times: Iterator[float] = iter(())

    def load(self, samples: Sequence[float]) -> None:
        """These samples, in seconds, come next."""
        self._times = iter([time for sample in samples for time in (0.0, sample)])

    def __call__(self) -> float:
        """RuntimeError when all samples have been replayed."""
        try:
            return next(self._times)
        except StopIteration:
            raise RuntimeError("every recorded sample has been replayed") from None


def discover() -> dict[str, ModuleType]:
    """All suites that can be replayed, by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def nothing() -> None:
    """What pytest-benchmark calls between the two times of a sample."""
