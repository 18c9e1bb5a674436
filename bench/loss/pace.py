"""Estimate how long a group of peers will take from the groups before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bench.grids import Case
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
        self._calls, self._rest = calls, list(guess or ())
        self._seen: dict[str, list[tuple[Case, float]]] = {}

    def add(self, case: Case, seconds: dict[Peer, float], whole: float) -> None:
        """Seconds of one call of each peer, and of the whole group."""
        for peer, each in seconds.items():
            self._seen.setdefault(peer.name, []).append((case, each))
        if self._rest:
            compiles = any(peer.compiles for peer in seconds)
            rest = whole - sum(map(self._all_calls, seconds.values()))
            self._rest[compiles] = max(self._rest[compiles], rest)

    def seconds(self, case: Case, peers: Iterable[Peer]) -> float:
        """Of a whole group; calls of peers that have not been timed yet count as nothing."""
        peers = list(peers)
        rest = self._rest[any(peer.compiles for peer in peers)] if self._rest else 0.0
        return MARGIN * sum(self._of(peer, case) for peer in peers) + rest

    def _all_calls(self, seconds: float) -> float:
        return seconds * (1 + self._calls(seconds))

    def _of(self, peer: Peer, case: Case) -> float:
        if peer.name not in self._seen:
            return 0.0
        near, before = min(
            self._seen[peer.name], key=lambda seen: abs(math.log(seen[0].d / case.d))
        )
        return self._all_calls(before * case.n * case.d**2 / (near.n * near.d**2))
