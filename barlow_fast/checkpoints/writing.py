"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, to be written inside the block; it takes the place of `path`
    at its end. After an error `path` is as it was.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `path` is a folder.
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not the name of a file")
    # The same folder, because a rename is atomic only within one file system; the process id,
    # because two may write.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        # Without it a power cut can leave the new name on data that never reached the disk.
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # Not every platform lets a folder be opened; the file itself is safe already.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
