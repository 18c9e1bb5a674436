"""The commands of `barlow-fast`. Imports of heavy libraries wait until a command runs."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import terminal
from .data import data
from .doctor import doctor, version_line
from .evaluate import evaluate
from .exits import INTERRUPTED, fail
from .export import export
from .pretrain import legend, pretrain

# `ClickException`, wherever this version of typer has it.
USAGE = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """Prints wrong usage as everything else is printed: an argument may hold any character."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **options: Any) -> Any:
        _refuse_empty(self)
        if not standalone_mode:
            return super().main(*arguments, standalone_mode=False, **options)
        try:
            status = super().main(*arguments, standalone_mode=False, **options)
        except USAGE as error:
            message = io.StringIO()
            error.show(message)
            terminal.say(message.getvalue().rstrip(), sys.stderr)
            status = error.exit_code
        sys.exit(status)

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            # Before typer handles it, which exits without a message or with one of its own.
            fail("barlow-fast: interrupted", INTERRUPTED)


def _refuse_empty(command: Any) -> None:
    """An empty text is a mistake everywhere, such as a shell variable that is not set; an empty
    path would stand for the current folder."""
    for inner in getattr(command, "commands", {}).values():
        _refuse_empty(inner)
    for parameter in command.params:
        parameter.process_value = functools.partial(_process, parameter, parameter.process_value)


def _process(parameter: Any, plain: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    # While a shell completes a command, an argument may still be empty.
    if context.resilient_parsing:
        return plain(context, value)
    if value == "" or (isinstance(value, (list, tuple)) and "" in value):
        raise typer.BadParameter("it is empty.", context, parameter)
    return plain(context, value)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")
app.command(epilog=legend())(pretrain)
app.add_typer(evaluate, name="evaluate")
app.command()(export)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        terminal.say(version_line())
        raise typer.Exit


@app.callback()
def barlow_fast(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the versions of this program and of torch, and the kernels, and exit.",
        ),
    ] = False,
) -> None:
    """The exact Barlow Twins loss, and the training that goes with it."""


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def tune(context: typer.Context) -> None:
    """Measure configurations of the Triton kernels on this GPU and keep the best."""
    from .tune import tune

    sys.exit(tune(context.args))
