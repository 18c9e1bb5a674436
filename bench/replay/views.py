"""Loaders of two views: one group for each case. A sample is the time of one image (or, for the
kernel alone, of one view) in a turn of a loader: seconds of the turn over images."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import provenance
from bench.replay import Choice, Timed
from bench.suites import views as suite
from bench.suites.all import among
from bench.views import feeds, images, turns

CASES = ("arrays-32", "kernel")
ROUNDS = 5

provenance_of_all = functools.cache(provenance.collect)


def groups(choice: Choice) -> dict[str, list[str]]:
    """Feeds by case; none on a GPU (`python -m bench views --device cuda`)."""
    if choice.device != "cpu":
        return {}
    found = {}
    for name in CASES:
        known = feeds.CASES[name].feeds
        names = list(known) if choice.peers is None else among(choice.peers, known)
        found[f"{name}, seconds an image"] = names
    return {group: names for group, names in found.items() if names}


def measure(choice: Choice, group: str, peers: Sequence[str]) -> dict[str, Timed]:
    """Loaders in turns; ours is held against torchvision's functions in its first batch."""
    case = feeds.CASES[group.split(",")[0]]
    found = {name: Timed(unavailable=feeds.unavailable(name)) for name in peers}
    usable = [name for name in peers if found[name].unavailable is None]
    with contextlib.ExitStack() as stack:
        folder = None
        if case.files:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photographs"
            images.photographs(folder, suite.QUICK_DISTINCT)
        rates, failed = suite.race(
            case, usable, folder, suite.QUICK_SECONDS, ROUNDS, turns.DEADLINE
        )
    for name, each in rates.items():
        extra = {"source": feeds.version(name), "unit": case.unit}
        found[name] = Timed([1 / r for r in each], extra | {"provenance": provenance_of_all()})
    return found | {name: Timed(problem=reason) for name, reason in failed.items()}
