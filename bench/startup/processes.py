"""Fresh processes in turns: which implementations take part in a stage, and what they report."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import lifetime
from bench.inputs import Variant
from bench.lifetime import ChildError
from bench.peers import discover
from bench.startup.child import COMPILED
from bench.timing import schedule

REPEATS, COMPILE_REPEATS, FEWEST = 5, 3, 3
DEADLINE = 300.0  # seconds, for one process
ARCHITECTURE = 90  # of the Triton kernels that are compiled where there is no GPU

TORCH = "torch"
# What one imports to get the loss, for every implementation that is a package.
MODULES = {
    "ours": "barlow_fast",
    "lightly": "lightly.loss",
    "monai": "monai.losses",
    "stable-pretraining": "stable_pretraining.losses",
    "catalyst": "catalyst.contrib.losses",
}
COMPILED_OFFICIAL = f"official{COMPILED}"
PEERS = ("ours", "official", "gram-plain", *list(MODULES)[1:], COMPILED_OFFICIAL)
# Ours compiles nothing on a CPU; on a GPU its kernels are compiled when first called.
COMPILING = {"cpu": (COMPILED_OFFICIAL,), "cuda": (COMPILED_OFFICIAL, "ours")}


class Stage(NamedTuple):
    """Cases that the same processes measure.

    Attributes:
        name: 'process' for imports and calls, 'kernels' for Triton's compiler alone, 'compiler'
            for first calls with compilers' caches empty and then filled.
        cases: that it measures.
        seconds: that one visit takes on two cores, roughly, to know what fits into `--minutes`.
        repeats: visits of each implementation. The second process of a compiler is quick.
    """

    name: str
    cases: tuple[str, ...]
    seconds: float
    repeats: int


PROCESS = Stage("process", ("import", "first-call", "second-call"), 4.0, REPEATS)
KERNELS = Stage("kernels", ("triton-kernels",), 8.0, COMPILE_REPEATS)
COMPILER = Stage("compiler", ("compiler-cold", "compiler-warm"), 40.0, COMPILE_REPEATS)
STAGES = (PROCESS, KERNELS, COMPILER)
CASES = tuple(case for stage in STAGES for case in stage.cases)


@dataclass(frozen=True)
class Key:
    """What one list of samples is of: the fields of its row."""

    case: str
    peer: str
    n: int = 0
    d: int = 0
    dtype: str = ""
    kernels: int = 0


Samples = dict[Key, list[float]]
Grid = Sequence[tuple[tuple[int, int], Variant]]


@dataclass(frozen=True)
class Visit:
    """One implementation of PEERS at one shape and dtype, in one stage."""

    stage: str
    peer: str
    n: int
    d: int
    dtype: str


def measure(
    kind: str,
    cases: Sequence[str],
    names: Sequence[str],
    grid: Grid,
    say: Callable[[str], None],
    repeats: int | None = None,
    end: float | None = None,
    deadline: float = DEADLINE,
    warm_up: bool = True,
) -> Iterator[tuple[Samples, dict[str, str]]]:
    """(seconds of every sample, failures) of each stage that `cases` need. What cannot run here is
    reported through `say` and has neither.

    Args:
        kind: of the device: 'cpu' or 'cuda'.
        cases: of CASES.
        names: of PEERS.
        grid: ((N, D), variant) of the calls.
        say: called with a line of text.
        repeats: samples of each; None for the usual number.
        end: time.monotonic() until which all should be done, going by what processes usually take:
            the first stage then has fewer samples, FEWEST at least, and a later one that would take
            longer is left out. None for no limit.
        deadline: seconds after which a process is ended.
        warm_up: begin with one process of each that does not count, so that all files have been
            read, and byte code written, before the first sample.
    """
    begun = False
    for stage in STAGES:
        visits = visits_of(stage, kind, cases, names, grid, say)
        if not visits:
            continue
        count, warming = repeats or stage.repeats, warm_up and stage is PROCESS
        left = math.inf if end is None else end - time.monotonic()
        turn = stage.seconds * len(visits)
        if stage is PROCESS and repeats is None:
            count = int(max(min(count, left / turn - warming), FEWEST))
        if begun and turn * (count + warming) > left:
            who = ", ".join(sorted({visit.peer for visit in visits}))
            say(f"left out, about {turn * (count + warming):.0f} s: {stage.name} of {who}")
            continue
        begun = True
        for visit in visits if warming else ():
            with contextlib.suppress(ChildError):  # it is reported when it counts
                start(visit, kind, deadline, calls=False)
        samples, failures = _samples(visits, count, kind, deadline)
        kept = (key for key in samples if key.case in cases and key.peer not in failures)
        yield {key: samples[key] for key in kept}, failures


def _samples(
    visits: Sequence[Visit], count: int, kind: str, deadline: float
) -> tuple[Samples, dict[str, str]]:
    """The visits in turns, each `count` times; one that fails is not made again."""
    samples: Samples = {}
    failures: dict[str, str] = {}
    turns = schedule({str(index): count for index in range(len(visits))})
    for visit in (visits[int(index)] for index in itertools.chain.from_iterable(turns)):
        if visit.peer in failures:
            continue
        try:
            for key, elapsed in sample(visit, kind, deadline):
                samples.setdefault(key, []).append(elapsed)
        except ChildError as error:
            failures[visit.peer] = str(error)
    return samples, failures


def visits_of(
    stage: Stage,
    kind: str,
    cases: Sequence[str],
    names: Sequence[str],
    grid: Grid,
    say: Callable[[str], None],
) -> list[Visit]:
    """The visits of a stage on a kind of device; reports what cannot run, and why."""
    if not set(stage.cases) & set(cases):
        return []
    if stage is KERNELS:
        # Where they are compiled when first called, that is the stage 'compiler'.
        if "ours" not in names or "ours" in COMPILING[kind]:
            return []
        if importlib.util.find_spec("triton") is None:
            say("the Triton kernels are left out: triton is not installed")
            return []
        shapes = dict.fromkeys(shape for shape, _ in grid)
        return [Visit(stage.name, "ours", n, d, f"sm_{ARCHITECTURE}") for n, d in shapes]
    usable = []
    for name in names:
        if not (name in COMPILING[kind] if stage is COMPILER else name != COMPILED_OFFICIAL):
            continue
        reason = unavailable(name, kind)
        if reason is None:
            usable.append(name)
        elif stage is PROCESS or name == COMPILED_OFFICIAL:
            say(f"{name} is left out: {reason}")
    return [Visit(stage.name, name, n, d, v.name) for name in usable for (n, d), v in grid]


def unavailable(name: str, kind: str) -> str | None:
    """None, or the reason why an implementation cannot run here."""
    peer = discover(kind).get(name)
    return f"there is no such peer for {kind}" if peer is None else peer.unavailable()


def sample(visit: Visit, kind: str, deadline: float) -> Iterator[tuple[Key, float]]:
    """What one visit measures. A compiler's starts two processes: the second finds the code that
    the first has left on disk. ChildError where one fails, or its result is wrong."""
    shape = visit.n, visit.d, visit.dtype
    if visit.stage == "process":
        found = start(visit, kind, deadline)
        yield Key("import", TORCH), found["torch"]
        if "import" in found:
            yield Key("import", visit.peer), found["import"]
        yield Key("first-call", visit.peer, *shape), found["first"]
        yield Key("second-call", visit.peer, *shape), found["second"]
        return
    with tempfile.TemporaryDirectory() as folder:
        found = start(visit, kind, deadline, folder)
        if visit.stage == "kernels":
            yield Key("triton-kernels", visit.peer, *shape, found["count"]), found["kernels"]
            return
        yield Key("compiler-cold", visit.peer, *shape), found["first"]
        found = start(visit, kind, deadline, folder)
        yield Key("compiler-warm", visit.peer, *shape), found["first"]


def start(
    visit: Visit, kind: str, deadline: float, cache: str | None = None, calls: bool = True
) -> dict[str, Any]:
    """What one fresh process measures; with `calls` off, imports alone. `cache` is the folder for
    what compilers keep on disk, by default the user's own.

    Raises:
        ChildError: it fails, takes more than `deadline` seconds, or its result is wrong.
    """
    task: dict[str, Any] = {"n": visit.n, "d": visit.d}
    if visit.stage == "kernels":
        task["architecture"] = ARCHITECTURE
    else:
        task |= {"module": MODULES.get(visit.peer), "dtype": visit.dtype, "device": kind}
        task |= {"peer": visit.peer} if calls else {}
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    where = {name: str(Path(cache) / part) for name, part in caches.items()} if cache else {}
    found = lifetime.result_of(["-m", "bench.startup.child", json.dumps(task)], deadline, where)
    if found.get("problem"):
        raise ChildError(found["problem"])
    return found
