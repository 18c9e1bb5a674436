"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..terminal import complain

USAGE_ERROR, FAILURE = 2, 1
# Shells report a process that a signal ended as this and the signal's number.
SIGNALLED = 128
INTERRUPTED = SIGNALLED + signal.SIGINT


def skipping(data: Path | str | None) -> str:
    """What to do about images that cannot be read, for commands that have the option."""
    check = shlex.join(["barlow-fast", "data", "check", str(data)])
    listed = "" if data is None else f", `{check}` lists them all"
    return f". --on-bad-image skip leaves such images out{listed}"


def fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    """Says why on standard error and leaves with an exit status."""
    # Nobody reads it where the terminal was closed; the status remains.
    with contextlib.suppress(OSError):
        complain(message)
    sys.exit(code)


def missing_libraries(names: list[str]) -> str:
    """The message for missing libraries."""
    return (
        f"barlow-fast: {', '.join(names)} not found. The commands need the extra: "
        "pip install 'barlow-fast[train]'"
    )


def without(error: ModuleNotFoundError) -> str:
    """The message for a missing library; some errors name the extra that installs it."""
    text = str(error)
    if "barlow-fast[" in text:
        return f"barlow-fast: {text}"
    return missing_libraries([str(error.name)])


def described(error: BaseException) -> str:
    """An error in words, with its file and, where there are several, its rank."""
    text = str(error)
    if type(error).__str__ is OSError.__str__ and error.filename is not None and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return text if alone else f"rank {os.environ.get('RANK')}: {text}"


@contextlib.contextmanager
def failures(on_bad_image: str = "", runtime_code: int = FAILURE) -> Iterator[None]:
    """What can go wrong in a command, as one line and an exit status.

    Args:
        on_bad_image: what to add where an image cannot be read.
        runtime_code: the status of errors that depend on the machine, such as a backend that cannot
            be used here.
    """
    from ..data.faults import BadImageError

    try:
        yield
    except ModuleNotFoundError as error:
        fail(without(error), FAILURE)
    except KeyboardInterrupt:
        fail("barlow-fast: interrupted", INTERRUPTED)
    except BadImageError as error:
        fail(f"barlow-fast: {described(error)}{on_bad_image}", FAILURE)
    except RuntimeError as error:
        fail(f"barlow-fast: {described(error)}", runtime_code)
    except MemoryError as error:
        fail(f"barlow-fast: out of memory ({error})", FAILURE)
    except (ValueError, OSError, OverflowError, ImportError) as error:
        fail(f"barlow-fast: {described(error)}")
