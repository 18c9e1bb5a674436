"""Checkpoints: one file, written whole or not at all, read without running what is in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..files import temporary_name, whole_file
from . import archive
from .reading import read_checkpoint
from .state import check_fields

VERSION = archive.DIGEST_VERSION
# Files of version 2 carry no digest.
READ_VERSIONS = (2, 3)


def save_checkpoint(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Writes `state` to `path` atomically: whatever happens, `path` holds the old file or the
    whole new one.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, strings, lists and dicts.
        keep: how many files there may be: the newest, and those before it as NAME-1.pt,
            NAME-2.pt, ... from new to old.

    Raises:
        WriteError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    path = Path(path)
    with whole_file(path, before=lambda: _rotate(path, keep)) as temporary:
        archive.save({"format": archive.PRETRAIN, "version": VERSION, **state}, temporary)


def earlier(path: Path, number: int) -> Path:
    """The file that was at `path` so many savings ago; `path` itself for 0."""
    path = Path(path)
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def newest_checkpoint(path: Path) -> tuple[Path, list[str]] | None:
    """The checkpoint to resume from: `path`, or where it is damaged or missing the newest whole one
    before it, whatever numbers are missing between them.

    Returns:
        That file, and what is wrong with newer ones; None where there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    complaints: list[str] = []
    for candidate in kept_checkpoints(path):
        if candidate != path and not complaints:
            complaints.append(f"no checkpoint at {path}")
        try:
            load_checkpoint(candidate)
        except (ValueError, OSError) as error:
            complaints.append(str(error))
            continue
        return candidate, complaints
    if complaints:
        raise ValueError(f"{'; '.join(complaints)}: move these files away to begin anew")
    return None


def kept_checkpoints(path: Path) -> list[Path]:
    """Those that are there, from new to old."""
    path = Path(path)
    pattern = re.compile(rf"{re.escape(path.stem)}-([1-9]\d{{0,8}}){re.escape(path.suffix)}")
    with contextlib.suppress(OSError):
        found = (pattern.fullmatch(name) for name in os.listdir(path.parent))
        numbers = sorted(int(match[1]) for match in found if match)
        there = [path] if os.path.lexists(path) else []
        return [*there, *(earlier(path, number) for number in numbers)]
    return []


def _rotate(path: Path, keep: int) -> None:
    """Every older file moves by one, and the newest gets a second name; `path` stays."""
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        if earlier(path, number - 1).exists():
            os.replace(earlier(path, number - 1), earlier(path, number))
    linked = temporary_name(earlier(path, 1))
    try:
        os.link(path, linked)
    except OSError:
        # A file system without hard links.
        with whole_file(earlier(path, 1)) as copy:
            shutil.copyfile(path, copy)
        return
    try:
        os.replace(linked, earlier(path, 1))
    finally:
        # Both names stay where they are of one file, as after a run that was killed right here.
        linked.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, with tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this program and version, or damaged.
    """
    path = Path(path)
    state, _ = read_checkpoint(path)
    if state.get("format") != archive.PRETRAIN:
        raise ValueError(f"{path} is not a checkpoint of `barlow-fast pretrain`")
    if state.get("version") not in READ_VERSIONS:
        raise ValueError(
            f"{path} has checkpoint version {state.get('version')}, "
            f"this program reads versions {READ_VERSIONS[0]} to {VERSION}"
        )
    try:
        check_fields(state)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from None
    return state
