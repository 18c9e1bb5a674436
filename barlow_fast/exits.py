"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

USAGE_ERROR, FAILURE = 2, 1
# As shells report a process that a signal ended: 128 + its number.
INTERRUPTED, TERMINATED = 130, 143


def fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    """Says why on standard error and leaves with an exit status."""
    print(message, file=sys.stderr)
    raise typer.Exit(code)
