"""Command lines made from the signatures of functions; standard library only.

Each parameter of a command is `Annotated[type, Option("help")]`; one whose type is a dataclass
stands for the fields of that class, which several commands can share.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Command = Callable[..., "int | None"]
CALLED = " called"  # no name of an option


class Refused(Exception):
    """Options with which nothing can be run: exit status 2."""


@dataclass(frozen=True)
class Option:
    """How a parameter is given.

    Attributes:
        help: what `--help` shows.
        name: on the command line, where that is not the parameter's.
        least: of a number.
    """

    help: str
    name: str | None = None
    least: float | None = None


@dataclass(frozen=True)
class Parameter:
    """One option, or an argument where it has no default."""

    name: str
    type: type
    option: Option
    default: Any

    @property
    def required(self) -> bool:
        return self.default in (inspect.Parameter.empty, dataclasses.MISSING)


def parameters(command: Command) -> Iterator[Parameter]:
    """All options of a command, those of dataclasses in their places."""
    hints = typing.get_type_hints(command, include_extras=True)
    for name, each in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            yield from parameters(hints[name])
        else:
            kind, option = typing.get_args(hints[name])
            yield Parameter(name, _plain(kind), option, each.default)


def names(command: Command) -> set[str]:
    """Of the parameters."""
    return {each.name for each in parameters(command)}


def listed(text: str | None, known: Iterable[str], what: str, default: Any = None) -> list[str]:
    """Names of a comma-separated list in the order of `known`; for None those of `default`, by
    default all. ValueError for an unknown one, which calls it a `what`."""
    known = list(known)
    names = [name.strip() for name in text.split(",")] if text is not None else default or known
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are {', '.join(known)}")
    return [name for name in known if name in names]


def usable(reasons: Mapping[str, str | None], where: str = "") -> list[str]:
    """The names of what has no reason that it cannot run here; the others are printed."""
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{where}{name} is left out: {reason}", flush=True)
    return [name for name, reason in reasons.items() if reason is None]


def run(
    commands: Command | dict[str, Command],
    arguments: Sequence[str] | None,
    program: str,
    text: str | None = None,
) -> int:
    """Runs the command that the first argument names, or the only one, whose program `text`
    describes; returns its exit status.

    Raises:
        SystemExit: unknown names or values, or `--help`.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if not isinstance(commands, dict):
        add(parser, commands)
    else:
        choices = parser.add_subparsers(required=True, metavar="COMMAND")
        for name, command in commands.items():
            doc = inspect.getdoc(command) or ""
            add(choices.add_parser(name, help=doc.partition("\n")[0], description=doc), command)
    values = vars(parser.parse_args(arguments))
    chosen, command = values.pop(CALLED)
    try:
        return call(command, values) or 0
    except Refused as error:
        print(f"{chosen.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def add(parser: argparse.ArgumentParser, command: Command) -> None:
    """Adds the options of a command to its parser."""
    parser.allow_abbrev = False
    parser.set_defaults(**{CALLED: (parser, command)})
    for each in parameters(command):
        text, flag = each.option.help.replace("%", "%%"), each.name.replace("_", "-")
        if each.required:
            parser.add_argument(each.name, help=text, type=each.type)
            continue
        name = each.option.name or f"--{flag}"
        options: dict[str, Any] = {"type": _reader(each), "metavar": name.strip("-").upper()}
        if each.type is bool:
            options = {"action": argparse.BooleanOptionalAction if each.default else "store_true"}
        parser.add_argument(name, dest=each.name, default=each.default, help=text, **options)


def call(command: Command, values: dict[str, Any]) -> Any:
    """Calls a function, or a dataclass, with the values of its options."""
    hints = typing.get_type_hints(command, include_extras=True)
    return command(
        **{
            name: call(hints[name], values)
            if dataclasses.is_dataclass(hints[name])
            else values[name]
            for name in inspect.signature(command).parameters
        }
    )


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around the reading of options: what it raises of them is `Refused`."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise Refused(str(error)) from None


def _plain(kind: Any) -> type:
    """`int` of `int | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind


def _reader(each: Parameter) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = each.type(text)
        if each.option.least is not None and not value >= each.option.least:
            raise argparse.ArgumentTypeError(f"{text} is less than {each.option.least:g}")
        return value

    read.__name__ = each.type.__name__  # argparse: "invalid int value: 'x'"
    return read
