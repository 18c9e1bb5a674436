"""Images per second of loaders that make the same views, in turns; the photometric kernel alone."""

from __future__ import annotations

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
from bench.markdown import rate, table
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
CORES = 2
KERNEL_CALLS = Budget(4.0, most=30)
CLOSE = 0.01  # levels of 255 from plain torch, on average, in float32
BANDWIDTH_TARGET = 0.7  # of a GPU's copy, for the kernel

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
        chosen = feeds.parse(cases, given.quick, device.kind)
        if feeds_of is not None:
            chosen = only(chosen, feeds_of)
    session = Session(device, given, sources.VIEWED)
    usual = PACE[device.kind]
    if given.quick:
        usual = (QUICK_SECONDS, QUICK_ROUNDS, usual[2])
    distinct = images.QUICK_DISTINCT if given.quick else images.DISTINCT
    measure(session, chosen, pace.over(usual), distinct)
    return session.end()


def only(
    chosen: list[tuple[Case, tuple[str, ...]]], text: str
) -> list[tuple[Case, tuple[str, ...]]]:
    """The cases with those feeds; ValueError for one that no case has."""
    names = cli.listed(text, {feed: 0 for _, each in chosen for feed in each}, "feed")
    kept = [(case, tuple(f for f in each if f in names)) for case, each in chosen]
    return [(case, each) for case, each in kept if each]


def measure(
    session: Session,
    chosen: Sequence[tuple[Case, tuple[str, ...]]],
    pace: tuple[float, int, float],
    distinct: int = images.DISTINCT,
) -> None:
    """Rows of each case and its feeds; what is wrong or fails has none, and is named.

    Args:
        session: the run.
        chosen: cases with the names of their feeds.
        pace: as in PACE.
        distinct: files that differ, of a case of files.
    """
    chosen = dict(chosen)
    todo = session.todo(chosen, key)
    if not todo:
        return
    session.announce()
    peaks = session.device.peaks()
    print(f"copy {peaks.copy:.1f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        for case in session.named(todo):
            rows, failed = _rows(session, case, chosen[case], folder, pace, distinct, peaks.copy)
            session.keep([row | {"peaks": peaks.as_fields()} for row in rows], line_of)
            for name, reason in failed.items():
                session.failures[f"{case.name} {name}"] = reason
            session.device.release()


def _rows(
    session: Session,
    case: Case,
    names: Sequence[str],
    folder: Path,
    pace: tuple[float, int, float],
    distinct: int,
    copy: float,
) -> tuple[list[Row], Failures]:
    device = session.device
    pillow = importlib.util.find_spec("PIL") is not None
    if case.files and pillow and not folder.exists():
        images.photographs(folder, distinct)
    usable = []
    for name in names:
        reason = feeds.unavailable(name, case, device)
        if reason is None:
            usable.append(name)
        else:
            print(f"{case.name}: {name} is left out: {reason}", flush=True)
    if case.unit == "views":
        rates, failed = kernel_rates(case, usable, folder if pillow else None, device)
    else:
        rates, failed = race(case, usable, folder, pace, session)
    return [row(case, name, found, copy, device.kind) for name, found in rates.items()], failed


def race(
    case: Case,
    names: Sequence[str],
    folder: Path | None,
    pace: tuple[float, int, float],
    session: Session,
) -> tuple[dict[str, list[float]], Failures]:
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
) -> tuple[dict[str, list[float]], Failures]:
    """(views per second of every call, failures) of kernels, in this process and in turns: the
    device's own time where it captures graphs."""
    arguments = feeds.kernel_arguments(case, folder, device.torch)
    views = sum(len(each[0]) for each in arguments)
    clocks: dict[str, Callable[[], float]] = {}
    failed: Failures = {}
    for name in names:
        backend, sharp, dtype = KERNELS[name]
        run, given = kernels.load(backend).photometric, arguments
        if sharp:
            given = [(pixels, _sharp(rows), *rest) for pixels, rows, *rest in arguments]
        problem = differs(run, given)
        if problem is not None:
            failed[name] = problem
            continue

        def call(run=run, given=given, dtype=dtype) -> list[torch.Tensor]:
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


def key(case: Case) -> tuple:
    """The group of a case's rows."""
    return results.group(_head(case))


def _head(case: Case) -> Row:
    head = {"suite": "views", "case": case.name, "n": case.batch_size, "d": case.side}
    return head | {"dtype": "fp32"}


def row(case: Case, feed: str, rates: Sequence[float], copy_gbps: float, kind: str) -> Row:
    """A row of results without its provenance."""
    found = (
        _head(case)
        | {
            "device": kind,
            "peer": feed,
            "source": feeds.version(feed),
            "unit": case.unit,
            "rounds": len(rates),
        }
        | columns(rates, "per_s")
    )
    if case.unit == "views":
        moved = feeds.kernel_bytes(case, KERNELS[feed][2].itemsize) * percentile(rates, 50) / 1e9
        found["fraction_of_copy"] = rounded(moved / copy_gbps)
    return found


def line_of(found: Row) -> str:
    """A row in words."""
    text = (
        f"{found['case']} {found['peer']}: {rate(found['median_per_s'])} {found['unit']}/s "
        f"({rate(found['p20_per_s'])} to {rate(found['p80_per_s'])})"
    )
    if "fraction_of_copy" in found:
        text += f", {found['fraction_of_copy']:.0%} of the copy bandwidth"
    return text


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each case."""
    parts = [READING[rows[0].get("device", "cpu")]]
    for case in CASES.values():
        found = {each["peer"]: each for each in rows if each["case"] == case.name}
        if found:
            parts += [f"**{case.title[0].upper()}{case.title[1:]}**", _table(case, found)]
            verdict = _verdict(case, found) or _bandwidth(found)
            parts += [verdict] if verdict else []
    return "\n\n".join(parts)


READING = {
    "cpu": "Images per second, each image decoded (or taken from memory) and turned into two "
    f"views: float32 tensors, normalised, in batches. Medians of turns on {CORES} cores, "
    "first batches left out; processes of a loader wait while another one has its "
    "turn. The official recipe (torchvision's transforms, written anew from their parameters) "
    f"and lightly's run in a `DataLoader` with {feeds.WORKERS} workers, ours in as many "
    "workers of PIL or threads of DALI, with the photometric kernel in C++. Before it is "
    "timed, ours is held against torchvision's functions for the same parameters. The kernel "
    "alone is counted in views; *of copy* are the bytes that it must move (bytes in, float32 "
    "out) per second, divided by the copy bandwidth of the same run.",
    "cuda": "Images per second of our loaders alone, two views each, until the GPU has them: "
    "float32, normalised, in batches; images in memory are cropped on the GPU, files are decoded "
    "and cropped by DALI where it is installed, and by Pillow. The first batch is held against "
    "torchvision's functions where torchvision is installed, the kernel against plain torch. "
    "The kernel alone is counted in views, replayed from a CUDA graph with cold caches: *of "
    "copy* are the bytes that it must move (bytes in, values out) per second, divided by the "
    "copy bandwidth of the same run. *With blur*: all of the first view's and a tenth of the "
    "second's.",
}


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
    kernel = case.unit == "views"
    heads = ["implementation", f"{case.unit}/s", "p20", "p80", "turns", "versions"]
    heads.append("of copy" if kernel else f"× {TITLES[OFFICIAL]}")
    lines, other = [], found.get(OFFICIAL)
    # The feeds of a GPU are named by the rows alone.
    for name in (*case.feeds, *(name for name in found if name not in case.feeds)):
        if name not in found:
            continue
        each = found[name]
        value = rate(each["median_per_s"])
        ours = name.startswith("ours-")
        cells = [TITLES.get(name, name), f"**{value}**" if ours else value]
        cells += [rate(each["p20_per_s"]), rate(each["p80_per_s"]), str(each["rounds"])]
        cells.append(each["source"])
        if kernel:
            cells.append(f"{each['fraction_of_copy']:.0%}")
        elif other is None or name == OFFICIAL or name.startswith("crops-"):
            cells.append("")
        else:
            cells.append(f"{each['median_per_s'] / other['median_per_s']:.2f}×")
        lines.append(cells)
    return table(heads, lines)


def _verdict(case: Case, found: dict[str, Row]) -> str:
    """Whether the target is met, and where ours is slower."""
    ours = {name: each for name, each in found.items() if name.startswith("ours-")}
    if case.target is None or OFFICIAL not in found or not ours:
        return ""
    best = max(ours, key=lambda name: ours[name]["median_per_s"])
    ratio = ours[best]["median_per_s"] / found[OFFICIAL]["median_per_s"]
    met = "is met" if ratio >= case.target else f"is missed ({ratio:.2f} times)"
    text = f"The target of {case.target:g} times the official recipe {met}."
    slower = [
        f"{TITLES[name]} than {TITLES[peer]}"
        for name in ours
        for peer in (OFFICIAL, "lightly")
        if peer in found and ours[name]["median_per_s"] < found[peer]["median_per_s"]
    ]
    return text + (f" Slower: {'; '.join(slower)}." if slower else "")
