"""Checkpoints: one file, written whole or not at all, read without running what is in it."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "barlow_fast.pretrain"
VERSION = 2


def save_checkpoint(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Writes `state` to `path` atomically: whatever happens, `path` holds the old file or the
    whole new one.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, strings, lists and dicts.
        keep: how many files there may be: the newest, and those before it as NAME-1.pt,
            NAME-2.pt, ... from new to old.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    path = Path(path)
    # The same folder, because a rename is atomic only within one file system; the process id,
    # because two may write.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            torch.save({"format": FORMAT, "version": VERSION, **state}, stream)
            stream.flush()
            # Without it a power cut can leave the new name on data that never reached the disk.
            os.fsync(stream.fileno())
        _rotate(path, keep)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def earlier(path: Path, number: int) -> Path:
    """The file that was at `path` so many savings ago; `path` itself for 0."""
    path = Path(path)
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def newest_checkpoint(path: Path) -> tuple[Path, list[str]] | None:
    """What to go on from: `path`, or where it is damaged the newest before it that is whole.

    Returns:
        That file, and what is wrong with newer ones; None where there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    complaints: list[str] = []
    number = 0
    while earlier(path, number).exists() or number == 0:
        candidate = earlier(path, number)
        number += 1
        if not candidate.exists():
            continue
        try:
            load_checkpoint(candidate)
        except ValueError as error:
            complaints.append(str(error))
            continue
        return candidate, complaints
    if complaints:
        raise ValueError("; ".join(complaints))
    return None


def _rotate(path: Path, keep: int) -> None:
    """Every older file moves on by one, and the newest gets a second name; `path` stays."""
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        if earlier(path, number - 1).exists():
            os.replace(earlier(path, number - 1), earlier(path, number))
    linked = path.with_name(f".{path.name}.{os.getpid()}.link")
    linked.unlink(missing_ok=True)
    try:
        os.link(path, linked)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(path, linked)
    os.replace(linked, earlier(path, 1))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, with tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this program and version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        # torch writes checksums and, on reading, does not look at all of them.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} fails its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text advises to turn the protection off.
        raise ValueError(
            f"{path} is not a readable checkpoint: it holds more than tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of `barlow-fast pretrain`")
    if state.get("version") != VERSION:
        raise ValueError(
            f"{path} has checkpoint version {state.get('version')}, "
            f"this program reads version {VERSION}"
        )
    return state


def _sync_folder(folder: Path) -> None:
    # Not every platform lets a folder be opened; the file itself is safe already.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
