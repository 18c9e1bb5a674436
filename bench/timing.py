"""How time is taken: candidates in turns, each as often as its budget allows; percentiles."""

from __future__ import annotations

import contextlib
import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from bench.results import rounded

T = TypeVar("T")
FEWEST, MOST, FEW = 5, 100, 3
WARM_UPS = 2  # after the first call, which may compile


class NoGraphError(Exception):
    """A device or a peer that cannot run from a captured graph, with the reason."""


@dataclass(frozen=True)
class Budget:
    """How often to time: `repeats` if given, else for `seconds`, from `fewest` to `most` times;
    FEW times where a call takes `few_from` seconds: those vary little."""

    seconds: float = 1.0
    repeats: int | None = None
    fewest: int = FEWEST
    most: int = MOST
    few_from: float = math.inf

    def count(self, estimate: float) -> int:
        """Repeats of a candidate that takes `estimate` seconds."""
        if self.repeats is not None:
            return self.repeats
        if estimate >= self.few_from:
            return FEW
        return min(max(round(self.seconds / max(estimate, 1e-6)), self.fewest), self.most)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Inside, no garbage collection is part of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def warm_up(action: Callable[[], float], enough: float) -> float:
    """The last of a few calls in seconds; a call of more than `enough` seconds is the last."""
    for _ in range(WARM_UPS):
        elapsed = action()
        if elapsed >= enough:
            break
    return elapsed


def schedule(counts: dict[T, int], seed: int = 0) -> list[list[T]]:
    """Rounds in which candidates take turns, in an order shuffled anew each round.

    The candidate with the largest count is in every round; one with fewer repeats is in evenly
    spaced rounds, so that whatever disturbs the machine for a while disturbs all of them alike.
    """
    generator = random.Random(seed)
    rounds = max(counts.values(), default=0)
    result = []
    for index in range(rounds):
        names = [
            name
            for name, count in counts.items()
            if (index + 1) * count // rounds > index * count // rounds
        ]
        generator.shuffle(names)
        result.append(names)
    return result


def interleave(
    actions: dict[str, Callable[[], float]], counts: dict[str, int]
) -> dict[str, list[float]]:
    """Seconds of every call. An action times itself: choosing its input is not part of the time."""
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for names in schedule(counts):
        for name in names:
            samples[name].append(actions[name]())
    return samples


def columns(samples: Sequence[float], unit: str, scale: float = 1.0) -> dict[str, float]:
    """Median, p20 and p80 of a row of results."""
    return {
        f"{name}_{unit}": rounded(scale * percentile(samples, q))
        for name, q in (("median", 50), ("p20", 20), ("p80", 80))
    }


def percentile(samples: Sequence[float], q: float) -> float:
    """The q-th percentile, linear between the nearest samples."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q / 100).item()
