"""Whole steps of pretraining: one group for each case. A sample is the time of one image in a turn
of a run: seconds of the turn over images."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from bench import devices
from bench.replay import Choice, Timed
from bench.suites import train as suite
from bench.suites.all import among
from bench.training import cases

ROUNDS = 5


def groups(choice: Choice) -> dict[str, list[str]]:
    """Runs of the quick case of a device."""
    names = list(cases.PEERS) if choice.peers is None else among(choice.peers, cases.PEERS)
    quick = cases.parse(None, choice.device, quick=True)
    return {f"{case.name}, seconds an image": names for case in quick if names}


@functools.cache
def origin(kind: str):
    """The provenance of a device."""
    return devices.choose(kind).origin()


def measure(choice: Choice, group: str, peers: Sequence[str]) -> dict[str, Timed]:
    """Runs in turns; the first loss of each is held against float64."""
    name = group.split(",")[0]
    (case,) = cases.parse(name, choice.device, quick=True)
    found = {peer: Timed(unavailable=cases.unavailable(peer, case)) for peer in peers}
    usable = [peer for peer in peers if found[peer].unavailable is None]
    with suite.image_files([case], suite.QUICK_DISTINCT) as folder:
        rates, failed, reports = suite.race(
            case, usable, choice.device, folder, suite.QUICK_SECONDS, ROUNDS
        )
    for peer, each in rates.items():
        row = suite.row(case, peer, each, reports[peer], choice.device)
        told = {key: row[key] for key in ("source", "n", "d", "dtype", *suite.SHARES)}
        extra = told | {"provenance": origin(choice.device)}
        found[peer] = Timed([1 / rate for rate in each], extra)
    return found | {peer: Timed(problem=reason) for peer, reason in failed.items()}
