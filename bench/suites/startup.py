"""Seconds from nothing to the first loss: imports, first calls, compilers. Each sample is a fresh
process (`bench/startup.py`), and the implementations take turns.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bench import cli, devices, lifetime, peers, provenance
from bench.cli import Option
from bench.inputs import Variant, parse_shapes, parse_variants
from bench.lifetime import ChildError
from bench.markdown import Column, joined, rate, reading, table_of, titled
from bench.results import Row, chosen, grouped, listed, ratio
from bench.session import Chosen, Output, Session
from bench.startup import COMPILED
from bench.timing import columns, schedule

SECTION = "Startup: imports, first calls, compilers"
CASES = {
    "import": "Import of torch, and what each package adds to it",
    "first-call": "First call",
    "second-call": "Second call",
    "triton-kernels": "Triton kernels, compiled ahead of time",
    "compiler-cold": "First call under torch.compile, nothing on disk",
    "compiler-warm": "First call under torch.compile, compiled code on disk",
}
SHAPES, DTYPES = "256x2048", "fp32"
QUICK_REPEATS = 2
QUICK_PEERS = ("ours", "official")
QUICK_CASES = ("import", "first-call", "second-call")
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
        found = lifetime.result_of(["-m", "bench.startup", json.dumps(task)], deadline, where)
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

    def visits(self, kind: str, names: Sequence[str], grid: Grid) -> list[Visit]:
        """Those of `names` that can run here, at each ((N, D), variant) of `grid`."""
        some = [name for name in names if name in self.peers[kind]]
        reasons = {name: self.unavailable(name, kind) for name in some}
        shapes = dict.fromkeys((*shape, self.dtype or variant.name) for shape, variant in grid)
        return [
            Visit(name, *shape, kind)
            for name in cli.usable(reasons, f"{self}: ")
            for shape in shapes
        ]

    def unavailable(self, name: str, kind: str) -> str | None:
        """None, or the reason why an implementation cannot run here."""
        if self.dtype:
            return provenance.missing("triton")
        peer = peers.discover(kind).get(name)
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


def command(
    given: Output,
    some: Chosen,
    cases: Annotated[str | None, Option(f"Of {', '.join(CASES)}. Default: all.")] = None,
    repeats: Annotated[
        int | None, Option("Processes of each, instead of 5, or 3 where a compiler runs.", least=1)
    ] = None,
    deadline: Annotated[float, Option("Seconds after which a process is ended.")] = DEADLINE,
    kind: Annotated[str, Option("cpu or cuda.", name="--device")] = "cpu",
) -> int:
    """Time imports, first calls and compilers, each in fresh processes."""
    quick = given.quick
    with cli.reading():
        device = devices.choose(kind)
        chosen = cli.listed(cases, CASES, "case", QUICK_CASES if quick else None)
        names = cli.listed(some.peers, PEERS, "peer", QUICK_PEERS if quick else None)
        variants = parse_variants(some.dtypes or DTYPES, device.variants)
        grid = list(itertools.product(parse_shapes(some.shapes or SHAPES), variants))
    repeats = QUICK_REPEATS if quick and repeats is None else repeats
    session = Session(device, given)
    session.announce()
    for stage in session.in_time(stage for stage in STAGES if {*stage.cases} & {*chosen}):
        samples, failed = stage.measure(stage.visits(kind, names, grid), repeats, deadline)
        session.failures |= failed
        rows = [row(key, each, kind) for key, each in samples.items() if key.case in chosen]
        session.keep(rows)
    return session.end()


def row(key: Key, samples: Sequence[float], kind: str) -> Row:
    """A row of results without its provenance."""
    found: Row = {"suite": "startup", "device": kind, "source": source(key.peer, kind)}
    found |= key._asdict() | {"repeats": len(samples), **columns(samples, "ms", 1e3)}
    return {name: value for name, value in found.items() if (name, value) != ("kernels", 0)}


def source(peer: str, kind: str) -> str:
    """Where an implementation comes from, with its version."""
    if peer == TORCH:
        return f"torch {provenance.version('torch')}"
    found = peers.discover(kind).get(peer.removesuffix(COMPILED))
    text = found.source if found is not None else peer
    return f"torch.compile (static shapes) of {text}" if peer.endswith(COMPILED) else text


def titles() -> dict[str, str]:
    """What the tables call the implementations, in order."""
    known = peers.titles("cuda") | peers.titles()
    return {TORCH: "torch"} | {name: known.get(name, name) for name in PEERS}


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: imports, calls, compilers."""
    parts = [reading("startup")]
    imports = {row["peer"]: row for row in rows if row["case"] == "import"}
    if imports:
        torch = imports.get(TORCH, {}).get("median_ms")
        lines = [
            row | {"share": row["median_ms"] / torch if torch else None}
            for row in chosen(titles(), imports)
        ]
        parts += ["**Imports**", table_of(IMPORTS, lines), _verdict(imports)]
    called = (row for row in rows if row["n"])
    for (n, d, dtype), some in listed(called, "n", "d", "dtype").items():
        by_case = {case: group for (case,), group in grouped(some, "case").items()}
        kernels = by_case.pop("triton-kernels", {}).get("ours")
        if by_case:
            known = [case for case in CALLS if case in by_case]
            heads = [titled(titles()), *(c for case in known for c in _figures(CALLS[case], case))]
            lines = [
                {"peer": name} | {case: by_case[case].get(name) for case in known}
                for name in titles()
                if any(name in by_case[case] for case in known)
            ]
            parts += [f"**Calls at {n} × {d}, {dtype}**", table_of(heads, lines)]
            parts.append(_verdict(by_case.get("first-call", {})))
        if kernels is not None:
            ends = {key: rate(kernels[f"{key}_ms"]) for key in ("median", "p20", "p80")}
            parts.append(reading("startup kernels", **kernels | ends))
    return joined(*parts)


def _verdict(found: dict[str, Row]) -> str:
    """What the import adds to that of torch, or how the first call compares; and which others
    take less time."""
    if "ours" not in found or len(found) == 1:
        return ""
    shares = {name: ratio(found, "median_ms", name, "ours") for name in found if name != TORCH}
    faster = {titles()[name]: share for name, share in shares.items() if share < 1}
    if TORCH in found:
        text = f"`import barlow_fast` adds {ratio(found, 'median_ms', 'ours', TORCH):.1%} to "
        longer = f" It takes longer than: {', '.join(faster)}." if faster else ""
        return f"{text}`import torch`.{longer}"
    if not faster:
        return "The first call of `barlow_fast` is the fastest."
    names = "; ".join(f"{title} ({share:.2f}× the time)" for title, share in faster.items())
    return f"The first call of `barlow_fast` is slower than that of: {names}."


def _figures(head: str, case: str | None = None) -> list[Column]:
    """The columns of milliseconds of a row, or of the row of a case."""

    def of(row: Row) -> Row | None:
        return row if case is None else row[case]

    def spread(row: Row) -> str:
        return f"{rate(row['p20_ms'])} to {rate(row['p80_ms'])} ({row['repeats']})"

    median = Column(head, of, lambda row: rate(row["median_ms"]))
    return [median, Column("p20 to p80 (processes)", of, spread)]


def _package(row: Row) -> str:
    name = row["peer"]
    return "`torch`" if name == TORCH else f"{titles()[name]}: `{MODULES[name]}` beyond torch"


IMPORTS = [
    Column("import", _package, left=True),
    *_figures("ms"),
    Column("× `import torch`", "share", lambda share: f"{share:.3g}×", missing=""),
]
CALLS = {
    "first-call": "first call, ms",
    "second-call": "second call, ms",
    "compiler-cold": "compiler, nothing on disk, ms",
    "compiler-warm": "compiler, on disk, ms",
}
