"""Checkpoints: one file, written whole or not at all, read without running what is in it."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "barlow_fast.pretrain"
VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path` atomically: whatever happens, `path` holds the old file or the
    whole new one.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, strings, lists and dicts.

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
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


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
