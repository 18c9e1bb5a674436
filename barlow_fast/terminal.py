"""Output to terminals: everything that commands print goes through here, and control
characters in it are written as escapes. A file's name can hold any character, and a terminal obeys
some of them. Also for logs, warnings and tracebacks, in every process that `install` is called in.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from .files import printable as printable

if TYPE_CHECKING:
    from rich.console import Console


def escaped(text: str) -> str:
    """Text of several lines with control characters as escapes."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Prints lines to standard output."""
    print(escaped(text), file=sys.stdout if stream is None else stream)


def complain(text: str) -> None:
    """Prints one line to standard error."""
    say(printable(text), sys.stderr)


def console(**options: Any) -> Console:
    """A console of rich that escapes, takes no text for markup, and breaks no lines."""
    from rich.console import Console, RenderableType
    from rich.segment import Segment

    class Escaping(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            # Here too: rich drops some control characters before anything is rendered.
            objects = tuple(escaped(o) if isinstance(o, str) else o for o in objects)
            super().print(*objects, **options)

        def render(self, renderable: RenderableType, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=escaped(segment.text))

    return Escaping(markup=False, highlight=False, soft_wrap=True, **options)


def install() -> None:
    """Sends the logs, warnings and tracebacks of this process through here."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Only where no handlers are set up.
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _traceback


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)


def _traceback(*error: Any) -> None:
    say("".join(traceback.format_exception(*error)).rstrip(), sys.stderr)


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Escapes what other code prints."""
    with (
        contextlib.redirect_stdout(_Stream(sys.stdout)),
        contextlib.redirect_stderr(_Stream(sys.stderr)),
    ):
        yield


class _Stream(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(escaped(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
