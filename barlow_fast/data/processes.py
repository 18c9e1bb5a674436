"""What every process does that this package starts to read images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable

from .. import terminal

# All that end a process unless it handles them, and that others send: terminals, batch systems,
# limits. Not those that a fault of the process itself causes.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR",
        "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO",
    )
    if hasattr(signal, name)
)  # fmt: skip

LOOK_EVERY = 2.0  # seconds, at whether the parent still lives


def obey_parent(ignored: Iterable[int] = (signal.SIGINT,)) -> None:
    """Leaves Ctrl-C to the parent, and ends this process when that has ended, also by SIGKILL. What
    it logs is escaped.

    Called first in a process of multiprocessing that is not forked from the parent.

    Args:
        ignored: signals that are left to the parent.
    """
    terminal.install()
    # Terminals and batch systems send them to all; the parent knows what to do about it.
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    # A pipe that ends with the parent, unless a process that it forked still holds the other end.
    while parent.is_alive() and (os.name != "posix" or _exists(parent.pid)):
        parent.join(LOOK_EVERY)
    os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
