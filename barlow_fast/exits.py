"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import typer

from .cli import missing_libraries
from .terminal import complain

USAGE_ERROR, FAILURE = 2, 1
# As shells report a process that a signal ended: this and its number.
SIGNALLED = 128
INTERRUPTED = SIGNALLED + 2


def skipping(data: Path | str | None) -> str:
    """What to do about images that cannot be read, for commands that have the option."""
    check = shlex.join(["barlow-fast", "data", "check", str(data)])
    listed = "" if data is None else f", `{check}` lists them all"
    return f". --on-bad-image skip goes on without such images{listed}"


def fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    """Says why on standard error and leaves with an exit status."""
    # Nobody reads it where the terminal was closed; the status remains.
    with contextlib.suppress(OSError):
        complain(message)
    raise typer.Exit(code)


def without(error: ModuleNotFoundError) -> str:
    """What to tell someone who lacks a library; some errors name the extra that brings it."""
    text = str(error)
    if "barlow-fast[" in text:
        return f"barlow-fast: {text}"
    return missing_libraries([str(error.name)])


@contextlib.contextmanager
def failures(on_bad_image: str = "") -> Iterator[None]:
    """What can go wrong in a command, as one line and an exit status.

    Args:
        on_bad_image: what to add where an image cannot be read.
    """
    from .data.faults import BadImageError

    try:
        yield
    except ModuleNotFoundError as error:
        fail(without(error), FAILURE)
    except KeyboardInterrupt:
        fail("barlow-fast: interrupted", INTERRUPTED)
    except BadImageError as error:
        fail(f"barlow-fast: {error}{on_bad_image}", FAILURE)
    except RuntimeError as error:
        fail(f"barlow-fast: {error}", FAILURE)
    except MemoryError as error:
        fail(f"barlow-fast: out of memory ({error})", FAILURE)
    except (ValueError, OSError, OverflowError) as error:
        fail(f"barlow-fast: {error}")
