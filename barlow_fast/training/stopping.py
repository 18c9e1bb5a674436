"""Signals that stop a run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from .loop import Trainer

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
# Seconds in which a second signal counts as the first: a terminal and a batch system signal all
# processes, and torchrun forwards the signal too.
SAME_REQUEST = 2.0


@contextlib.contextmanager
def stop_on_signal(trainer: Trainer, seen: list[int]) -> Iterator[None]:
    """Stop the trainer between two steps at the first signal that would end this process; a second
    signal ends it at once, without saving.

    Ignored signals, such as SIGHUP under nohup, and handlers of other code stay as they are.

    Args:
        trainer: stopped by its `stop_requested`.
        seen: gets the number of the first signal.
    """
    previous: dict[int, Any] = {}
    first = 0.0

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def request(number: int, frame: object) -> None:
        nonlocal first
        if not seen:
            first = time.monotonic()
            trainer.stop_requested = True
            seen.append(number)
        elif time.monotonic() - first > SAME_REQUEST:
            restore()
            signal.raise_signal(number)

    for each in STOP_SIGNALS:
        handler = signal.getsignal(each)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            previous[each] = signal.signal(each, request)
    try:
        yield
    finally:
        restore()
