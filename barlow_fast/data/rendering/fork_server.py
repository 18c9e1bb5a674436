"""Imported by Python's fork server before it forks workers, and by nothing else: importing it
replaces `sys.excepthook`.

A worker that is forked for a process that has just been killed finds nothing to read, and the fork
server would print the traceback of that EOFError on the terminal of the killed run.
"""

import sys
from types import TracebackType


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As `sys.__excepthook__`, without EOFError."""
    if not issubclass(kind, EOFError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report
