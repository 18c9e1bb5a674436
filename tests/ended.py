"""Whether processes have ended, waiting for them if need be: a busy machine takes its time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 60  # that anything may take on a busy machine before it counts as hanging


def gone(pid: int) -> bool:
    """Whether the process `pid` ends; a zombie that nobody waits for has ended."""

    def running() -> bool:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return False
        return state != "Z"

    return _ends(running)


def group_gone(group: int) -> bool:
    """Whether every process of a process group ends."""

    def running() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    return _ends(running)


def _ends(running: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while running():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
