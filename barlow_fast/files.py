"""Atomic writes: a file appears whole or not at all, and no link is followed.

It is written under a temporary name beside it, which is created exclusively and cannot be guessed.
The name says which process writes, so that the next one that writes there removes what a killed
process left.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# 12 hexadecimal digits of the machine, the process number, the time when the process started.
_TEMPORARY = re.compile(r"\.(.+)\.([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{16}\.part", re.DOTALL)
# Of a file's name, which together with the rest stays below the 255 bytes of most file systems.
_LONGEST_NAME = 150
# Seconds after which what another machine was writing is taken to be abandoned: nothing takes so
# long, and whether the process still runs cannot be seen from here.
ABANDONED = 24 * 3600
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def printable(name: str | bytes) -> str:
    """A file's name that fits a line of text: control characters and bytes that are no UTF-8 are
    written as escapes."""
    text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else "".join(map(_character, text))


def _character(c: str) -> str:
    if c.isprintable():
        return c
    # What the system calls a byte that is no UTF-8.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c)[1:-1]


class WriteError(OSError):
    """A file that cannot be written, in one line that names it."""

    def __str__(self) -> str:
        return str(self.strerror)


class Process(NamedTuple):
    """A process among all those of machines that share a file system."""

    machine: str
    pid: int
    start: int  # in clock ticks since the machine started; 0: unknown

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.start}"

    def has_ended(self) -> bool | None:
        """Whether it has; None where that cannot be seen, because it is of another machine."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
        state, start = _status(self.pid)
        # A number is given again to a later process; a zombie has ended.
        return state in ("Z", "X") or (self.start > 0 and start > 0 and start != self.start)


def this_process() -> Process:
    """The calling process."""
    return Process(_machine(), os.getpid(), _status(os.getpid())[1])


def check_output(
    path: Path | str, start: bytes = b"", inputs: Iterable[Path | str] = (), option: str = ""
) -> None:
    """Refuses a file for results that cannot be written, or in whose place something would be lost:
    called before the work whose results it takes.

    Args:
        path: the file; links count as what they lead to.
        start: how results of this kind begin. Of files that are there, only empty ones and those
            that begin so are replaced.
        inputs: files that the work reads.
        option: names the file in messages.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: a folder or something else than a regular file, in a folder that cannot be
            written, one of the inputs, or a file that begins otherwise.
    """
    path = Path(path)
    called = f"{option} {printable(str(path))}".lstrip()
    _check_place(path, called)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{called}: the folder {printable(str(path.parent))} cannot be written")
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{called} is not a regular file")
    for given in inputs:
        if os.path.exists(given) and os.path.samefile(path, given):
            raise ValueError(
                f"{called} is the input {printable(str(given))}: give another name for the output"
            )
    with open(path, "rb") as file:
        found = file.read(len(start))
    if found and found != start:
        raise ValueError(
            f"{called} is there already and holds something else than an earlier result of this "
            "command: give another name, or remove it"
        )


def _check_place(path: Path, called: str) -> None:
    if not path.parent.is_dir():
        folder, name = printable(str(path.parent)), printable(path.name)
        raise FileNotFoundError(f"{called}: no folder {folder} for {name}")
    if path.is_dir():
        raise ValueError(f"{called} is a folder, not the name of a file")


def check_writable(folder: Path) -> None:
    """Whether files can be written in a folder: writes one without a name that stays.

    Raises:
        WriteError: they cannot.
    """
    with _named(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def is_inside(path: Path | str, folder: Path | str) -> bool:
    """Whether a path is a folder or lies in it, links followed. Neither has to exist."""
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(os.path.join(outer, ""))


@contextlib.contextmanager
def whole_file(path: Path | str, before: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary file beside `path`, empty, to be written inside the block; it takes the place of
    `path` at its end. After an error `path` is as it was. Its permissions follow the umask.

    Args:
        path: the file.
        before: called when the new file is on the disk and does not have its name yet.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `path` is a folder.
        WriteError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    _check_place(path, printable(str(path)))
    _clean_once(os.path.abspath(path.parent), os.getpid())
    temporary = temporary_name(path)
    with _named(path):
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_FOLLOW
        descriptor = os.open(temporary, flags, 0o666)
    try:
        with _named(path, temporary):
            yield temporary
        with _named(path):
            # Without it a power cut can leave the new name on data that never reached the disk.
            os.fsync(descriptor)
            if before is not None:
                before()
            os.replace(temporary, path)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, to be filled inside the block, which becomes `path`.

    Raises:
        WriteError: see `whole_file`; `path` is there already.
    """
    _clean_once(os.path.abspath(path.parent), os.getpid())
    temporary = temporary_name(path)
    with _named(path):
        temporary.mkdir()
    try:
        with _named(path, temporary):
            yield temporary
        with _named(path):
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path | str, content: bytes | str) -> None:
    """Writes a file of bytes, or of text as UTF-8; see `whole_file`."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded)


def append_text(path: Path, text: str) -> None:
    """Adds text to a file.

    Raises:
        WriteError: it cannot be written, or is a link.
    """
    with _named(path), open(path, "a", encoding="utf-8", opener=_open_no_link) as stream:
        stream.write(text)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that cannot be guessed; see `remove_abandoned`."""
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    return path.with_name(f".{name}.{this_process()}-{secrets.token_hex(8)}.part")


def remove_abandoned(folder: Path, unshared: Callable[[str], bool] = lambda _: False) -> None:
    """Removes the temporary files that processes left in a folder which have ended since; of other
    machines, those not written for a day.

    Args:
        folder: where to look.
        unshared: whether no process of another machine can be writing the file of this name now.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            ended = Process(match[2], int(match[3]), int(match[4])).has_ended()
            if ended is None:
                ended = unshared(match[1]) or _is_old(entry)
            if ended:
                _remove(entry)


@functools.lru_cache(maxsize=1000)
def _clean_once(folder: str, pid: int) -> None:
    """At the first file that a process writes in a folder: one of shards gets an index for each."""
    remove_abandoned(Path(folder))


def _is_old(entry: os.DirEntry) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED
    return False


def _remove(entry: os.DirEntry) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(entry.path)


@contextlib.contextmanager
def _named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turns an error of writing into one that names the file.

    Args:
        temporary: only errors of this file, and of a disk without room, are such; others, as of
            files that are read meanwhile, pass.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        ours = temporary is None or error.errno in _NO_ROOM
        if not ours and error.filename != str(temporary):
            raise
        kept = "; the file before it is whole" if path.is_file() else ""
        reason = error.strerror or str(error)
        raise WriteError(error.errno, f"cannot write {path}: {reason}{kept}") from error


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_FOLLOW, 0o666)


def _sync_folder(folder: Path) -> None:
    # Not every platform lets a folder be opened; the file itself is safe already.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _machine() -> str:
    """A name for this machine since its start and for its space of process numbers: containers
    have their own."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _status(pid: int) -> tuple[str, int]:
    """(state, time of its start) of a process as Linux gives them; ('', 0) where it cannot be
    seen."""
    try:
        # The name before these fields may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
