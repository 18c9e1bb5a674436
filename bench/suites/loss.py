"""Time of one forward and backward pass of the loss, against the floor and against the peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from bench import cli, devices, peers, results
from bench.cli import Option
from bench.devices import FORWARD, GRAPH, WHOLE, Device
from bench.floor import Peaks, floor_seconds
from bench.inputs import Case, Grid, parse_shapes, parse_variants
from bench.loss import tables as loss_tables
from bench.loss.group import LONGEST, Candidate, Group, Known, Settings
from bench.peers import Peer
from bench.results import Row, rounded
from bench.session import Chosen, Given, Session
from bench.timing import percentile

SECTION = "Loss: forward + backward"
QUICK_SECONDS, QUICK_MINUTES = 0.1, 0.6
NOWHERE, EVERYWHERE = "none", "all"


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
        some = parse_shapes(chosen.shapes) if chosen.shapes else quick
        variants = parse_variants(chosen.dtypes or ",".join(device.variants), device.variants)
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
    shapes = [] if text in (None, NOWHERE) else parse_shapes(text)
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


# Markdown of one machine's rows: a wide and a long table for each dtype.
tables = loss_tables.tables
