"""Images per second of loaders that make the same views, at rest and in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from bench import devices, floor, provenance, results
from bench.markdown import table_line
from bench.optional import Console, typer
from bench.results import Row, rounded
from bench.timing import percentile
from bench.views import feeds, images, turns
from bench.views.feeds import CASES, OFFICIAL, TITLES, Case

SECTION = "Views: images per second"
SECONDS, QUICK_SECONDS = 16.0, 4.0  # for each feed of a case; see `Case.share`
ROUNDS, QUICK_ROUNDS = 5, 3
QUICK_DISTINCT = 60
CORES = 2
BANDWIDTH_TARGET = 0.7  # of a GPU's copy, for the kernel

console = Console(highlight=False, soft_wrap=True)


def command(
    cases: Annotated[str | None, typer.Option(help=f"Of {', '.join(CASES)}. Default: all.")] = None,
    feeds_of: Annotated[
        str | None, typer.Option("--feeds", help="Names, comma-separated. Default: all.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Time for each feed of a case.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Turns of each feed.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few feeds, little time.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="cpu: after this time no case is begun.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON Lines file. Default: this machine's in bench/results, none for --quick."
        ),
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds without an answer after which a feed is ended.")
    ] = turns.DEADLINE,
    device: Annotated[str, typer.Option(help="cpu, or cuda: the kernel, and our loaders.")] = "cpu",
) -> None:
    """Time loaders of two views, ours against torchvision's recipe and lightly's."""
    try:
        chosen = feeds.parse(cases, quick)
        if feeds_of is not None:
            chosen = only(chosen, [name.strip() for name in feeds_of.split(",")])
        chosen_device = devices.choose(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    if device == "cuda":
        from bench.gpu import views as on_gpu  # knows this module

        found = on_gpu.measure(chosen_device, out or results.default_file(chosen_device.slug()))
        if found.failures:
            raise typer.Exit(1)
        return
    if out is None and not quick:
        out = results.default_file()
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    distinct = QUICK_DISTINCT if quick else images.DISTINCT
    end = None if minutes is None else time.monotonic() + 60 * minutes
    if measure(chosen, seconds, rounds, distinct, out, deadline, end):
        raise typer.Exit(1)


def only(
    chosen: list[tuple[Case, tuple[str, ...]]], names: Sequence[str]
) -> list[tuple[Case, tuple[str, ...]]]:
    """The cases with those feeds; ValueError for one that no case has."""
    known = {feed for _, each in chosen for feed in each}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown feed {name!r}; there are {', '.join(sorted(known))}")
    kept = [(case, tuple(f for f in each if f in names)) for case, each in chosen]
    return [(case, each) for case, each in kept if each]


def measure(
    chosen: list[tuple[Case, tuple[str, ...]]],
    seconds: float,
    rounds: int,
    distinct: int,
    out: Path | None,
    deadline: float,
    end: float | None = None,
) -> dict[str, str]:
    """Runs the suite. Returns what failed, with reasons; that has no rows. From `end` on, a
    time.monotonic(), no case is begun."""
    origin = provenance.collect()
    console.print(
        f"{origin['cpu']}, {origin['cores']} cores, torch {origin['torch']}, "
        f"kernels {origin['instruction_set']}, load {origin['load_average']}, "
        f"commit {origin['commit']}"
    )
    peaks = floor.measure_peaks()
    console.print(f"copy {peaks.copy:.1f} GB/s")
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        if any(case.files for case, _ in chosen):
            images.photographs(folder, distinct)
        for case, names in chosen:
            if end is not None and time.monotonic() > end:
                console.print(f"left out, as time is over: {case.name}")
                continue
            usable = []
            for name in names:
                reason = feeds.unavailable(name)
                if reason is None:
                    usable.append(name)
                else:
                    console.print(f"[yellow]{name} is left out: {reason}[/]")
            rates, failed = race(case, usable, folder, seconds, rounds, deadline)
            for name, reason in failed.items():
                failures[f"{case.name} {name}"] = reason
                console.print(f"[bold red]{case.name} {name} is not timed: {reason}[/]")
            rows = [
                row(case, name, found, peaks.copy)
                | {"peaks": peaks.as_fields(), "provenance": origin}
                for name, found in rates.items()
            ]
            for each in rows:
                console.print(line_of(each))
            if out is not None and rows:
                results.merge(out, rows)
    if out is not None and out.exists():
        console.print(f"rows are in {out}; `python -m bench report` makes the tables")
    return failures


def race(
    case: Case,
    names: Sequence[str],
    folder: Path | None,
    seconds: float,
    rounds: int,
    deadline: float,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(images per second of every turn, failures) of feeds that can run here; see `turns.race`.

    `folder` has the photographs, for a case of files; a feed gets its share of `seconds`.
    """
    cores = turns.two_cores()
    runners = [
        turns.Runner(
            name, feeds.open_feed, (name, case, folder if case.files else None), cores, deadline
        )
        for name in names
    ]
    return turns.race(runners, rounds, seconds * case.share / rounds)


def row(case: Case, feed: str, rates: list[float], copy_gbps: float, element_bytes: int = 4) -> Row:
    """A row of results without its provenance; `element_bytes` of a kernel's output."""
    median, p20, p80 = (percentile(rates, q) for q in (50, 20, 80))
    found = {
        "suite": "views",
        "case": case.name,
        "n": case.batch_size,
        "d": case.side,
        "dtype": "fp32",
        "peer": feed,
        "source": feeds.version(feed),
        "unit": case.unit,
        "rounds": len(rates),
        "median_per_s": rounded(median),
        "p20_per_s": rounded(p20),
        "p80_per_s": rounded(p80),
    }
    if case.unit == "views":
        moved = feeds.kernel_bytes(case, element_bytes) * median / 1e9
        found["fraction_of_copy"] = rounded(moved / copy_gbps)
    return found


def line_of(found: Row) -> str:
    """A row in words."""
    text = (
        f"{found['case']} {found['peer']}: {_short(found['median_per_s'])} {found['unit']}/s "
        f"({_short(found['p20_per_s'])} to {_short(found['p80_per_s'])})"
    )
    if "fraction_of_copy" in found:
        text += f", {found['fraction_of_copy']:.0%} of the copy bandwidth"
    return text


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def tables(rows: list[Row], brief: bool) -> str:
    """Markdown of one machine's rows: a table for each case; percentiles unless `brief`."""
    on_gpu = rows[0].get("device") == "cuda"
    parts = [_gpu_reading() if on_gpu else _reading()]
    for case in CASES.values():
        found = {each["peer"]: each for each in rows if each["case"] == case.name}
        if found:
            parts += [f"**{case.title[0].upper()}{case.title[1:]}**", _table(case, found, brief)]
            said = _bandwidth(found) if on_gpu else _verdict(case, found)
            parts += [said] if said else []
    return "\n\n".join(parts)


def _reading() -> str:
    return (
        "Images per second, each image decoded (or taken from memory) and turned into two views: "
        f"float32 tensors, normalised, in batches. Medians of turns on {CORES} cores, "
        "first batches left out; processes of a loader stand still while another one has its "
        "turn. The official recipe (torchvision's transforms, written anew from their parameters) "
        f"and lightly's run in a `DataLoader` with {feeds.WORKERS} workers, ours in as many "
        "workers of PIL or threads of DALI, with the photometric kernel in C++. Before it is "
        "timed, ours is held against torchvision's functions for the same parameters. The kernel "
        "alone is counted in views; *of copy* are the bytes that it must move (bytes in, float32 "
        "out) per second, divided by the copy bandwidth of the same run."
    )


def _gpu_reading() -> str:
    return (
        "Images per second of our loaders alone, two views each, until the GPU has them: float32, "
        "normalised, in batches; images in memory are cropped on the GPU, files are decoded and "
        "cropped by DALI where it is installed, else by Pillow. The first batch is held against "
        "torchvision's functions where torchvision is installed, the kernel against plain torch. "
        "The kernel alone is counted in views, replayed from a CUDA graph with cold caches: *of "
        "copy* are the bytes that it must move (bytes in, values out) per second, divided by the "
        "copy bandwidth of the same run. *With blur*: all of the first view's and a tenth of the "
        "second's."
    )


def _bandwidth(found: dict[str, Row]) -> str:
    """Whether the kernel reaches its target."""
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


def _table(case: Case, found: dict[str, Row], brief: bool) -> str:
    kernel = case.unit == "views"
    heads = ["implementation", f"{case.unit}/s"]
    heads += [] if brief else ["p20", "p80", "turns", "versions"]
    heads.append("of copy" if kernel else f"× {TITLES[OFFICIAL]}")
    lines = [table_line(heads), table_line(["---", *["---:"] * (len(heads) - 1)])]
    other = found.get(OFFICIAL)
    # A GPU's kernels are named by the rows alone.
    for name in (*case.feeds, *(name for name in found if name not in case.feeds)):
        if name not in found:
            continue
        each = found[name]
        value = _short(each["median_per_s"])
        ours = name.startswith("ours-")
        cells = [TITLES.get(name, name), f"**{value}**" if ours else value]
        if not brief:
            cells += [_short(each["p20_per_s"]), _short(each["p80_per_s"]), str(each["rounds"])]
            cells.append(each["source"])
        if kernel:
            cells.append(f"{each['fraction_of_copy']:.0%}")
        elif other is None or name == OFFICIAL or name.startswith("crops-"):
            cells.append("")
        else:
            cells.append(f"{each['median_per_s'] / other['median_per_s']:.2f}×")
        lines.append(table_line(cells))
    return "\n".join(lines)


def _verdict(case: Case, found: dict[str, Row]) -> str:
    """Whether the target is met, and where ours is slower; said as plainly either way."""
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
