"""Time of one forward and backward pass of the loss, against the floor and against the peers.

Rows of a CPU have times of calls and of their forward half; those of a GPU, times of calls and of
replays. Older rows lack some columns.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from bench import cli, devices, inputs, markdown, peers, results
from bench.cli import Option
from bench.devices import FORWARD, GRAPH, WHOLE, Device
from bench.floor import Peaks, floor_seconds
from bench.group import LONGEST, Candidate, Group, Known, Settings
from bench.inputs import CPU_GRID, CUDA_GRID, CUDA_VARIANTS, Case, Grid, Variant
from bench.markdown import SHAPE, Column, joined, reading, short, table_of, titled
from bench.peers import Peer
from bench.results import Row, grouped, rounded
from bench.session import Chosen, Given, Session
from bench.timing import percentile

SECTION = "Loss: forward + backward"
QUICK_SECONDS, QUICK_MINUTES = 0.1, 0.6
NOWHERE, EVERYWHERE = "none", "all"
Peers = dict[str, Row]  # the rows of one shape
Groups = dict[tuple[int, int], Peers]
# Of the table in the README at the root: from many features for few samples to the reverse.
OVERVIEW_SHAPES = ((256, 1024), (256, 8192), (1024, 4096), (1024, 1024), (16384, 256))
NOT_PUBLIC = ("gram-plain", "gram-compiled")  # no library ships the Gram form


def command(
    given: Given,
    chosen: Chosen,
    seconds: Annotated[float | None, Option("Time for each peer at each shape and dtype.")] = None,
    repeats: Annotated[int | None, Option("Repeats, instead of --seconds.", least=1)] = None,
    full: Annotated[
        bool, Option("cpu: also N from 32 to 65536, D from 64 to 131072, in fp32.")
    ] = False,
    longest: Annotated[
        float, Option("A peer with calls of more seconds is not tried at larger shapes.")
    ] = LONGEST,
    compiled_shapes: Annotated[
        str | None, Option("Where compiled peers take part; 'none': nowhere; 'all': everywhere.")
    ] = None,
) -> int:
    """Time the loss, forward + backward, against its floor and its peers."""
    with cli.reading():
        device = devices.choose(given.device)
        grid = device.grid
        quick = grid.quick if given.quick else None
        some = inputs.parse_shapes(chosen.shapes) if chosen.shapes else quick
        variants = inputs.parse_variants(
            chosen.dtypes or ",".join(device.variants), device.variants
        )
        known = peers.choose(chosen.peers, device.kind)
        named = chosen.peers is not None and any(peer.compiles for peer in known)
        compiled = compiled_grid(grid, compiled_shapes, named, given.quick)
    if given.quick and given.minutes is None:
        given = replace(given, minutes=QUICK_MINUTES)
    budget = replace(device.budget, repeats=repeats)
    if seconds or given.quick:
        budget = replace(budget, seconds=seconds or QUICK_SECONDS)
    session = Session(device, given)
    settings = Settings(budget, longest, compiled)
    measure(session, grid.cases(variants, some, full), known, settings)
    return session.end()


def compiled_grid(grid: Grid, text: str | None, named: bool, quick: bool) -> Grid | None:
    """A grid with the shapes at which peers take part that compile; None where they are `named`,
    and so wanted everywhere. ValueError for shapes that are none."""
    if text == EVERYWHERE or (text is None and named):
        return None
    if text is None and not quick:
        return grid
    shapes = [] if text in (None, NOWHERE) else inputs.parse_shapes(text)
    return replace(grid, compiled=(shapes, grid.compiled[1]))


def measure(
    session: Session, cases: Sequence[Case], known: Sequence[Peer], settings: Settings
) -> None:
    """Measures the cases in order while there is time; rows are written group by group.

    A peer that is wrong, raises, does not fit or takes too long is a row with a `problem`.
    DeviceLostError leaves the finished groups in the file.
    """
    usable = peers.available(known)
    todo = session.todo(
        cases,
        lambda case: results.group({"suite": "loss", **case.columns()}),
        lambda case: [peer.name for peer in settings.some(usable, case)],
    )
    if not todo:
        return
    session.announce()
    device = session.device
    peaks = device.peaks()
    print("peaks:", ", ".join(f"{name} {value}" for name, value in peaks.as_fields().items()))
    kept = Known()

    def compiles(case: Case) -> bool:
        return any(peer.compiles for peer in settings.some(usable, case))

    for case in session.in_time(todo, alike=compiles):
        found = Group(case, session, settings, kept).measure(settings.some(usable, case))
        rows = [row(case, candidate, peaks, device) for candidate in found]
        session.keep(rows)
        device.release()
        session.failures |= {
            each.key: each.problem
            for each in found
            if each.wrong and (each.peer.ours or device.judges_others)
        }


def row(case: Case, candidate: Candidate, peaks: Peaks, device: Device) -> Row:
    """One line of results, without provenance; times are None where there are none, with the
    reason beside them."""
    variant, samples = case.variant, {} if candidate.problem else candidate.samples
    rates = peaks.gemm(variant.gemm), peaks.copy
    floor = floor_seconds(case.n, case.d, variant.dtype.itemsize, *rates)
    found = {"suite": "loss", **device.row, **case.columns(), **candidate.peer.columns()}
    found["exact"] = candidate.peer.exact
    for measure in device.measures:
        found |= _times(measure, samples.get(measure, []), floor)
    found |= {"floor_ms": rounded(floor * 1e3), "problem": candidate.problem}
    if GRAPH in device.measures:
        found["graph_problem"] = candidate.graph_problem or candidate.problem
    return found | {"peaks": peaks.as_fields()}


def _times(prefix: str, samples: Sequence[float], floor: float) -> Row:
    """The columns of one measure; what is a part of a pass has no share of the floor."""
    found: Row = {} if prefix == FORWARD else {f"{prefix}repeats": len(samples)}
    names = {"median_ms" if prefix == WHOLE else f"{prefix}ms": 50}
    for name, q in (names | {f"{prefix}p20_ms": 20, f"{prefix}p80_ms": 80}).items():
        found[name] = rounded(percentile(samples, q) * 1e3) if samples else None
    if prefix != FORWARD:
        share = rounded(floor / percentile(samples, 50)) if samples else None
        found[f"{prefix}fraction_of_floor"] = share
    return found


class Tables:
    """Which columns the rows of one device have, and how their peers are compared.

    Attributes:
        kind: of the device, whose peers have the titles.
        measures: prefixes of the columns that are shown and compared, by what they are called.
        replayed: whether there are several of them.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.replayed = rows, any("graph_ms" in row for row in rows)
        self.kind, self.grid = ("cuda", CUDA_GRID) if self.replayed else ("cpu", CPU_GRID)
        self.measures = {"called": WHOLE} | ({"replayed": GRAPH} if self.replayed else {})
        self.known = peers.discover(self.kind)

    def groups(self, dtype: str) -> Groups:
        """Rows of one dtype by shape: the main ones first, in their order, then by size."""
        found = grouped((row for row in self.rows if row["dtype"] == dtype), "n", "d")
        first = dict.fromkeys(shape for shape in self.grid.main if shape in found)
        return {shape: found[shape] for shape in first | dict.fromkeys(sorted(found))}

    def of(self, variant: Variant) -> list[str]:
        """A wide table, then one with percentiles, and problems."""
        groups = self.groups(variant.name)
        if not groups:
            return []
        present = {name for group in groups.values() for name in group}
        order = [*self.known, *sorted(present - self.known.keys())]
        titles = {
            name: self.known[name].title if name in self.known else name
            for name in order
            if name in present
        }
        timed = (_timed(group, name) for group in groups.values() for name in titles)
        half = "" if self.replayed else ", and the forward half alone"
        lines = "\n".join(_problems(groups, titles))
        return [
            f"**{variant.title}**",
            table_of(self._wide(titles), groups.values()),
            self._slowdowns(groups, titles),
            markdown.details(
                f"Percentiles{half}", table_of(self._long(titles), filter(None, timed))
            ),
            markdown.details("Left out", lines) if lines else "",
        ]

    def _wide(self, titles: Mapping[str, str]) -> list[Column]:
        """The columns of groups: a line for each shape."""
        cells = {
            title: functools.partial(self.cell, name)
            for name, title in titles.items()
            if name != "ours"
        }
        return [
            Column("N × D", lambda group: SHAPE.cell(next(iter(group.values())))),
            Column("floor", lambda group: next(iter(group.values()))["floor_ms"], short),
            Column(titles.get("ours", "barlow_fast"), self.own),
            Column("of floor", lambda group: _fraction(_timed(group, "ours")), ".0%"),
            *itertools.starmap(Column, cells.items()),
        ]

    def _long(self, titles: Mapping[str, str]) -> list[Column]:
        """The columns of rows: a line for each shape and implementation."""
        columns = [SHAPE, titled(titles)]
        for called, measure in self.measures.items():
            head = f"{called if self.replayed else 'median'} ms"
            columns.append(Column(head, functools.partial(median, measure=measure), short))
            columns += [Column(key, f"{measure}{key}_ms", short) for key in ("p20", "p80")]
            columns.append(Column("repeats", f"{measure}repeats"))
        columns.append(Column("of floor", _fraction, ".1%"))
        if not self.replayed:
            columns.append(Column("forward ms", "forward_ms", short))
            columns += [Column(key, f"forward_{key}_ms", short) for key in ("p20", "p80")]
        return columns

    def own(self, group: Peers) -> str | None:
        """Our times."""
        row = _timed(group, "ours")
        return f"**{self._shown(row)}**" if row else None

    def cell(self, name: str, group: Peers) -> str | None:
        """The times of a peer, and how many times faster ours is, replayed where both can be, else
        called; or its problem."""
        row, ours = group.get(name), _timed(group, "ours")
        if row is None:
            return None
        if row.get("problem"):
            return short_problem(row["problem"])
        for measure in reversed(self.measures.values()):
            theirs, own = median(row, measure), median(ours, measure)
            if row is not ours and theirs is not None and own is not None:
                return f"{self._shown(row)} ({markdown.times(theirs / own)})"
        return self._shown(row)

    def _shown(self, row: Row) -> str:
        found = (median(row, measure) for measure in self.measures.values())
        return " / ".join("–" if value is None else short(value) for value in found)

    def fastest(self, group: Peers) -> str | None:
        """The cell of the fastest exact implementation that others publish."""
        rows = [
            row
            for name, row in group.items()
            if _timed(group, name)
            and row.get("exact", True)
            and name not in NOT_PUBLIC
            and not (name in self.known and self.known[name].ours)
        ]
        found = min(rows, key=lambda row: median(row, GRAPH) or median(row, WHOLE), default=None)
        return found and self.cell(found["peer"], group)

    def _slowdowns(self, groups: Groups, titles: Mapping[str, str]) -> str:
        """List where `barlow_fast` is slower than a peer."""
        found, compared = [], 0
        for (n, d), group in groups.items():
            ours = _timed(group, "ours")
            for name, (called, measure) in itertools.product(group, self.measures.items()):
                theirs, own = median(_timed(group, name), measure), median(ours, measure)
                if name == "ours" or None in (theirs, own):
                    continue
                compared += 1
                if theirs < own:
                    noise = ours[f"{measure}p20_ms"] < group[name][f"{measure}p80_ms"]
                    text = f"{own / theirs:.2f}× the time of {titles[name]}"
                    where = f"{n} × {d}" + (f" {called}" if self.replayed else "")
                    found.append(f"{where} ({text}{', within noise' if noise else ''})")
        if not compared:
            return "No comparison: `barlow_fast` or every peer is missing."
        if found:
            count = f"In {len(found)} of {compared} comparisons"
            return f"{count} `barlow_fast` is slower at: {'; '.join(found)}."
        return f"`barlow_fast` is the fastest in every row ({compared} comparisons)."


def tables(rows: Sequence[Row]) -> str:
    """Markdown of one machine's rows: the tables of each dtype."""
    found = Tables(rows)
    parts = list(itertools.chain.from_iterable(map(found.of, CUDA_VARIANTS.values())))
    return joined(reading(f"loss {found.kind}"), *parts) if parts else ""


def overview(files: Mapping[str, Sequence[Row]]) -> str:
    """A few float32 shapes on all machines side by side, for the README at the root."""
    columns = [Column("N × D", lambda shape: f"{shape[0]} × {shape[1]}")]
    sources = []
    for name, rows in results.rows_of(files, "loss"):
        found = Tables(rows)
        groups = found.groups("fp32")
        if any(shape in groups for shape in OVERVIEW_SHAPES):
            sources.append(f"`bench/results/{name}`")
            for head, cell in {
                f"{results.machine(rows)}: barlow_fast": found.own,
                "fastest other": found.fastest,
                "official": functools.partial(found.cell, "official"),
            }.items():
                columns.append(
                    Column(head, lambda shape, of=groups, cell=cell: cell(of.get(shape, {})))
                )
    if not sources:
        return ""
    return joined(table_of(columns, OVERVIEW_SHAPES), f"Rows: {', '.join(sources)}.")


def median(row: Row, measure: str) -> float | None:
    """Milliseconds; None where there are none."""
    return row.get(f"{measure}ms" if measure else "median_ms")


def _timed(group: Peers, name: str) -> Row:
    """A row with times; empty where there is none."""
    row = group.get(name, {})
    return {} if row.get("problem") else row


def short_problem(problem: str) -> str:
    """Abbreviate a problem for a cell."""
    if "memory" in problem:
        return "no memory"
    if "off by" in problem:
        return "wrong"
    return "slow" if " took " in problem else "fails"


def _fraction(row: Row) -> float | None:
    return row.get("graph_fraction_of_floor") or row.get("fraction_of_floor")


def _problems(groups: Groups, titles: Mapping[str, str]) -> Iterator[str]:
    """What could not be measured or captured, each reason once."""
    for (n, d), group in groups.items():
        for name, row in group.items():
            reason = row.get("problem") or row.get("graph_problem")
            if reason and not reason.startswith("not tried"):
                what = "" if row.get("problem") else ", replayed"
                yield f"- {n} × {d}, {titles[name]}{what}: {reason}"
