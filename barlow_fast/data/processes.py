"""What every process does that this package starts to read images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from .. import terminal

LOOK_EVERY = 2.0  # seconds, at whether the parent still lives


def obey_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when that has ended, also by SIGKILL. What
    it logs is escaped.

    Called first in a process of multiprocessing that is not forked from the parent.
    """
    terminal.install()
    # A terminal sends it to all; the parent knows what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
