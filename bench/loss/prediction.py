"""How long a group of peers will take, going by the groups before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bench.loss.grid import Shape
from bench.peers import Peer

MARGIN = 1.2  # for the float64 truths, and for what the scaling misses


class Prediction:
    """Calls of earlier groups, scaled by N D^2: what a matrix of D x D costs, which is what most
    peers build and nearly all of the time of a group of large D."""

    def __init__(self, calls: Callable[[float], int]) -> None:
        """calls: how often a call of so many seconds is timed."""
        self._calls = calls
        self._seen: dict[str, list[tuple[Shape, float]]] = {}

    def add(self, shape: Shape, seconds: dict[Peer, float]) -> None:
        """Seconds of one call of each peer at a shape."""
        for peer, each in seconds.items():
            self._seen.setdefault(peer.name, []).append((shape, each))

    def seconds(self, peers: Iterable[Peer], shape: Shape) -> float:
        """Of a whole group; peers that have not been timed yet count as nothing."""
        return MARGIN * sum(self._of(peer, shape) for peer in peers)

    def _of(self, peer: Peer, shape: Shape) -> float:
        seen = self._seen.get(peer.name)
        if not seen:
            return 0.0
        n, d = shape
        (n0, d0), before = min(seen, key=lambda entry: abs(math.log(entry[0][1] / d)))
        call = before * n * d**2 / (n0 * d0**2)
        return call * (1 + self._calls(call))
