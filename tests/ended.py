"""Waiting for what other processes do: no test reads a clock of its own, or sleeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 240  # that anything may take on a busy machine before it counts as hanging


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """Whether the process `pid` ends."""
    return until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """Whether the process `pid` runs now; a zombie that nobody waits for has ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state not in "ZX"


def group_gone(group: int) -> bool:
    """Whether every process of a process group ends."""

    def ended() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    return until(ended)
