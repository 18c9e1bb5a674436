"""One run at a time in a folder of results, on network file systems too.

The file `.run.lock` names the process that runs there, which touches it every few seconds. On the
same machine a lock is judged by whether that process still exists; on another one by whether the
file is touched while another process watches. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from ..files import Process, WriteError, temporary_name, this_process

FILE = ".run.lock"
TOUCH_EVERY = 10.0  # seconds
# How often and how many times a lock of another machine is looked at before its run is taken to
# have ended: one minute, in which a run that lives touches it six times.
LOOK_EVERY = 5.0
LOOKS = 12


class FolderInUse(RuntimeError):
    """Another run writes to the folder."""


class Owner(NamedTuple):
    """Whose lock it is."""

    process: Process | None  # None: the file is not readable, as after a power cut
    host: str

    def __str__(self) -> str:
        if self.process is None:
            return "a run that left no name"
        return f"process {self.process.pid} on {self.host}"


class Seen(NamedTuple):
    """A lock as it was found; another one differs in its token, the same one later in its time."""

    owner: Owner
    content: bytes
    touched: int  # in nanoseconds


class FolderLock:
    """The lock of a folder, held from its construction to `release`.

    Args:
        folder: must exist.
        report: called with a line before another machine's lock is watched.

    Raises:
        FolderInUse: another run lives.
        WriteError: the folder cannot be written.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda _: None) -> None:
        self.path = folder / FILE
        self._descriptor = self._acquire(report)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Called before results are written.

        Raises:
            FolderInUse: another run has taken the folder over, as from a process that was suspended
                for minutes.
        """
        if self._is_ours():
            return
        try:
            # Removed by hand.
            old, self._descriptor = self._descriptor, _create(self.path)
            os.close(old)
        except FileExistsError:
            raise FolderInUse(
                f"{self.path.parent} was taken over by {_read(self.path).owner} while this run was "
                "suspended: nothing more is written here"
            ) from None

    def release(self) -> None:
        """Lets others in. May be called again."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        os.close(self._descriptor)

    def _acquire(self, report: Callable[[str], None]) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                return _create(self.path)
            try:
                seen = _read(self.path)
            except FileNotFoundError:
                continue
            self._wait_for_its_end(seen, report)
            _take_away(self.path, seen)

    def _wait_for_its_end(self, seen: Seen, report: Callable[[str], None]) -> None:
        """Returns when the owner has ended."""
        owner = seen.owner
        ended = None if owner.process is None else owner.process.has_ended()
        if ended is None:
            report(
                f"{self.path.parent} is locked by {owner}: watching for up to "
                f"{LOOKS * LOOK_EVERY:.0f} s whether that run still lives"
            )
            ended = not self._is_touched(seen)
        if not ended:
            raise FolderInUse(
                f"{self.path.parent} is in use by {owner}: wait for that run to end, or choose "
                "another --out"
            )

    def _is_touched(self, before: Seen) -> bool:
        for _ in range(LOOKS):
            _sleep(LOOK_EVERY)
            try:
                if _read(self.path) != before:
                    return True
            except FileNotFoundError:
                return False
        return False

    def _is_ours(self) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_EVERY):
            # Of the file that we made, whatever has its name by now.
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _create(path: Path) -> int:
    """The descriptor of a new lock; FileExistsError where there is one."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    content = {"host": socket.gethostname(), "process": this_process(), "token": token_hex(8)}
    try:
        descriptor = os.open(path, flags, 0o666)
        try:
            os.write(descriptor, json.dumps(content).encode())
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
    except FileExistsError:
        raise
    except OSError as error:
        reason = f"cannot write to {path.parent}: {error.strerror}"
        raise WriteError(error.errno, reason) from error
    return descriptor


def _read(path: Path) -> Seen:
    # Opening makes a network file system ask its server.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        touched = os.fstat(descriptor).st_mtime_ns
        content = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    try:
        found = json.loads(content)
        machine, pid, start = found["process"]
        process = Process(str(machine), int(pid), int(start))
        owner = Owner(process, str(found["host"]))
    except (ValueError, TypeError, KeyError):
        owner = Owner(None, "")
    return Seen(owner, content, touched)


def _take_away(path: Path, judged: Seen) -> None:
    """Removes the lock that was judged, and no other: two may come to the same verdict."""
    aside = temporary_name(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    try:
        if _read(aside) != judged:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
    finally:
        aside.unlink()
