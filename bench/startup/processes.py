"""Fresh processes in turns: which implementations take part in a stage, and what they report."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import lifetime
from bench.inputs import Variant
from bench.lifetime import ChildError
from bench.peers import discover
from bench.startup.child import COMPILED
from bench.timing import schedule

REPEATS, COMPILE_REPEATS, FEWEST = 5, 3, 3
DEADLINE = 300.0  # seconds, for one process
ARCHITECTURE = 90  # of the Triton kernels that are compiled where there is no GPU
# Roughly what one process takes on two cores, to know what fits into `--minutes`.
SECONDS_OF = {"process": 4.0, "kernels": 8.0, "compiler": 40.0}

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
CASES = (
    "import", "first-call", "second-call", "triton-kernels", "compiler-cold", "compiler-warm",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """What one list of samples is of: the fields of its row."""

    case: str
    peer: str
    n: int = 0
    d: int = 0
    dtype: str = ""


Samples = dict[Key, list[float]]


@dataclass(frozen=True)
class Visit:
    """One implementation at one shape and dtype, in one stage.

    Attributes:
        stage: 'process' for imports and calls, 'kernels' for Triton's compiler alone, 'compiler'
            for first calls with compilers' caches empty and then filled.
        peer: of PEERS.
    """

    stage: str
    peer: str
    n: int
    d: int
    dtype: str


def measure(
    kind: str,
    cases: Sequence[str],
    names: Sequence[str],
    grid: Sequence[tuple[tuple[int, int], Variant]],
    say: Callable[[str], None],
    repeats: int | None = None,
    end: float | None = None,
    deadline: float = DEADLINE,
    warm_up: bool = True,
) -> Iterator[tuple[Samples, int, dict[str, str]]]:
    """(seconds of every sample, kernels compiled, failures) of each stage that `cases` need.

    What cannot run here is reported through `say` and has neither samples nor a failure.

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
    for stage in SECONDS_OF:
        visits = visits_of(stage, kind, cases, names, grid, say)
        if not visits:
            continue
        count = repeats or (REPEATS if stage == "process" else COMPILE_REPEATS)
        warming = int(warm_up and stage == "process")
        # The second process of a compiler reads what the first has written, quickly.
        turn = SECONDS_OF[stage] * len(visits)
        if stage == "process" and end is not None and repeats is None:
            fitting = int((end - time.monotonic()) / turn) - warming
            count = max(min(count, fitting), FEWEST)
        seconds = turn * (count + warming)
        if begun and end is not None and time.monotonic() + seconds > end:
            left = ", ".join(sorted({visit.peer for visit in visits}))
            say(f"left out, about {seconds:.0f} s: {stage} of {left}")
            continue
        begun = True
        samples: Samples = {}
        failures: dict[str, str] = {}
        kernels: list[int] = []
        if warm_up and stage == "process":
            for visit in visits:
                with contextlib.suppress(ChildError):  # it is reported when it counts
                    start(visit, kind, deadline, calls=False)
        counts = {str(index): count for index in range(len(visits))}
        for index in itertools.chain.from_iterable(schedule(counts)):
            visit = visits[int(index)]
            if visit.peer in failures:
                continue
            try:
                for key, elapsed in sample(visit, kind, deadline, kernels):
                    samples.setdefault(key, []).append(elapsed)
            except ChildError as error:
                failures[visit.peer] = str(error)
        kept = {
            key: found
            for key, found in samples.items()
            if key.case in cases and key.peer not in failures
        }
        yield kept, max(kernels, default=0), failures


def visits_of(
    stage: str,
    kind: str,
    cases: Sequence[str],
    names: Sequence[str],
    grid: Sequence[tuple[tuple[int, int], Variant]],
    say: Callable[[str], None],
) -> list[Visit]:
    """The visits of a stage on a kind of device; reports what cannot run, and why."""
    if stage == "kernels":
        if "triton-kernels" not in cases or "ours" not in names or "ours" in COMPILING[kind]:
            return []  # where they are compiled when first called, that is the stage 'compiler'
        try:
            import triton  # noqa: F401
        except ImportError as error:
            say(f"the Triton kernels are left out: {error}")
            return []
        shapes = dict.fromkeys(shape for shape, _ in grid)
        return [Visit(stage, "ours", n, d, f"sm_{ARCHITECTURE}") for n, d in shapes]
    if stage == "compiler":
        needed = {"compiler-cold", "compiler-warm"}
        names = [name for name in names if name in COMPILING[kind]]
    else:
        needed = {"import", "first-call", "second-call"}
        names = [name for name in names if name != COMPILED_OFFICIAL]
    if not needed & set(cases):
        return []
    usable = []
    for name in names:
        reason = unavailable(name, kind)
        if reason is None:
            usable.append(name)
        elif stage == "process" or name == COMPILED_OFFICIAL:
            say(f"{name} is left out: {reason}")
    return [Visit(stage, name, n, d, v.name) for name in usable for (n, d), v in grid]


def unavailable(name: str, kind: str) -> str | None:
    """None, or the reason why an implementation cannot run here."""
    peer = discover(kind).get(name)
    return f"there is no such peer for {kind}" if peer is None else peer.unavailable()


def sample(
    visit: Visit, kind: str, deadline: float, kernels: list[int]
) -> Iterator[tuple[Key, float]]:
    """What one visit measures. A compiler's starts two processes: the second finds the code that
    the first has left on disk. Appends the number of compiled kernels to `kernels`.

    Raises:
        ChildError: a process fails, or its result is wrong.
    """
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
            kernels.append(found["count"])
            yield Key("triton-kernels", visit.peer, *shape), found["kernels"]
            return
        yield Key("compiler-cold", visit.peer, *shape), found["first"]
        found = start(visit, kind, deadline, folder)
        yield Key("compiler-warm", visit.peer, *shape), found["first"]


def start(
    visit: Visit, kind: str, deadline: float, cache: str | None = None, calls: bool = True
) -> dict[str, Any]:
    """What one fresh process measures; with `calls` off, imports alone.

    Args:
        visit: what it measures.
        kind: of the device.
        deadline: seconds after which it is ended.
        cache: folder for what compilers keep on disk; None for the user's own.
        calls: whether it calls the loss.

    Raises:
        ChildError: it fails, is too slow, or its result is wrong.
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
