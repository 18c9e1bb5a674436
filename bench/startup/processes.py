"""Fresh processes in turns: which implementations take part in a stage, and what they report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import lifetime, provenance
from bench.inputs import Variant
from bench.lifetime import ChildError
from bench.peers import discover
from bench.startup.child import COMPILED
from bench.timing import schedule

DEADLINE = 300.0  # seconds, for one process
ARCHITECTURE = "sm_90"  # of the Triton kernels that are compiled where there is no GPU

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
EAGER = ("ours", "official", "gram-plain", *list(MODULES)[1:])
PEERS = (*EAGER, COMPILED_OFFICIAL)


class Key(NamedTuple):
    """What one list of samples is of: the fields of its row."""

    case: str
    peer: str
    n: int = 0
    d: int = 0
    dtype: str = ""
    kernels: int = 0


class Visit(NamedTuple):
    """One implementation of PEERS at one shape and dtype on a kind of device."""

    peer: str
    n: int
    d: int
    dtype: str
    kind: str

    def key(self, case: str, kernels: int = 0) -> Key:
        """Of a sample."""
        return Key(case, self.peer, self.n, self.d, self.dtype, kernels)

    def start(self, deadline: float, cache: str | None = None) -> dict[str, Any]:
        """What one fresh process measures. `cache` is the folder for what compilers keep on disk,
        by default the user's own.

        Raises:
            ChildError: it fails, takes more than `deadline` seconds, or its result is wrong.
        """
        task = self._asdict() | {"module": MODULES.get(self.peer)}
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        where = {name: str(Path(cache) / part) for name, part in caches.items()} if cache else {}
        found = lifetime.result_of(["-m", "bench.startup.child", json.dumps(task)], deadline, where)
        if found.get("problem"):
            raise ChildError(found["problem"])
        return found


Sample = Iterator[tuple[Key, float]]
Samples = dict[Key, list[float]]
Grid = Sequence[tuple[tuple[int, int], Variant]]


def _calls(visit: Visit, deadline: float) -> Sample:
    found = visit.start(deadline)
    yield Key("import", TORCH), found["torch"]
    if "import" in found:
        yield Key("import", visit.peer), found["import"]
    yield visit.key("first-call"), found["first"]
    yield visit.key("second-call"), found["second"]


def _kernels(visit: Visit, deadline: float) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        found = visit.start(deadline, folder)
    yield visit.key("triton-kernels", found["count"]), found["kernels"]


def _compiler(visit: Visit, deadline: float) -> Sample:
    """Two processes: the second finds the code that the first has left on disk."""
    with tempfile.TemporaryDirectory() as folder:
        for case in ("compiler-cold", "compiler-warm"):
            yield visit.key(case), visit.start(deadline, folder)["first"]


class Stage(NamedTuple):
    """Cases that the same processes measure.

    Attributes:
        cases: that it measures.
        peers: that take part, by the kind of the device. Ours compiles nothing on a CPU; on a GPU
            its kernels are compiled when first called.
        sample: (visit, deadline) -> its samples; ChildError where a process fails.
        repeats: visits of each implementation.
        warm_ups: visits before them that do not count: then all files have been read, and byte code
            is written.
        dtype: instead of those of the grid.
    """

    cases: tuple[str, ...]
    peers: dict[str, tuple[str, ...]]
    sample: Callable[[Visit, float], Sample]
    repeats: int
    warm_ups: int = 0
    dtype: str = ""

    def __str__(self) -> str:
        return ", ".join(self.cases)

    def visits(
        self, kind: str, names: Sequence[str], grid: Grid, say: Callable[[str], None]
    ) -> list[Visit]:
        """Those of `names` at each ((N, D), variant) of `grid`; `say` is called with a line for
        each that cannot run here."""
        usable = []
        for name in (each for each in names if each in self.peers[kind]):
            reason = self.unavailable(name, kind)
            if reason is None:
                usable.append(name)
            else:
                say(f"{self}: {name} is left out: {reason}")
        shapes = dict.fromkeys((*shape, self.dtype or variant.name) for shape, variant in grid)
        return [Visit(name, *shape, kind) for name in usable for shape in shapes]

    def unavailable(self, name: str, kind: str) -> str | None:
        """None, or the reason why an implementation cannot run here."""
        if self.dtype:
            return provenance.missing("triton")
        peer = discover(kind).get(name)
        return f"there is no such peer for {kind}" if peer is None else peer.unavailable()

    def measure(
        self, visits: Sequence[Visit], repeats: int | None, deadline: float
    ) -> tuple[Samples, dict[str, str]]:
        """(seconds of every sample, failures) of the visits in turns, each `repeats` times, by
        default as often as usual; one that fails has no samples and is not made again."""
        samples: Samples = {}
        failures: dict[str, str] = {}
        count = (repeats or self.repeats) + self.warm_ups
        for number, turns in enumerate(schedule(dict.fromkeys(visits, count))):
            for visit in (each for each in turns if each.peer not in failures):
                try:
                    for key, seconds in self.sample(visit, deadline):
                        if number >= self.warm_ups:
                            samples.setdefault(key, []).append(seconds)
                except ChildError as error:
                    failures[visit.peer] = str(error)
        return {key: each for key, each in samples.items() if key.peer not in failures}, failures


STAGES = (
    Stage(
        ("import", "first-call", "second-call"), dict.fromkeys(("cpu", "cuda"), EAGER), _calls,
        repeats=5, warm_ups=1,
    ),
    Stage(("triton-kernels",), {"cpu": ("ours",), "cuda": ()}, _kernels, 3, dtype=ARCHITECTURE),
    Stage(
        ("compiler-cold", "compiler-warm"),
        {"cpu": (COMPILED_OFFICIAL,), "cuda": (COMPILED_OFFICIAL, "ours")}, _compiler, 3,
    ),
)  # fmt: skip
CASES = tuple(case for stage in STAGES for case in stage.cases)
