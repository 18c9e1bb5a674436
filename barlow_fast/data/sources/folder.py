"""Images as files in a folder."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...inputs import open_regular
from ...terminal import printable
from ..decoding import MAX_BYTES, MAX_PIXELS, header_size, read_file
from ..faults import guard
from .base import UNKNOWN, EncodedSource
from .names import Names
from .tar import COMPRESSED_ENDINGS, NOT_IN_PLACE

LOG = logging.getLogger("barlow_fast.data")

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
)

# Images that are not read: what reads them is not the same on every machine, and not the same in
# every loader.
CONVERTIBLE = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip
MOST_KINDS = 5

# How many files lie between two reports of a scan's progress, and seconds between two lines of
# log where there is no callback.
REPORT_EVERY = 4096
LOG_EVERY = 10.0


class FolderSource(EncodedSource):
    """All images below a folder, however deep, sorted by the bytes of their relative path (with
    '/' on every system).

    A file is taken by its extension, one of `EXTENSIONS` in any case; its content is checked
    when it is read. Names that start with a dot are hidden and left out, as are files with other
    extensions, which `ignored` counts and `others` lists by extension.

    With images inside sub-folders each first-level folder that holds some is a class, numbered
    in the order of their names; images directly in the root then have no label. Without such
    folders nothing has.

    Symbolic links to files and folders are followed while they stay below the root. One that leads
    out of it is an error, unless `allow_symlinks`: following it may read images that are not meant
    for training, ignoring it may lose images. A link back to a folder that it lies in is an error.

    Args:
        root: the folder.
        allow_symlinks: whether links may lead out of it.
        max_pixels: the largest image that is decoded.
        progress: called now and then during the scan with the number of images found so far.

    Raises:
        ValueError: not a folder, no images in it, or a link as described.
        OSError: a sub-folder cannot be listed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        allow_symlinks: bool = False,
        max_pixels: int = MAX_PIXELS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.root = Path(root)
        self.name = printable(str(root))
        self.beside: tuple[Path, ...] = ()  # parts of a data set that `open_source` left out
        self.max_pixels = max_pixels
        if not self.root.is_dir():
            problem = "is not a folder" if os.path.lexists(self.root) else "does not exist"
            raise ValueError(f"{self.name} {problem}")
        self._root = os.fsencode(self.root)
        found, others = _scan(self._root, allow_symlinks, progress)
        self.ignored = others.total()
        self.others = kinds_of(others)  # the same by extension, to be read
        if not found:
            names = sorted(os.listdir(self.root))
            packed = [name for name in names if name.lower().endswith(COMPRESSED_ENDINGS)]
            hint = f"; {printable(packed[0])} {NOT_IN_PLACE}" if packed else ""
            there = self.others or "it is empty"
            raise ValueError(
                f"{self.name} holds no images: {there}. Files that end with {' '.join(EXTENSIONS)} "
                f"are read{hint}"
            )
        found.sort()
        self._names = Names.of([name for name, _ in found])
        self._bytes = np.fromiter((size for _, size in found), np.int64, len(found))
        self.classes, self._labels = _classes(found)
        self._sizes = np.full((len(found), 2), UNKNOWN, np.int32)

    def path(self, index: int) -> str:
        """The file's path, as `open` takes it."""
        return os.fsdecode(self._path(index))

    def identity(self, index: int) -> str:
        return printable(self._path(index))

    def encoded(self, index: int) -> bytes:
        path = self._path(index)
        return read_file(path, printable(path), index)

    def _path(self, index: int) -> bytes:
        self._check_index(index)
        return os.path.join(self._root, self._names[index])

    def _size(self, index: int) -> tuple[int, int]:
        identity = self.identity(index)
        with guard(identity, index), open_regular(self._path(index), MAX_BYTES) as file:
            return header_size(file, identity, index, self.max_pixels)


def _scan(
    root: bytes, allow_symlinks: bool, progress: Callable[[int], None] | None
) -> tuple[list[tuple[bytes, int]], Counter[bytes]]:
    """((relative path, bytes) of every image, number of other files by extension). A size that
    cannot be read, as of a broken link, is -1: reading the image raises the reason."""
    home = os.path.realpath(root)
    endings = tuple(ending.encode() for ending in EXTENSIONS)
    found: list[tuple[bytes, int]] = []
    others: Counter[bytes] = Counter()
    # Folders to be listed: path relative to the root, and the real paths of it and of all that it
    # lies in, links followed.
    waiting = [(b"", (home,))]
    last = time.monotonic()
    while waiting:
        folder, chain = waiting.pop()
        with _listing(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                name = folder + b"/" + entry.name if folder else entry.name
                real = os.path.join(chain[-1], entry.name)
                if entry.is_symlink():
                    real = _followed(entry, home, chain, allow_symlinks)
                if is_folder(entry):
                    waiting.append((name, (*chain, real)))
                elif entry.name.lower().endswith(endings):
                    found.append((name, _bytes(entry)))
                    if len(found) % REPORT_EVERY == 0:
                        if progress is not None:
                            progress(len(found))
                        elif time.monotonic() - last > LOG_EVERY:
                            last = time.monotonic()
                            LOG.info("%s: %d images so far", printable(root), len(found))
                else:
                    others[os.path.splitext(entry.name)[1].lower()] += 1
    if progress is not None:
        progress(len(found))
    return found, others


def kinds_of(others: Counter[bytes]) -> str:
    """Files by extension, the most first, and how to read those that are images."""
    listed = [
        f"{count:,} {printable(ending) or 'without an extension'}"
        for ending, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))
    ]
    if len(listed) > MOST_KINDS:
        listed[MOST_KINDS:] = [f"{len(listed) - MOST_KINDS} more kinds"]
    text = ", ".join(listed)
    convertible = [ending for ending in CONVERTIBLE if ending.encode() in others]
    if convertible:
        text += (
            f" (convert {' '.join(convertible)} to JPEG, such as by ImageMagick's "
            "mogrify -format jpg -quality 95)"
        )
    return text


def _listing(folder: bytes):
    try:
        return os.scandir(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, printable(folder)) from error


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def _bytes(entry: os.DirEntry[bytes]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _followed(
    entry: os.DirEntry[bytes], home: bytes, chain: tuple[bytes, ...], allow_symlinks: bool
) -> bytes:
    """The real path that a link leads to.

    Raises:
        ValueError: out of `home` without permission, or back to a folder of `chain`.
    """
    real = os.path.realpath(entry.path)
    if not (allow_symlinks or _below(real, home)):
        raise ValueError(
            f"{printable(entry.path)} is a link that leads out of {printable(home)}, to "
            f"{printable(real)}: allow it with allow_symlinks=True (--allow-symlinks)"
        )
    if is_folder(entry) and any(_below(folder, real) for folder in chain):
        raise ValueError(
            f"{printable(entry.path)} is a link to a folder that it lies in, {printable(real)}"
        )
    return real


def _below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(os.path.join(folder, b""))


def _classes(found: list[tuple[bytes, int]]) -> tuple[list[str] | None, np.ndarray | None]:
    folders = [name.partition(b"/")[0] if b"/" in name else None for name, _ in found]
    classes = sorted({folder for folder in folders if folder is not None})
    if not classes:
        return None, None
    number: dict[bytes | None, int] = {folder: i for i, folder in enumerate(classes)}
    number[None] = -1
    labels = np.fromiter((number[folder] for folder in folders), np.int64, len(folders))
    return [printable(folder) for folder in classes], labels
