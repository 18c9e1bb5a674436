"""Estimate how long a group of peers will take from the groups before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bench.grids import Case, Shape
from bench.peers import Peer

MARGIN = 1.2  # for what the scaling misses


class Pace:
    """Calls of earlier groups, scaled by N D^2: what a matrix of D x D costs, which is what most
    peers build and nearly all of the time of a group of large D. With a guess, on top of them the
    most that checks and compilation have taken.

    Args:
        calls: how often a call of so many seconds is timed.
        guess: seconds of everything but calls, without peers that compile and with them.
    """

    def __init__(self, calls: Callable[[float], int], guess: tuple[float, float] | None) -> None:
        self._calls, self._learns = calls, guess is not None
        self._rest = list(guess or (0.0, 0.0))
        self._seen: dict[str, list[tuple[Shape, float]]] = {}

    def add(self, case: Case, seconds: dict[Peer, float], whole: float) -> None:
        """Seconds of one call of each peer, and of the whole group."""
        for peer, each in seconds.items():
            self._seen.setdefault(peer.name, []).append(((case.n, case.d), each))
        rest = whole - sum(each * (1 + self._calls(each)) for each in seconds.values())
        compiles = any(peer.compiles for peer in seconds)
        if self._learns:
            self._rest[compiles] = max(self._rest[compiles], rest)

    def seconds(self, case: Case, peers: Iterable[Peer]) -> float:
        """Of a whole group; calls of peers that have not been timed yet count as nothing."""
        peers = list(peers)
        rest = self._rest[any(peer.compiles for peer in peers)]
        return MARGIN * sum(self._of(peer, (case.n, case.d)) for peer in peers) + rest

    def _of(self, peer: Peer, shape: Shape) -> float:
        seen = self._seen.get(peer.name)
        if not seen:
            return 0.0
        n, d = shape
        (n0, d0), before = min(seen, key=lambda entry: abs(math.log(entry[0][1] / d)))
        call = before * n * d**2 / (n0 * d0**2)
        return call * (1 + self._calls(call))
