"""Imports and first calls in fresh processes: a group for the imports, two for each shape and
dtype."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from bench import devices
from bench.inputs import parse_shapes, parse_variants
from bench.replay import Choice, Timed
from bench.startup import processes
from bench.startup.processes import COMPILED_OFFICIAL, MODULES, PEERS, TORCH, Key
from bench.suites import startup as suite
from bench.suites.all import among, known_dtypes


def groups(choice: Choice) -> dict[str, list[str]]:
    """Implementations by what is timed; compilers have no part here, they take minutes."""
    names = [name for name in chosen(choice) if processes.unavailable(name, choice.device) is None]
    found = {"import": [TORCH, *(name for name in names if name in MODULES)]} if names else {}
    for (n, d), variant in grid(choice) if names else ():
        for case in ("first-call", "second-call"):
            found[f"{case} {n}x{d} {variant.name}"] = names
    return found


def chosen(choice: Choice) -> list[str]:
    """Names of PEERS."""
    known = [name for name in PEERS if name != COMPILED_OFFICIAL]
    return known if choice.peers is None else among(choice.peers, known)


def grid(choice: Choice):
    """((N, D), variant) of the calls."""
    known = known_dtypes("startup", choice.device)
    dtypes = suite.DTYPES if choice.dtypes is None else ",".join(among(choice.dtypes, known))
    variants = devices.Cuda.variants if choice.device == "cuda" else devices.Cpu.variants
    shapes = parse_shapes(choice.shapes or suite.SHAPES)
    return list(itertools.product(shapes, parse_variants(dtypes, variants)))


@functools.cache
def everything(choice: Choice):
    """(samples by key, failures, provenance) of all groups: the same processes tell all of them."""
    samples: processes.Samples = {}
    failures: dict[str, str] = {}
    for found, _, failed in processes.measure(
        choice.device, suite.QUICK_CASES, chosen(choice), grid(choice), lambda text: None
    ):
        samples |= found
        failures |= failed
    return samples, failures, devices.choose(choice.device).origin()


def measure(choice: Choice, group: str, peers: Sequence[str]) -> dict[str, Timed]:
    """Processes in turns; the first result of each is held against float64."""
    samples, failures, origin = everything(choice)
    case, *rest = group.split()
    shape = ()
    if rest:
        ((n, d),) = parse_shapes(rest[0])
        shape = n, d, rest[1]
    found = {}
    for peer in peers:
        extra = {"source": suite.source(peer, choice.device), "provenance": origin}
        if peer in failures:
            found[peer] = Timed(problem=failures[peer])
        else:
            found[peer] = Timed(samples[Key(case, peer, *shape)], extra)
    return found
