"""All suites of a device one after the other, each in a process and a share of the time of its own.

This one measures nothing itself and has no rows. What it runs is shorter than the suites' own full
runs: fewer shapes and cases, see PARTS.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench import devices, lifetime, provenance, results
from bench.inputs import ALIASES, CUDA_VARIANTS, VARIANTS, parse_shapes
from bench.optional import Console, Table, typer
from bench.results import Row

SECTION = "All suites"
GRACE = 120.0  # seconds beyond its share after which a suite is ended
STOP_SECONDS = 10.0  # for a suite to end once it has been asked to
INTERRUPTED = 130  # exit status, as a shell has it

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Part:
    """What is run of one suite.

    Attributes:
        name: of the suite.
        minutes: that it takes on two cores; the share that it gets of all the time.
        arguments: of its shorter run on a CPU.
        quick_minutes: of the quick run; None leaves it out there.
        quick: arguments of the quick run, beside --quick.
    """

    name: str
    minutes: float
    arguments: tuple[str, ...] = ()
    quick_minutes: float | None = None
    quick: tuple[str, ...] = ()


PARTS = {
    part.name: part
    for part in (
        Part("compilation", 0.5),
        Part("loss", 5.7, ("--compiled-shapes", "256x1024"), 0.6),
        Part("distributed", 1.5, ("--shapes", "2048x8192", "--ranks", "2"), 0.35),
        Part("memory", 1.4, ("--shapes", "256x8192"), 0.2),
        Part("views", 1.6, ("--cases", "arrays-32,kernel"), 0.3, ("--cases", "arrays-32")),
        Part("train", 1.7, ("--cases", "fashion-mnist"), 0.3, ("--peers", "ours,official")),
        Part("startup", 2.2, ("--cases", "import,first-call,second-call"), 0.25),
    )
}
ON_CUDA = ("loss", "memory", "views", "train", "startup")
OTHER_MINUTES = 5.0  # for a suite that is not in the table
MINUTES, QUICK_MINUTES = 15.0, 2.0


@dataclass
class Outcome:
    """What became of one suite."""

    name: str
    seconds: float = 0.0
    rows: int = 0
    problem: str | None = None
    left_out: str | None = None

    def words(self) -> str:
        if self.left_out is not None:
            return f"left out: {self.left_out}"
        return "done" if self.problem is None else f"failed: {self.problem}"


def command(
    suites: Annotated[
        str | None, typer.Option(help=f"Names, comma-separated. Default: {', '.join(PARTS)}.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in two minutes; no file unless --out is given.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            help=f"For all suites together. Default: {MINUTES:g}, {QUICK_MINUTES:g} for --quick."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON Lines file. Default: those of the suites, none for --quick."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtypes: Annotated[
        str | None, typer.Option(help="For suites that have them; those each suite knows.")
    ] = None,
    shapes: Annotated[str | None, typer.Option(help="For suites that have shapes.")] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Those that each suite knows; 'ours' stands for all that begin with it."),
    ] = None,
) -> None:
    """Run all suites one after the other, each in a process of its own, in 15 minutes."""
    try:
        parts = choose(suites, device, quick)
        if minutes is not None and not minutes > 0:
            raise ValueError(f"--minutes is more than 0; got {minutes:g}")
        if shapes is not None:
            parse_shapes(shapes)
        slug = devices.choose(device).slug()
        given = {
            part.name: arguments_of(part, device, quick, dtypes, shapes, peers) for part in parts
        }
        refuse_unknown(parts, device, dtypes, peers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    if quick and out is None:
        console.print("without --out, rows are counted and thrown away")
    with tempfile.TemporaryDirectory() as folder:
        file = out or (Path(folder) / "rows.jsonl" if quick else None)
        outcomes, status = run(parts, given, minutes, quick, device, file, slug)
    console.print(summary(outcomes))
    if out is not None and out.exists():
        console.print(f"rows are in {out}")
    if status:
        raise typer.Exit(status)


def choose(text: str | None, device: str, quick: bool) -> list[Part]:
    """The parts of a comma-separated list of suites in the order of PARTS, others after them; for
    None those of the device. ValueError for an unknown name."""
    from bench.suites import discover

    known = [name for name in discover() if name != "all"]
    if text is None:
        names = [
            part.name
            for part in PARTS.values()
            if not (quick and part.quick_minutes is None)
            and (device != "cuda" or part.name in ON_CUDA)
        ]
    else:
        names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown suite {name!r}; there are {', '.join(known)}")
        if device == "cuda" and "device" not in options(name):
            raise ValueError(f"the suite {name!r} runs on no GPU; there are {', '.join(ON_CUDA)}")
    order = [*PARTS, *(name for name in names if name not in PARTS)]
    return [PARTS.get(name, Part(name, OTHER_MINUTES)) for name in order if name in names]


def options(suite: str) -> set[str]:
    """Names of the parameters of a suite's command."""
    from bench.suites import discover

    return set(inspect.signature(discover()[suite].command).parameters)


def arguments_of(
    part: Part,
    device: str,
    quick: bool,
    dtypes: str | None,
    shapes: str | None,
    peers: str | None,
) -> list[str] | str:
    """Arguments of a suite without its file and time, or in words why it is left out."""
    has = options(part.name)
    arguments = ["--quick"] if quick and "quick" in has else []
    if device == "cpu":
        arguments += part.quick if quick else part.arguments
    if "device" in has:
        arguments += ["--device", device]
    if shapes is not None and "shapes" in has:
        arguments += ["--shapes", shapes]
    for option, text, known in (
        ("dtypes", dtypes, known_dtypes(part.name, device)),
        ("peers", peers, known_peers(part.name, device)),
    ):
        if text is None or known is None:
            continue
        names = among(text, known)
        if not names:
            return f"it knows none of {option} {text}"
        flag = "--feeds" if "feeds_of" in has and option == "peers" else f"--{option}"
        arguments += [flag, ",".join(names)]
    return arguments


def known_dtypes(suite: str, device: str) -> list[str] | None:
    """The dtypes of a suite; None if it has no such option."""
    if "dtypes" not in options(suite):
        return None
    if suite == "distributed":
        from bench.ranks.implementations import PRECISION

        return list(PRECISION)
    return list(CUDA_VARIANTS if device == "cuda" else VARIANTS)


def known_peers(suite: str, device: str) -> list[str] | None:
    """The implementations that a suite compares; None if it has no such option."""
    has = options(suite)
    if "feeds_of" in has:
        from bench.views.feeds import CASES

        return list(dict.fromkeys(feed for case in CASES.values() for feed in case.feeds))
    if "peers" not in has:
        return None
    if suite == "distributed":
        from bench.ranks.implementations import discover

        return list(discover())
    if suite == "train":
        from bench.training.cases import PEERS

        return list(PEERS)
    if suite == "startup":
        from bench.startup.processes import PEERS

        return list(PEERS)
    from bench.peers import discover as discover_peers

    return list(discover_peers(device))


def among(text: str, known: Sequence[str]) -> list[str]:
    """What a comma-separated list means to a suite: names it knows; where it knows a name only as
    the beginning of others (`ours` of `ours-rows`), or as an alias, those."""
    found: list[str] = []
    for name in (each.strip() for each in text.split(",")):
        whole = [k for k in known if k == name or k in ALIASES.get(name, ())]
        found += whole or [k for k in known if k.startswith(f"{name}-")]
    return [name for name in known if name in found]


def refuse_unknown(
    parts: Sequence[Part], device: str, dtypes: str | None, peers: str | None
) -> None:
    """ValueError for a dtype or peer that none of the suites knows."""
    for kind, text, known_of in (
        ("dtype", dtypes, known_dtypes),
        ("peer", peers, known_peers),
    ):
        known = dict.fromkeys(n for part in parts for n in known_of(part.name, device) or ())
        for name in (each.strip() for each in (text or "").split(",") if text):
            if not among(name, list(known)):
                raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")


def run(
    parts: Sequence[Part],
    given: dict[str, list[str] | str],
    minutes: float | None,
    quick: bool,
    device: str,
    out: Path | None,
    slug: str,
) -> tuple[list[Outcome], int]:
    """Runs the suites. (outcomes, exit status): 1 if one failed, INTERRUPTED after Ctrl-C.

    `minutes` are shared out as PARTS says; without them no suite gets more than PARTS says. Time
    that one leaves over is the next one's. One that is still running GRACE seconds after all shares
    up to its own are over is ended.
    """
    shares = [share_of(part, quick) for part in parts]
    scale = 60 * (minutes or (QUICK_MINUTES if quick else MINUTES)) / sum(shares)
    if minutes is None:
        scale = min(scale, 60.0)
    begun, total = time.monotonic(), 0.0
    outcomes: list[Outcome] = []
    for part, share in zip(parts, shares, strict=True):
        total += share * scale
        outcome = Outcome(part.name)
        outcomes.append(outcome)
        arguments = given[part.name]
        if isinstance(arguments, str):
            outcome.left_out = arguments
            continue
        left = max(begun + total - time.monotonic(), share * scale)
        file = out or default_file(part.name, slug)
        arguments = [*arguments, *time_of(part.name, device, left)]
        arguments += ["--out", str(out)] if out is not None else []
        console.print(f"[bold]== {part.name}, about {left / 60:.1f} minutes at most[/]")
        date, start = _now(), time.monotonic()
        try:
            outcome.problem = call(part.name, arguments, left + GRACE)
        except KeyboardInterrupt:
            outcome.problem = "interrupted"
        outcome.seconds = time.monotonic() - start
        outcome.rows = rows_since(file, part.name, date)
        if outcome.problem == "interrupted":
            return outcomes, INTERRUPTED
    return outcomes, int(any(outcome.problem is not None for outcome in outcomes))


def share_of(part: Part, quick: bool) -> float:
    """Minutes."""
    return part.minutes if not quick or part.quick_minutes is None else part.quick_minutes


def time_of(suite: str, device: str, seconds: float) -> list[str]:
    """How a suite is told how long it may take, if it can be told."""
    has = options(suite)
    if device == "cuda" and "limit" in has:
        return ["--limit", f"{seconds:.0f}"]
    return ["--minutes", f"{seconds / 60:.2g}"] if "minutes" in has else []


def default_file(suite: str, slug: str) -> Path:
    """Where a suite writes its rows without --out."""
    from bench.suites import discover

    return getattr(discover()[suite], "FILE", results.default_file(slug))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def rows_since(file: Path, suite: str, date: str) -> int:
    """How many rows of a suite in a file are of a run begun at `date` (ISO, UTC) or later."""

    def counts(row: Row) -> bool:
        return row["suite"] == suite and row["provenance"]["date"] >= date

    return sum(map(counts, results.read(file)))


def command_of(suite: str, arguments: Sequence[str]) -> list[str]:
    """What runs a suite."""
    return [sys.executable, "-m", "bench", suite, *arguments]


def call(suite: str, arguments: Sequence[str], seconds: float) -> str | None:
    """Runs a suite in a process of its own; None, or what went wrong.

    The process leads a session of its own, so that it can be stopped with all that it started. A
    terminal's Ctrl-C does not reach it there: it is passed on from here, once.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM; the process has ended.
    """
    process = subprocess.Popen(
        command_of(suite, arguments),
        cwd=provenance.ROOT,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lifetime.tied(),
    )
    try:
        with _terminated_as_interrupted():
            status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s, more than its time"
    finally:
        lifetime.stop(process, (signal.SIGINT, signal.SIGTERM), STOP_SECONDS)
    return None if status == 0 else f"exit status {status}"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that no suite outlives this process."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(outcomes: Sequence[Outcome]) -> Table:
    """What became of every suite, as a table."""
    table = Table(title="", title_justify="left")
    for heading in ("suite", "seconds", "rows", "outcome"):
        table.add_column(heading, justify="right" if heading in ("seconds", "rows") else "left")
    for each in outcomes:
        table.add_row(each.name, f"{each.seconds:.0f}", str(each.rows), each.words())
    total = sum(each.seconds for each in outcomes)
    failed = sum(each.problem is not None for each in outcomes)
    words = f"{failed} failed" if failed else "nothing failed"
    table.add_row("all", f"{total:.0f}", str(sum(each.rows for each in outcomes)), words)
    return table


def tables(rows: list[Row], brief: bool) -> str:
    """Nothing: the rows are those of the suites."""
    return ""
