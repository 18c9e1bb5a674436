"""Processes that end with the one that started them, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.sources import ROOT

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def end_with(parent: int) -> None:
    """Has Linux kill this process when its parent ends: in any session, also one that is stopped
    or never returns to the interpreter. Elsewhere nothing."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def tied() -> Callable[[], None] | None:
    """`preexec_fn` of a command that must not outlive this process."""
    return None if _LIBC is None else functools.partial(end_with, os.getpid())


class ChildError(Exception):
    """A process that failed, by the last line of its error output, or that took too long."""


def result_of(arguments: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Any:
    """Runs this Python from the root of the tree, tied to this process; returns the last line of
    its output, parsed as JSON.

    Args:
        arguments: of Python.
        seconds: that it may take.
        environment: variables beside those of this process.

    Raises:
        ChildError: it failed, or took longer and was ended.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            preexec_fn=tied(),
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"did not end within {seconds:.0f} s") from None
    if done.returncode:
        raise ChildError(
            (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        )
    return json.loads(done.stdout.splitlines()[-1])


def end_with_parent() -> None:
    """Ties this process, which multiprocessing has spawned, to its parent, and to their parents
    all that are forked from it. Where the system does not kill it, the end of the parent's pipe
    does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    end_with(parent.pid)
    if _LIBC is not None:
        _tie_forks_of(os.getpid())


def _tie_forks_of(parent: int) -> None:
    # A hook is inherited: in a fork of a fork the first one has nothing left to do.
    def tie() -> None:
        nonlocal parent
        end_with(parent)
        parent = os.getpid()

    os.register_at_fork(after_in_child=tie)


def stop(process: subprocess.Popen, signals: Sequence[int], seconds: float) -> None:
    """Ends a process that leads a session of its own, with all of its group: asks it by each of
    `signals`, with so many seconds to do it, then kills."""
    try:
        for number in signals:
            if process.poll() is not None:
                break
            _signal(process, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    finally:  # also after a Ctrl-C meanwhile
        _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)
