"""Images per second of loaders that make the same views, in turns; the photometric kernel alone."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch

from barlow_fast import kernels
from barlow_fast.kernels.photometry import Parameter
from bench import cli, devices, results, sources
from bench.cli import Option
from bench.devices import Device, NoGraphError
from bench.markdown import Column, in_words, joined, rate, reading, spread, table_of, titled
from bench.results import Row, rounded
from bench.session import Given, Session
from bench.timing import Budget, columns, interleave, percentile
from bench.views import feeds, images, turns
from bench.views.feeds import CASES, KERNELS, OFFICIAL, TITLES, Case

SECTION = "Views: images per second"
# By kind of device: seconds and turns of each feed of a case (see `Case.share`), and seconds
# without an answer after which one is ended.
PACE = {"cpu": (16.0, 5, turns.DEADLINE), "cuda": (10.0, 5, turns.DEADLINE)}
QUICK_SECONDS, QUICK_ROUNDS = 4.0, 3
KERNEL_CALLS = Budget(4.0, most=30)
CLOSE = 0.01  # levels of 255 from plain torch, on average, in float32
BANDWIDTH_TARGET = 0.7  # of a GPU's copy, for the kernel

Rates = dict[str, list[float]]
Failures = dict[str, str]


def command(
    given: Given,
    pace: turns.Pace,
    cases: Annotated[str | None, Option(f"Of {', '.join(CASES)}. Default: all.")] = None,
    feeds_of: Annotated[
        str | None, Option("Names, comma-separated. Default: all.", name="--feeds")
    ] = None,
) -> int:
    """Time loaders of two views, ours against torchvision's recipe and lightly's."""
    with cli.reading():
        device = devices.choose(given.device)
        chosen = feeds.parse(cases, feeds_of, given.quick, device.kind)
    session = Session(device, given, sources.VIEWED)
    usual = PACE[device.kind]
    if given.quick:
        usual = (QUICK_SECONDS, QUICK_ROUNDS, usual[2])
    distinct = images.QUICK_DISTINCT if given.quick else images.DISTINCT
    measure(session, chosen, pace.over(usual), distinct)
    return session.end()


def measure(
    session: Session,
    chosen: Sequence[Case],
    pace: tuple[float, int, float],
    distinct: int = images.DISTINCT,
) -> None:
    """Rows of each case and its feeds; what is wrong or fails has none, and is named.

    Args:
        session: the run.
        chosen: cases.
        pace: as in PACE.
        distinct: files that differ, of a case of files.
    """
    todo = session.todo(chosen, lambda case: results.group(_head(case)))
    if not todo:
        return
    session.announce()
    peaks = session.device.peaks()
    print(f"copy {peaks.copy:.1f} GB/s", flush=True)
    pillow = importlib.util.find_spec("PIL") is not None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        for case in session.named(todo):
            if case.files and pillow and not folder.exists():
                images.photographs(folder, distinct)
            names = _usable(case, session.device)
            if case.unit == "views":
                files = folder if pillow else None
                rates, failed = kernel_rates(case, names, files, session.device)
            else:
                rates, failed = race(case, names, folder, pace, session)
            found = [row(case, name, each, peaks.copy, session.device.kind)
                     for name, each in rates.items()]  # fmt: skip
            session.keep([each | {"peaks": peaks.as_fields()} for each in found], LINE)
            session.failures |= {f"{case.name} {name}": why for name, why in failed.items()}
            session.device.release()


def _usable(case: Case, device: Device) -> list[str]:
    """The feeds of a case that can run here; the others are named."""
    reasons = {name: feeds.COMPARED[name].unavailable(case, device) for name in case.feeds}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{case.name}: {name} is left out: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


def race(
    case: Case,
    names: Sequence[str],
    folder: Path | None,
    pace: tuple[float, int, float],
    session: Session,
) -> tuple[Rates, Failures]:
    """(images per second of every turn, failures) of feeds that can run here; see `turns.race`."""
    (seconds, rounds, deadline), device = pace, session.device
    runners = [
        turns.Runner(
            name,
            feeds.open_feed,
            (name, case, folder if case.files else None, device.kind),
            device.cores(),
            deadline,
        )
        for name in names
    ]
    return turns.race(
        runners, rounds, seconds * case.share / rounds, together=not device.one_at_a_time,
        moved=lambda name: session.journal.end(f"{case.name} {name}"),
    )  # fmt: skip


def kernel_rates(
    case: Case, names: Sequence[str], folder: Path | None, device: Device
) -> tuple[Rates, Failures]:
    """(views per second of every call, failures) of kernels, in this process and in turns: the
    device's own time where it captures graphs."""
    arguments = feeds.kernel_arguments(case, folder, device.torch)
    views = sum(len(each[0]) for each in arguments)
    clocks: dict[str, Callable[[], float]] = {}
    failed: Failures = {}
    for name in names:
        kernel, given = KERNELS[name], arguments
        run = kernels.load(kernel.backend).photometric
        if kernel.sharp:
            given = [(pixels, _sharp(rows), *rest) for pixels, rows, *rest in arguments]
        problem = differs(run, given)
        if problem is not None:
            failed[name] = problem
            continue

        def call(run=run, given=given, dtype=kernel.dtype) -> list[torch.Tensor]:
            return [run(*each, dtype) for each in given]

        clocks[name] = _clock(call, device)
    counts = {name: KERNEL_CALLS.count(clock()) for name, clock in clocks.items()}
    samples = interleave(clocks, counts) if clocks else {}
    device.new_graphs()
    return {name: [views / each for each in found] for name, found in samples.items()}, failed


def _clock(call: Callable[[], object], device: Device) -> Callable[[], float]:
    """Seconds of a call on the device, launches left out where a graph can be captured."""
    call()
    try:
        replay, _ = device.capture(call)
    except NoGraphError:
        return lambda: device.call_seconds(call)
    return lambda: device.replay_seconds(replay)


def _sharp(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.clone()
    rows[:, Parameter.BLUR_SIGMA] = 0
    return rows


def differs(run: Callable, arguments: list[tuple]) -> str | None:
    """How far a kernel is from plain torch, where that is too far."""
    plain = kernels.load("aten").photometric
    for each in arguments:
        std = each[-1].view(1, -1, 1, 1)
        error = (run(*each, torch.float32) - plain(*each, torch.float32)) * std * 255
        # Written so that NaN is a problem.
        if not float(error.abs().mean()) <= CLOSE:
            return f"{float(error.abs().mean()):.3g} levels from plain torch on average"
    return None


def _head(case: Case) -> Row:
    head = {"suite": "views", "case": case.name, "n": case.batch_size, "d": case.side}
    return head | {"dtype": "fp32"}


def row(case: Case, feed: str, rates: Sequence[float], copy_gbps: float, kind: str) -> Row:
    """A row of results without its provenance."""
    found = _head(case) | {
        "device": kind,
        "peer": feed,
        "source": feeds.version(feed),
        "unit": case.unit,
        "rounds": len(rates),
        **columns(rates, "per_s"),
    }
    if feed in KERNELS:
        moved = feeds.kernel_bytes(case, KERNELS[feed].dtype.itemsize) * percentile(rates, 50) / 1e9
        found["fraction_of_copy"] = rounded(moved / copy_gbps)
    return found


LINE = in_words(
    Column("", "case", left=True),
    Column("", "peer", left=True),
    *spread("per_s", rate),
    Column("of the copy bandwidth", "fraction_of_copy", ".0%"),
)


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each case."""
    parts = [reading(f"views {rows[0].get('device', 'cpu')}", cores=feeds.WORKERS)]
    for case in CASES.values():
        found = {each["peer"]: each for each in rows if each["case"] == case.name}
        if found:
            parts += [f"**{case.title[0].upper()}{case.title[1:]}**", _table(case, found)]
            parts += [_verdict(case, found), _bandwidth(found)]
    return joined(*parts)


def _bandwidth(found: dict[str, Row]) -> str:
    """Whether the kernel of a GPU reaches its target."""
    shares = {
        name: each["fraction_of_copy"]
        for name, each in found.items()
        if name.startswith("kernel-triton")
    }
    if not shares:
        return ""
    missed = [f"{TITLES[name]} ({share:.0%})" for name, share in shares.items()
              if share < BANDWIDTH_TARGET]  # fmt: skip
    target = f"The target of {BANDWIDTH_TARGET:.0%} of the copy bandwidth"
    return f"{target} is missed by: {'; '.join(missed)}." if missed else f"{target} is met."


def _table(case: Case, found: dict[str, Row]) -> str:
    # The feeds of a GPU are named by the rows alone.
    names = dict.fromkeys((*case.feeds, *found))
    last = Column(
        f"× {TITLES[OFFICIAL]}",
        functools.partial(_times, found),
        lambda ratio: f"{ratio:.2f}×",
        missing="",
    )
    if case.unit == "views":
        last = Column("of copy", "fraction_of_copy", ".0%")
    shown = [
        titled(TITLES),
        *spread("per_s", rate, f"{case.unit}/s", bold=lambda each: _is_ours(each["peer"])),
        Column("turns", "rounds"),
        Column("versions", "source"),
        last,
    ]
    return table_of(shown, [found[name] for name in names if name in found])


def _is_ours(name: str) -> bool:
    return name.startswith("ours-")


def _times(found: dict[str, Row], each: Row) -> float | None:
    """The rate of one that makes views, over the recipe's."""
    if OFFICIAL not in found or each["peer"] == OFFICIAL or each["peer"].startswith("crops-"):
        return None
    return each["median_per_s"] / found[OFFICIAL]["median_per_s"]


def _verdict(case: Case, found: dict[str, Row]) -> str:
    """Whether the target is met, and where ours is slower."""
    rates = {name: each["median_per_s"] for name, each in found.items()}
    ours = {name: each for name, each in rates.items() if _is_ours(name)}
    if case.target is None or OFFICIAL not in found or not ours:
        return ""
    ratio = max(ours.values()) / rates[OFFICIAL]
    met = "is met" if ratio >= case.target else f"is missed ({ratio:.2f} times)"
    text = f"The target of {case.target:g} times the official recipe {met}."
    slower = [
        f"{TITLES[name]} than {TITLES[peer]}"
        for name in ours
        for peer in (OFFICIAL, "lightly")
        if ours[name] < rates.get(peer, 0.0)
    ]
    return text + (f" Slower: {'; '.join(slower)}." if slower else "")
