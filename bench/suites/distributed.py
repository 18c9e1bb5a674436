"""Time and bytes on the wire of one forward and backward pass across ranks of one machine.

Ranks are processes joined by gloo over the loopback. Bytes are counted twice: by the package itself
(`count_traffic`; a formula for others), and by the operating system.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated

from bench import cli, devices
from bench.cli import Option
from bench.inputs import VARIANTS, parse_shapes
from bench.markdown import SHAPE, Column, joined, reading, short, spread, table_of
from bench.ranks import implementations, measurement
from bench.ranks.implementations import OFFICIAL, PRECISION
from bench.ranks.measurement import Task
from bench.results import Row, grouped
from bench.session import Chosen, Output, Session
from bench.timing import Budget

SECTION = "Across ranks: forward + backward"
SHAPES, QUICK_SHAPES = "2048x8192,2048x16384", "512x2048"
RANKS, QUICK_RANKS = "2,4", "2"
SECONDS, QUICK_SECONDS = 4.0, 0.5  # for each implementation, ranks, shape and dtype
FEWEST, MOST = 2, 10
DEADLINE = 240.0  # seconds, for one shape on so many ranks


def command(
    given: Output,
    some: Chosen,
    ranks: Annotated[str | None, Option(f"Numbers of processes. Default: {RANKS}.")] = None,
    seconds: Annotated[
        float | None, Option("Time for each peer at each shape, ranks and dtype.")
    ] = None,
    repeats: Annotated[int | None, Option("Repeats, instead of --seconds.", least=1)] = None,
    deadline: Annotated[
        float, Option("Seconds after which the ranks of one shape are ended.")
    ] = DEADLINE,
) -> int:
    """Time the loss across ranks, and count what travels, against the all-reduce of C."""
    quick, known = given.quick, implementations.discover()
    with cli.reading():
        chosen_shapes = parse_shapes(some.shapes or (QUICK_SHAPES if quick else SHAPES))
        counts = parse_ranks(ranks or (QUICK_RANKS if quick else RANKS))
        variants = [VARIANTS[name] for name in cli.listed(some.dtypes, PRECISION, "dtype")]
        chosen = [known[name] for name in cli.listed(some.peers, known, "peer")]
    budget = Budget(seconds or (QUICK_SECONDS if quick else SECONDS), repeats, FEWEST, MOST)
    session = Session(devices.Cpu(), given)
    session.announce()
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(n, d, count, tuple(variants), tuple(chosen), budget, Path(folder))
            for (n, d), count in itertools.product(chosen_shapes, counts)
        ]
        for task in session.in_time(tasks):
            rows, failed = measure(task, deadline)
            session.failures |= failed
            session.keep(rows)
    return session.end()


def parse_ranks(text: str) -> list[int]:
    """'2,4' -> [2, 4]; ValueError for anything else than numbers of at least 2."""
    counts = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(counts) < 2:
        raise ValueError(f"ranks are numbers of at least 2, such as 2,4; got {text!r}")
    return counts


def measure(task: Task, deadline: float) -> tuple[list[Row], dict[str, str]]:
    """(rows, failures) of one shape on so many ranks; what fails is not timed."""
    failures, rows = {}, []
    task.results.unlink(missing_ok=True)
    try:
        task.prepare()
        measurement.run(measurement.measure, task.ranks, (task,), deadline)
    except (RuntimeError, TimeoutError) as error:
        failures[str(task)] = str(error)
    if task.results.exists():
        found = json.loads(task.results.read_text())
        rows = found["rows"]
        failures |= {f"{task.ranks} ranks, {name}": e for name, e in found["failures"].items()}
    return rows, failures


def _mib(value: int) -> str:
    return f"{value / 2**20:.1f}"


def _seconds(row: Row) -> str:
    return f"– ({row['problem']})" if "problem" in row else short(row["median_s"])


def _titled(row: Row) -> str:
    title = implementations.discover()[row["peer"]].title
    return f"{title} (auto)" if row.get("auto") else title


def _fewer(row: Row) -> str | None:
    """How many times fewer bytes than an all-reduce of C in the dtype of the products."""
    if row["peer"] == OFFICIAL or "problem" in row:
        return "" if row["peer"] == OFFICIAL else None
    variant = VARIANTS[row["dtype"]]
    itemsize = 2 if variant.autocast else variant.dtype.itemsize
    other = implementations.wire_bytes(row["d"], row["ranks"], itemsize)
    return f"{other / row['counted_bytes']:.1f}×"


COLUMNS = [
    SHAPE,
    Column("ranks", "ranks"),
    Column("implementation", _titled, left=True),
    Column("s", _seconds, bold=lambda row: row.get("auto")),
    *spread("s", short)[1:],
    Column("repeats", "repeats"),
    Column("MiB sent", "counted_bytes", _mib),
    Column("by the system", "wire_bytes", _mib),
    Column("fewer bytes", _fewer),
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each dtype."""
    threads = sorted({(row["ranks"], row["threads"]) for row in rows if "threads" in row})
    each = ", ".join(f"{ranks} ranks of {count}" for ranks, count in threads)
    parts = [reading("distributed", threads=each)]
    order = list(implementations.discover())
    known = (row for row in rows if row["peer"] in order)
    rows = sorted(known, key=lambda r: (r["n"], r["d"], r["ranks"], order.index(r["peer"])))
    for variant in VARIANTS.values():
        some = [row for row in rows if row["dtype"] == variant.name]
        if some:
            parts += [f"**{variant.title}**", table_of(COLUMNS, some)]
            parts += [TWO_BYTES] if variant.autocast else []
            parts.append(_verdict(grouped(some, "n", "d", "ranks")))
    return joined(*parts)


def _verdict(groups: dict[tuple, dict[str, Row]]) -> str:
    """How many times as fast the automatic layout is, and where the all-reduce is faster."""
    faster, slower = [], []
    for (n, d, ranks), group in groups.items():
        other = group.get(OFFICIAL, {})
        for ours in (row for row in group.values() if row.get("auto") and "median_s" in other):
            where, times = f"{n} × {d} on {ranks} ranks", other["median_s"] / ours["median_s"]
            fewer = f"with {other['counted_bytes'] / ours['counted_bytes']:.1f}× fewer bytes"
            if times >= 1:
                faster.append(f"{where} {times:.1f}× as fast {fewer}")
            else:
                slower.append(f"{where} ({1 / times:.2f}× the time)")
    heads = ('Against the all-reduce of C, `layout="auto"` is', "It is slower at")
    found = zip(heads, (faster, slower), strict=True)
    return " ".join(f"{head}: {'; '.join(places)}." for head, places in found if places)


TWO_BYTES = "Fewer bytes than an all-reduce of C in two bytes an element would send."
