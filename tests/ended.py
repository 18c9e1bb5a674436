"""Other processes, and waiting for what they do: no test reads a clock of its own, or sleeps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import lifetime

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 240  # that anything may take on a busy machine before it counts as hanging


@contextlib.contextmanager
def running(command: list, **options: Any) -> Iterator[subprocess.Popen]:
    """A command in a session of its own, which ends with the block, with all that it started, and
    does not outlive the tests, however they end."""
    end_with_tests = lifetime.tied()

    def prepare() -> None:
        # A shell starts background jobs with Ctrl-C ignored, nohup with SIGHUP, and what they start
        # inherits that.
        for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_DFL)
        if end_with_tests is not None:
            end_with_tests()

    with subprocess.Popen(
        [*map(str, command)], text=True, start_new_session=True, preexec_fn=prepare, **options
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def completed(
    *command: object, cwd: Path | str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, with what it prints."""
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def tracked(*folders: str) -> list[str]:
    """The files in git, below folders of the repository, that are there."""
    listed = completed("git", "-C", ROOT, "ls-files", "-z", *folders)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


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
