"""Suites of a CPU one after the other, each in processes and a share of the time of its own.

What is run is shorter than the suites' own full runs: fewer shapes and cases, see PARTS.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

from bench import cli, exits, results, runner, suites
from bench.cli import Option
from bench.runner import Context, Part, Suite
from bench.state import State

GRACE = 120.0  # seconds beyond its share after which a suite is ended
MINUTES, QUICK_MINUTES = 15.0, 2.0


class Share(NamedTuple):
    """What is run of one suite.

    Attributes:
        minutes: that it takes on two cores; the share that it gets of all the time.
        arguments: of its shorter run.
        quick_minutes: of the quick run; None leaves it out there.
        quick: arguments of the quick run, beside --quick.
    """

    minutes: float
    arguments: tuple[str, ...] = ()
    quick_minutes: float | None = None
    quick: tuple[str, ...] = ()


OTHER = Share(5.0)  # a suite that is not in the table
PARTS = {
    "compilation": Share(0.5),
    "loss": Share(5.7, ("--compiled-shapes", "256x1024"), 0.6),
    "family": Share(0.4, ("--shapes", "256x2048", "--dtypes", "fp32", "--seconds", "0.5")),
    "distributed": Share(1.5, ("--shapes", "2048x8192", "--ranks", "2"), 0.35),
    "memory": Share(1.4, ("--shapes", "256x8192"), 0.2),
    "views": Share(1.6, ("--cases", "arrays-32,kernel"), 0.3, ("--cases", "arrays-32")),
    "train": Share(1.7, ("--cases", "fashion-mnist"), 0.3, ("--peers", "ours,official")),
    "startup": Share(2.2, ("--cases", "import,first-call,second-call"), 0.25),
}


def command(
    chosen: Annotated[
        str | None, Option(f"Names, comma-separated. Default: {', '.join(PARTS)}.", name="--suites")
    ] = None,
    quick: Annotated[bool, Option("A look in two minutes; no file unless --out is given.")] = False,
    minutes: Annotated[
        float | None,
        Option(f"For all suites together. Default: {MINUTES:g}, {QUICK_MINUTES:g} for --quick."),
    ] = None,
    resume: Annotated[bool, Option("Leave out groups of rows that the files hold.")] = False,
    out: Annotated[
        Path | None, Option("JSON Lines file. Default: those of the suites, none for --quick.")
    ] = None,
) -> int:
    """Run all suites one after the other, each in a process of its own, in 15 minutes."""
    with cli.reading():
        parts = choose(chosen, quick, minutes)
    if quick and out is None:
        print("without --out, rows are counted and thrown away")
    begun, state = time.monotonic(), State({})
    with tempfile.TemporaryDirectory() as folder:
        file = out or (Path(folder) / "rows.jsonl" if quick else None)
        context = Context(
            Path(folder), file, state, resume=resume, command="python -m bench all", grace=GRACE
        )
        seconds = sum(part.seconds for part in parts) + GRACE * len(parts)
        status = runner.run(parts, context, seconds, carry=True)
        seconds = time.monotonic() - begun
    print("\n".join([f"all {seconds:.0f} s", *runner.summary(parts, state)]))
    # What a share of the time did not allow is not expected in it.
    return exits.COMPLETE if status == exits.UNFINISHED else status


def choose(text: str | None, quick: bool, minutes: float | None) -> list[Part]:
    """The parts of a comma-separated list of suites in the order of PARTS, others after them; None
    for all. ValueError for an unknown name, or for no time."""
    default = [name for name, each in PARTS.items() if not quick or each.quick_minutes is not None]
    names = cli.listed(text, dict.fromkeys((*PARTS, *suites.discover())), "suite", default)
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes is more than 0; got {minutes:g}")
    shares = {name: PARTS.get(name, OTHER) for name in names}
    taken = {name: (quick and each.quick_minutes) or each.minutes for name, each in shares.items()}
    scale = 60 * (minutes or (QUICK_MINUTES if quick else MINUTES)) / sum(taken.values())
    scale = min(scale, 60.0) if minutes is None else scale
    return [
        Part(name, scale * taken[name], suite(name, each, quick)) for name, each in shares.items()
    ]


def suite(name: str, share: Share, quick: bool) -> Suite:
    """How a suite is run, with the options that it has."""
    module = suites.discover()[name]
    has = cli.names(module.command)
    given = share.quick if quick else share.arguments
    given = ("--quick", *given) if quick and "quick" in has else given
    takes = [option for option in runner.OPTIONS if option in has]
    return Suite(name, given, takes, getattr(module, "FILE", None) or results.default_file())
