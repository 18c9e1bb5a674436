"""Images per second of loaders that make the same views, in turns, and of what they consist of."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from bench import cli, devices, markdown, results
from bench.cli import Option
from bench.devices import Device, NoGraphError
from bench.markdown import Column, joined, rate, reading, spread, table_of, titled
from bench.results import Row, rounded
from bench.session import Given, Session
from bench.timing import Budget, columns, interleave
from bench.views import feeds, images, turns
from bench.views.agreement import DisagreementError
from bench.views.feeds import CASES, COMPARED, KERNELS, ONE_CORE, TITLES, Case
from bench.views.images import LIGHTLY, OFFICIAL
from bench.views.loading import STAGES

SECTION = "Views: images per second"
# By kind of device: seconds and turns of each feed of a case (see `Case.share`), and seconds
# without an answer after which one is ended.
PACE = {"cpu": (16.0, 5, turns.DEADLINE), "cuda": (10.0, 5, turns.DEADLINE)}
QUICK = 4.0, 3  # seconds and turns
KERNEL_CALLS = Budget(4.0, most=30)
CORES = 2  # of a CPU
MAKES_VIEWS = ("ours-", "reduced-", OFFICIAL, "torchvision-v2", LIGHTLY)
_RECIPE = "ours-", OFFICIAL, "the official recipe"
# By case, how many times as fast as the fastest other feed our fastest should be; the beginnings of
# the names of both, ours first, and what the tables call the other.
TARGETS = {
    "photographs": (
        (6.0, *_RECIPE),
        (0.45, "ours-", "decode-", "the fastest decoder"),
        (0.95, "ours-shards", "ours-threads", "a folder, by shards,"),
    ),
    "large": ((6.0, "ours-reduced", "ours-threads", "whole decoding, by reduced decoding,"),),
    "arrays-32": ((5.0, *_RECIPE),),
    "arrays-28": ((5.0, *_RECIPE),),
}
BANDWIDTH = 0.7  # of a GPU's copy, for the kernel

Rates = dict[str, list[float]]  # counts per second of every turn or call, by feed
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
    session = Session(device, given)
    distinct = images.QUICK_DISTINCT if given.quick else images.DISTINCT
    measure(session, chosen, pace.over(PACE[device.kind], QUICK if given.quick else None), distinct)
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
    device, peaks = session.device, session.device.peaks()
    print(f"copy {peaks.copy:.1f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for case in session.named(todo):
            reasons = {name: COMPARED[name].unavailable(case, device.torch) for name in case.feeds}
            names, folder = cli.usable(reasons, f"{case.name}: "), None
            if case.photographs and importlib.util.find_spec("PIL") is not None:
                folder = Path(temporary) / f"{case.photographs.widths[0]}"
                if not folder.exists():
                    images.photographs(folder, distinct, kind=case.photographs)
            if KERNELS.keys() & names:
                rates, failed = kernel_rates(case, names, folder, device)
                figures: dict[str, turns.Figures] = {}
            else:
                rates, figures, failed = race(case, names, folder, pace, session)
            rows = [row(case, name, each, figures.get(name, {}), peaks.copy, device.kind)
                    for name, each in rates.items()]  # fmt: skip
            session.keep([each | {"peaks": peaks.as_fields()} for each in rows])
            session.failures |= {f"{case.name} {name}": why for name, why in failed.items()}
            device.release()


def race(
    case: Case,
    names: Sequence[str],
    folder: Path | None,
    pace: tuple[float, int, float],
    session: Session,
) -> tuple[Rates, dict[str, turns.Figures], Failures]:
    """(counts per second of every turn, figures, failures) of feeds that can run here; see
    `turns.race`."""
    (seconds, rounds, deadline), device = pace, session.device
    if {"ours-shards", "ours-packed"} & {*names}:
        images.packed(folder, case.photographs)
    cores = device.cores
    one = cores and {min(cores)}
    runners = [
        turns.Runner(
            name, feeds.open_feed, (name, case, folder, device.kind),
            one if name.endswith(ONE_CORE) else cores, deadline,
        )
        for name in names
    ]  # fmt: skip
    return turns.race(runners, rounds, seconds * case.share / rounds)


def kernel_rates(
    case: Case, names: Sequence[str], folder: Path | None, device: Device
) -> tuple[Rates, Failures]:
    """(views per second of every call, failures) of kernels, in this process and in turns: the
    device's own time where it captures graphs."""
    clocks: dict[str, Callable[[], float]] = {}
    failed: Failures = {}
    for name in names:
        try:
            clocks[name] = _clock(KERNELS[name].prepare(case, folder, device.torch), device)
        except DisagreementError as error:
            failed[name] = str(error)
    counts = {name: KERNEL_CALLS.count(clock()) for name, clock in clocks.items()}
    samples = interleave(clocks, counts) if clocks else {}
    device.new_graphs()
    views = case.batch_size * len(case.views.views)
    return {name: [views / each for each in found] for name, found in samples.items()}, failed


def _clock(call: Callable[[], object], device: Device) -> Callable[[], float]:
    """Seconds of a call on the device, launches left out where a graph can be captured."""
    call()
    try:
        replay, _ = device.capture(call)
    except NoGraphError:
        return lambda: device.call_seconds(call)
    return lambda: device.replay_seconds(replay)


def _head(case: Case) -> Row:
    head = {"suite": "views", "case": case.name, "n": case.batch_size, "d": case.side}
    return head | {"dtype": "fp32"}


def row(
    case: Case,
    feed: str,
    rates: Sequence[float],
    figures: turns.Figures,
    copy_gbps: float,
    kind: str,
) -> Row:
    """A row of results without its provenance."""
    found = _head(case) | {
        "device": kind,
        "peer": feed,
        "source": feeds.version(feed),
        "unit": COMPARED[feed].unit,
        "rounds": len(rates),
        **columns(rates, "per_s"),
        **{name: rounded(value) for name, value in figures.items()},
    }
    if feed in KERNELS:
        moved = KERNELS[feed].bytes_moved(case) * found["median_per_s"] / 1e9
        found["fraction_of_copy"] = rounded(moved / copy_gbps)
    return found


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each case, and one of its stages."""
    parts = [reading(f"views {rows[0].get('device', 'cpu')}", cores=CORES)]
    for case in CASES.values():
        found = {each["peer"]: each for each in rows if each["case"] == case.name}
        if found:
            title = f"**{markdown.capital(case.title)}**"
            parts += [title, _table(case, found), _verdict(case, found)]
            parts += [_stages(found), _stages(found, "stages-reduced")]
    return joined(*parts)


def _table(case: Case, found: dict[str, Row]) -> str:
    unit, reduced = COMPARED[case.feeds[0]].unit, "ours-reduced" in found
    shown = [
        titled(TITLES),
        *spread("per_s", rate, f"{unit}/s", bold=lambda each: each["peer"].startswith("ours-")),
        Column("turns", "rounds"),
        Column("versions", "source"),
        _over(found, f"× {TITLES[OFFICIAL]}", OFFICIAL, "{:.2f}×"),
        *([_over(found, "× whole decoding", "ours-threads", "{:.2f}×")] if reduced else []),
        _over(found, "of the fastest decoder", "decode-", "{:.0%}"),
        Column("first batch, s", "first_batch_s", ".2f"),
        Column("error, levels", "error_levels", ".2f"),
        Column("values not Pillow's", "differing_share", ".1%"),
        Column("by up to, levels", "largest_levels", ".0f"),
        Column("PSNR, dB", "psnr_db", ".1f"),
        Column("of copy", "fraction_of_copy", ".0%"),
    ]
    rows = [each for each in found.values() if each["unit"] != "staged"]
    present = [c for c in shown if any(c.cell(each) != c.missing for each in rows)]
    return table_of(present, rows)


def _over(found: dict[str, Row], head: str, other: str, shown: str) -> Column:
    """The rates of what makes views over those of another one with as many cores."""

    def ratio(each: Row) -> float | None:
        name = each["peer"]
        rates = _rates(found, other, name.endswith(ONE_CORE))
        if not rates or name in rates or not name.startswith(MAKES_VIEWS):
            return None
        return each["median_per_s"] / max(rates.values())

    return Column(head, ratio, shown.format, missing="")


def _rates(found: dict[str, Row], prefix: str, one_core: bool = False) -> dict[str, float]:
    """The rates of the feeds whose names begin so, on one core or on all."""
    return {
        name: each["median_per_s"]
        for name, each in found.items()
        if name.startswith(prefix) and name.endswith(ONE_CORE) == one_core
    }


def _verdict(case: Case, found: dict[str, Row]) -> str:
    """Which targets are met, and which of ours are slower than a recipe."""
    texts = []
    for times, *names, words in TARGETS.get(case.name, ()):
        ours, others = (_rates(found, name) for name in names)
        if ours and others:
            ratio = max(ours.values()) / max(others.values())
            target = f"{times:g} times {words}"
            texts.append(markdown.target(target, ratio >= times, f"{ratio:.2f} times"))
    slower = [
        f"{TITLES[name]} than {TITLES[peer]}"
        for name, each in _rates(found, "ours-").items()
        for peer in (OFFICIAL, LIGHTLY)
        if each < _rates(found, peer).get(peer, 0.0)
    ]
    texts += [f"Slower: {'; '.join(slower)}."] if slower else []
    kernels = [each for name, each in found.items() if name.startswith("kernel-triton")]
    if kernels:
        missed = [
            f"{TITLES[each['peer']]} ({each['fraction_of_copy']:.0%})"
            for each in kernels
            if each["fraction_of_copy"] < BANDWIDTH
        ]
        words = f"{BANDWIDTH:.0%} of the copy bandwidth"
        texts.append(markdown.target(words, not missed, "; ".join(missed)))
    return " ".join(texts)


def _stages(found: dict[str, Row], stages: str = "stages") -> str:
    """What each stage of ours costs on one core, and what is left to the fastest decoder."""
    staged = found.get(stages + ONE_CORE)
    if staged is None:
        return ""
    spent = {title: staged[f"{name}_us"] for name, title in STAGES.items()}
    total, beyond = sum(spent.values()), {}
    whole, limit = (_rates(found, name, True) for name in ("ours-threads", "decode-"))
    if whole and limit:
        total, least = (1e6 / max(rates.values()) for rates in (whole, limit))
        spent["rest"] = total - sum(spent.values())
        beyond = {"limit: the fastest decoder": least, "left to the limit": total - least}
    spent |= {"whole": total} | beyond
    shown = [
        Column(f"{TITLES[stages]}, one core", "name", left=True),
        Column("µs an image", "us", ".0f"),
        Column("of the whole", lambda each: each["us"] / total, ".0%"),
    ]
    return table_of(shown, [{"name": name, "us": value} for name, value in spent.items()])
