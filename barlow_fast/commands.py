"""The commands of `barlow-fast`. Imports of heavy libraries wait until a command runs."""

from __future__ import annotations

import sys

import typer

from .data_commands import data
from .evaluate_commands import evaluate
from .export_commands import export
from .pretrain_commands import pretrain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The exact Barlow Twins loss, and the training that goes with it.",
)
app.add_typer(data, name="data")
app.command()(pretrain)
app.add_typer(evaluate, name="evaluate")
app.command()(export)


@app.callback()
def barlow_fast() -> None:
    """Keeps every command a subcommand, however few there are."""


@app.command()
def doctor() -> None:
    """Report what is installed, what is missing and what that costs."""
    from .doctor import report

    raise typer.Exit(report())


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def tune(context: typer.Context) -> None:
    """Measure configurations of the Triton kernels on this GPU and keep the best."""
    from .cli import tune

    sys.exit(tune(context.args))
