"""The loss across two processes of this machine: one group for each shape and dtype."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import provenance
from bench.inputs import VARIANTS, parse_shapes
from bench.ranks import implementations, measurement, processes
from bench.replay import Choice, Timed
from bench.suites import distributed as suite
from bench.suites.all import among
from bench.timing import Budget

RANKS = 2
TOLD = ("source", "layout", "auto", "threads", "counted_bytes", "wire_bytes")

provenance_of_all = functools.cache(provenance.collect)


def groups(choice: Choice) -> dict[str, list[str]]:
    """Implementations by shape and dtype; none on a GPU."""
    if choice.device != "cpu":
        return {}
    known = implementations.discover()
    names = list(known) if choice.peers is None else among(choice.peers, list(known))
    precisions = list(implementations.PRECISION)
    dtypes = precisions if choice.dtypes is None else among(choice.dtypes, precisions)
    shapes = parse_shapes(choice.shapes or suite.QUICK_SHAPES)
    return {
        f"{n}x{d} {dtype}, {RANKS} ranks": [name for name in names if dtype in known[name].dtypes]
        for (n, d), dtype in itertools.product(shapes, dtypes)
    }


def measure(choice: Choice, group: str, peers: Sequence[str]) -> dict[str, Timed]:
    """Starts the processes, which check every implementation and time in turns those that are
    right."""
    shape, dtype = group.split(",")[0].split()
    ((n, d),) = parse_shapes(shape)
    known = implementations.discover()
    reasons = {name: suite.does_not_fit(known[name], n, d, RANKS) for name in peers}
    found = {name: Timed(unavailable=reason) for name, reason in reasons.items() if reason}
    usable = tuple(name for name in peers if name not in found)
    if not usable:
        return found
    with tempfile.TemporaryDirectory() as folder:
        data, written = Path(folder) / "embeddings.pt", Path(folder) / "results.json"
        measurement.prepare(n, d, data)
        budget = Budget(suite.QUICK_SECONDS, None, suite.FEWEST, suite.MOST)
        task = measurement.Task(n, d, (VARIANTS[dtype],), usable, budget, data, written)
        problem = "was not reached"
        try:
            processes.run(measurement.measure, RANKS, (task,), suite.DEADLINE)
        except (RuntimeError, TimeoutError) as error:
            problem = str(error)
        told = json.loads(written.read_text()) if written.exists() else {}
    for row, samples in zip(told.get("rows", ()), told.get("samples", ()), strict=True):
        extra = {key: row[key] for key in TOLD} | {"provenance": provenance_of_all()}
        found[row["peer"]] = Timed(samples, extra)
    for name in usable:
        if name not in found:
            found[name] = Timed(problem=told.get("failures", {}).get(name, problem))
    return found
