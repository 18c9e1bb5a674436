"""`python -m bench`: every module of `bench.suites` is a command; `report` makes the tables,
`compare` holds two sets of results against each other."""

from __future__ import annotations

import sys

from bench import compare, report, suites
from bench.optional import typer

if typer is None:
    sys.exit("python -m bench needs typer (pip install typer); python -m bench.gpu does not")

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
for name, suite in suites.discover().items():
    app.command(name)(suite.command)
app.command("report")(report.command)
app.command("compare")(compare.command)

if __name__ == "__main__":
    app(prog_name="python -m bench")
