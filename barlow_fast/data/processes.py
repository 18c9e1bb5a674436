"""What every process does that this package starts to read images."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

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


@contextlib.contextmanager
def leaving_to_parent() -> Iterator[None]:
    """Processes that are started inside leave Ctrl-C to this one from their first moment on: it is
    held back until `obey_parent` has made it ignored. Python's own start takes a second, in which
    it would end a process with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    # It lets signals through again when it starts: not inside.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        with _postponed():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _postponed() -> Iterator[None]:
    """Handlers in Python run after the block: another thread may get what this one holds back, and
    Ctrl-C would leave half of what is started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        yield
        return
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if seen:
            signal.raise_signal(signal.SIGINT)


def obey_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when that has ended, also by SIGKILL. What
    it logs is escaped.

    Called first in a process of multiprocessing that is not forked from the parent, and is started
    inside `leaving_to_parent`.
    """
    terminal.install()
    # A terminal sends it to all; the parent knows what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
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
