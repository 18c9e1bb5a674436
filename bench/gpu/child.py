"""A command in a process of its own, ended when it takes too long or stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import lifetime
from bench.gpu.sources import ROOT

POLL = 0.2  # seconds
GRACE = 5.0  # between asking a process to end and ending it
LATE, STILL = "late", "still"

Result = int | str


def run(
    command: Sequence[str],
    log: Path,
    limit: float,
    *,
    environment: Mapping[str, str] | None = None,
    still: float | None = None,
    watched: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Result:
    """The exit status of a command whose output is appended to `log`, or why it was ended.

    LATE: it ran for more than `limit` seconds. STILL: the file `watched` did not grow for `still`
    seconds. `tick` is called several times a second while it runs. Whatever interrupts this
    function ends the command, with all processes it started.
    """
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
            preexec_fn=lifetime.tied(),
        )
        try:
            return _wait(process, limit, still, watched, tick)
        finally:
            lifetime.stop(process, (signal.SIGTERM,), GRACE)


def _wait(
    process: subprocess.Popen,
    limit: float,
    still: float | None,
    watched: Path | None,
    tick: Callable[[], None],
) -> Result:
    start = moved = time.monotonic()
    size = -1
    while process.poll() is None:
        time.sleep(POLL)
        tick()
        now = time.monotonic()
        if watched is not None and _size(watched) != size:
            size, moved = _size(watched), now
        if now - start > limit:
            return LATE
        if still is not None and now - moved > still:
            return STILL
    return process.returncode


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def source_tree_environment() -> dict[str, str]:
    """Variables that make any Python import barlow_fast and bench from the source tree."""
    startup = Path(__file__).resolve().parent / "startup"
    present = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(startup), str(ROOT), *([present] if present else [])])
    return {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
