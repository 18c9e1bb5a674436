"""Time and bytes on the wire of one forward and backward pass across ranks of one machine.

Ranks are processes joined by gloo over the loopback. Bytes are counted twice: by the package itself
(`count_traffic`; a formula for others), and by the operating system.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

from bench import cli, devices, memory_limit, sources
from bench.cli import Option
from bench.inputs import VARIANTS, Variant, parse_shapes
from bench.markdown import short, table_line
from bench.ranks import implementations, measurement, official, processes
from bench.ranks.implementations import OFFICIAL, Implementation
from bench.results import Row
from bench.session import Output, Session
from bench.timing import Budget

SECTION = "Across ranks: forward + backward"
SHAPES, QUICK_SHAPES = "2048x8192,2048x16384", "512x2048"
RANKS, QUICK_RANKS = "2,4", "2"
SECONDS, QUICK_SECONDS = 4.0, 0.5  # for each implementation, ranks, shape and dtype
FEWEST, MOST = 2, 10
DEADLINE = 240.0  # seconds, for one shape on so many ranks
MEMORY_SHARE = 0.85  # of the memory that is free


class Place(NamedTuple):
    """A shape on so many ranks."""

    n: int
    d: int
    ranks: int

    def __str__(self) -> str:
        return f"{self.n} x {self.d} on {self.ranks} ranks"


def command(
    given: Output,
    shapes: Annotated[str | None, Option(f"N of all ranks together. Default: {SHAPES}.")] = None,
    ranks: Annotated[str | None, Option(f"Numbers of processes. Default: {RANKS}.")] = None,
    dtypes: Annotated[str | None, Option("Of fp32, bf16-autocast. Default: both.")] = None,
    peers: Annotated[str | None, Option("Names, comma-separated. Default: all.")] = None,
    seconds: Annotated[
        float | None, Option("Time for each peer at each shape, ranks and dtype.")
    ] = None,
    repeats: Annotated[int | None, Option("Repeats, instead of --seconds.", least=1)] = None,
    deadline: Annotated[
        float, Option("Seconds after which the ranks of one shape are ended.")
    ] = DEADLINE,
) -> int:
    """Time the loss across ranks, and count what travels, against the all-reduce of C."""
    quick = given.quick
    with cli.reading():
        chosen_shapes = parse_shapes(shapes or (QUICK_SHAPES if quick else SHAPES))
        counts = parse_ranks(ranks or (QUICK_RANKS if quick else RANKS))
        variants, chosen = implementations.variants(dtypes), implementations.choose(peers)
    budget = Budget(seconds or (QUICK_SECONDS if quick else SECONDS), repeats, FEWEST, MOST)
    places = [Place(n, d, count) for n, d in chosen_shapes for count in counts]
    session = Session(devices.Cpu(), given, sources.RANKED)
    session.announce()
    with tempfile.TemporaryDirectory() as folder:
        for place in session.in_time(places, lambda place: 0.0):
            data = Path(folder) / f"{place.n}x{place.d}.pt"
            if not data.exists():
                measurement.prepare(place.n, place.d, data)
            rows, failed = measure(place, variants, chosen, budget, data, deadline)
            session.failures |= failed
            session.keep(rows, _line_of)
    return session.end()


def parse_ranks(text: str) -> list[int]:
    """'2,4' -> [2, 4]; ValueError for anything else than numbers of at least 2."""
    counts = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(counts) < 2:
        raise ValueError(f"ranks are numbers of at least 2, such as 2,4; got {text!r}")
    return counts


def measure(
    place: Place,
    variants: list[Variant],
    peers: list[Implementation],
    budget: Budget,
    data: Path,
    deadline: float,
) -> tuple[list[Row], dict[str, str]]:
    """(rows, failures) of one shape on so many ranks; what fails is not timed."""
    problems = {peer.name: does_not_fit(peer, *place) for peer in peers}
    usable = [peer for peer in peers if problems[peer.name] is None]
    skipped = [
        {
            "suite": "distributed", **place._asdict(), "dtype": variant.name, "peer": peer.name,
            "layout": peer.layout, "source": peer.source, "problem": problems[peer.name],
        }
        for variant, peer in itertools.product(variants, peers)
        if peer not in usable and variant.name in peer.dtypes
    ]  # fmt: skip
    written = data.with_name("results.json")
    task = measurement.Task(
        place.n, place.d, tuple(variants), tuple(peer.name for peer in usable), budget, data,
        written,
    )  # fmt: skip
    failures = {}
    written.unlink(missing_ok=True)
    try:
        processes.run(measurement.measure, place.ranks, (task,), deadline)
    except (RuntimeError, TimeoutError) as error:
        failures[str(place)] = str(error)
    if not written.exists():
        return skipped, failures
    found = json.loads(written.read_text())
    failures |= {f"{place.ranks} ranks, {name}": each for name, each in found["failures"].items()}
    return found["rows"] + skipped, failures


def does_not_fit(peer: Implementation, n: int, d: int, ranks: int) -> str | None:
    """Why the ranks would not fit into free memory together; None where they do, or where the
    system has no /proc."""
    if not memory_limit.MEMINFO.exists():
        return None
    free = memory_limit.available()
    needed = ranks * peer.working_bytes(n, d, ranks)
    if needed <= MEMORY_SHARE * free:
        return None
    return (
        f"would need about {needed / 2**30:.0f} GiB on all ranks together, "
        f"{free / 2**30:.0f} GiB are free"
    )


def _line_of(row: Row) -> str:
    name = f"{row['n']} x {row['d']} {row['dtype']}, {row['ranks']} ranks, {row['peer']}"
    if "problem" in row:
        return f"{name}: {row['problem']}"
    wire = "" if row["wire_bytes"] is None else f", {_mib(row['wire_bytes'])} by the system"
    return (
        f"{name}{' (auto)' if row['auto'] else ''}: {short(row['median_s'])} s, "
        f"{_mib(row['counted_bytes'])} MiB sent per rank{wire}"
    )


def _mib(value: int) -> str:
    return f"{value / 2**20:.1f}"


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each dtype."""
    parts = [_reading(rows)]
    for variant in VARIANTS.values():
        groups: dict[tuple[int, int, int], dict[str, Row]] = {}
        for row in sorted(rows, key=lambda row: (row["n"], row["d"], row["ranks"])):
            if row["dtype"] == variant.name:
                key = row["n"], row["d"], row["ranks"]
                groups.setdefault(key, {})[row["peer"]] = row
        if groups:
            parts += [f"**{variant.title}**", _table(groups, variant)]
            parts += [text for text in (_summary(groups),) if text]
    return "\n\n".join(parts)


def _reading(rows: list[Row]) -> str:
    threads = sorted({(row["ranks"], row["threads"]) for row in rows if "threads" in row})
    each = ", ".join(f"{ranks} ranks of {count}" for ranks, count in threads)
    return (
        f"One forward and backward pass over N samples spread evenly over ranks, which are "
        f"processes of this machine joined by gloo over the loopback (threads: {each}). Seconds "
        "are medians of the slowest rank. MiB are what one rank sends: counted by "
        "`barlow_fast.distributed.count_traffic`, or for the all-reduce of C by the formula of a "
        "ring, 2 (W - 1) / W · D² elements; and *by the system*, what the loopback sent during "
        "the whole pass, headers included, divided by W. *auto* marks the layout that "
        '`layout="auto"` takes. The all-reduce of C is written to be lean (`ranks/official.py`): '
        "C is the only D × D matrix it holds, and it passes over it a few times where the authors' "
        "code under autograd does so dozens of times."
    )


def _table(groups: dict[tuple[int, int, int], dict[str, Row]], variant: Variant) -> str:
    titles = {name: each.title for name, each in implementations.discover().items()}
    itemsize = 2 if variant.autocast else variant.dtype.itemsize
    heads = ["N × D", "ranks", "implementation", "s", "p20", "p80", "repeats"]
    heads += ["MiB sent", "by the system", "fewer bytes"]
    lines = [table_line(heads), table_line(["---:", "---:", "---", *["---:"] * (len(heads) - 3)])]
    for (n, d, ranks), group in groups.items():
        all_reduce = official.wire_bytes(d, ranks, itemsize)
        for name, title in titles.items():
            if name not in group:
                continue
            row = group[name]
            cells = [f"{n} × {d}", str(ranks), title]
            if "problem" in row:
                lines.append(
                    table_line([*cells, f"– ({row['problem']})", *["–"] * (len(heads) - 4)])
                )
                continue
            if row["auto"]:
                cells[2] += " (auto)"
            cells.append(f"**{short(row['median_s'])}**" if row["auto"] else short(row["median_s"]))
            cells += [short(row["p20_s"]), short(row["p80_s"]), str(row["repeats"])]
            cells.append(_mib(row["counted_bytes"]))
            cells.append("–" if row["wire_bytes"] is None else _mib(row["wire_bytes"]))
            ratio = all_reduce / row["counted_bytes"]
            cells.append("" if name == OFFICIAL else f"{ratio:.1f}×")
            lines.append(table_line(cells))
    text = "\n".join(lines)
    if itemsize == 2:
        text += "\n\nFewer bytes than an all-reduce of C in two bytes an element would send."
    return text


def _summary(groups: dict[tuple[int, int, int], dict[str, Row]]) -> str:
    """What the largest shape comes to, and where the all-reduce is faster."""
    faster, slower = [], []
    for (n, d, ranks), group in groups.items():
        ours = next((row for row in group.values() if row.get("auto")), None)
        other = group.get(OFFICIAL, {})
        if ours is None or "median_s" not in other:
            continue
        ratio = other["median_s"] / ours["median_s"]
        fewer = other["counted_bytes"] / ours["counted_bytes"]
        where = f"{n} × {d} on {ranks} ranks"
        if ratio >= 1:
            faster.append(f"{where} {ratio:.1f}× as fast with {fewer:.1f}× fewer bytes")
        else:
            slower.append(f"{where} ({1 / ratio:.2f}× the time)")
    parts = []
    if faster:
        parts.append('Against the all-reduce of C, `layout="auto"` is: ' + "; ".join(faster) + ".")
    if slower:
        parts.append("It is slower at: " + "; ".join(slower) + ".")
    return " ".join(parts)
