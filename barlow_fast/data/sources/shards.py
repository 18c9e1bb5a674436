"""Images in tar files, as WebDataset names them."""

from __future__ import annotations

import glob
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...inputs import open_descriptor, open_regular
from ...terminal import printable
from ..decoding import MAX_PIXELS, header_size
from ..faults import Unreadable, guard
from . import shard_index
from .base import UNKNOWN, EncodedSource
from .names import Names
from .tar import COMPRESSED_ENDINGS, NOT_IN_PLACE, read_at

LOG = logging.getLogger("barlow_fast.data")

# Written by `pack` beside the shards: the names of the classes, in the order of their labels.
CLASSES = "classes.json"
LONGEST_CLASSES = 2**26

# What an unfinished `pack` leaves behind.
PARTIAL = ".partial"

# Shards that one process keeps open; further ones are opened for each read. Closing one while
# another thread reads from it would let that thread read from whatever is opened next.
KEPT_OPEN = 128


class ShardSource(EncodedSource):
    """Images in tar files: `key.jpg` (or another image's extension) with its label in `key.cls`
    (digits) or `key.json` ({"label": integer}), or without one.

    What is neither an image nor the label of one, in the shards or beside them in the folder, is
    left out, and `ignored` counts it.

    Members are read where they lie, by offset: nothing is extracted, and threads and processes
    share no position. Where they lie is kept in an index beside each shard, made by one scan of the
    headers where there is none; a shard whose size or modification time has changed since is
    scanned again, and the logger `barlow_fast.data` says so.

    Args:
        shards: a folder (its `*.tar`, sorted by name), a glob pattern, one tar file, or several.
        max_pixels: the largest image that is decoded.
        progress: called after each shard with the number of images found so far.

    Raises:
        ValueError: no shards, a compressed one, an unfinished `pack` in the folder, a damaged one,
            labels that are none, a shard twice; the message names the shard and the byte or member.
        OSError: a shard cannot be read.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        max_pixels: int = MAX_PIXELS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        single = isinstance(shards, (str, Path))
        self.shards = _found(shards) if single else [Path(shard) for shard in shards]
        if not self.shards:
            raise ValueError("no shards")
        self.name = printable(str(shards if single else self.shards[0].parent))
        self.beside: tuple[Path, ...] = ()  # parts of a data set that `open_source` left out
        if len(set(self.shards)) < len(self.shards):
            raise ValueError(f"{self.name}: a shard is named twice")
        self.max_pixels = max_pixels
        rows = []
        unkept: list[tuple[Path, str]] = []
        for shard in self.shards:
            rows.append(shard_index.load(shard, unkept))
            if progress is not None:
                progress(sum(map(len, rows)))
        if unkept:
            LOG.warning(
                "the indexes of %d of %d shards cannot be kept and are made anew every time: %s",
                len(unkept),
                len(self.shards),
                unkept[0][1],
            )
        self.ignored = sum(part.ignored for part in rows)
        if single and Path(shards).is_dir():
            self.ignored += _others(Path(shards))
        self._join(rows)
        if not len(self):
            raise ValueError(
                f"{self.name}: the shards hold no images, but {self.ignored:,} other files"
            )
        self.classes = _classes(self.shards[0].parent / CLASSES, self._labels)
        self._prepare()

    def _join(self, rows: list[shard_index.Rows]) -> None:
        self._first = np.cumsum([0, *map(len, rows)])
        # Ends count from the start of all names, not of the shard's.
        lengths = np.concatenate([np.diff(r.names.ends, prepend=0) for r in rows])
        self._names = Names(b"".join(r.names.block for r in rows), np.cumsum(lengths))
        self._offsets = np.concatenate([r.offset for r in rows])
        self._bytes = np.concatenate([r.size for r in rows])
        labels = np.concatenate([r.label for r in rows])
        self._labels = labels if (labels >= 0).any() else None
        sizes = np.stack([np.concatenate([getattr(r, k) for r in rows]) for k in _SIDES], -1)
        self._pixels = np.ascontiguousarray(sizes)

    def _prepare(self) -> None:
        """What a process has to itself."""
        pixels = self._pixels.astype(np.int64).prod(-1)
        # An unreadable header may be one that this source's limit allows.
        self._sizes = self._pixels.copy()
        self._sizes[(pixels == 0) | (pixels > self.max_pixels)] = UNKNOWN
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_sizes", "_open", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __del__(self) -> None:
        for descriptor in self.__dict__.pop("_open", {}).values():
            os.close(descriptor)

    def identity(self, index: int) -> str:
        shard = self.shards[self._shard(index)]
        return f"{printable(str(shard))}:{printable(self._names[index])}"

    def encoded(self, index: int) -> bytes:
        shard, size = self._shard(index), int(self._bytes[index])
        with guard(self.identity(index), index):
            content = self._read(shard, int(self._offsets[index]), size)
            if len(content) < size:
                raise Unreadable(
                    f"the shard ends {size - len(content)} bytes before the image does: "
                    "it was changed while in use"
                )
            return content

    def _shard(self, index: int) -> int:
        self._check_index(index)
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _size(self, index: int) -> tuple[int, int]:
        return header_size(self.encoded(index), self.identity(index), index, self.max_pixels)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = self._open.get(shard)
        kept = descriptor is not None
        if descriptor is None:
            descriptor = open_descriptor(self.shards[shard])
            with self._lock:
                if len(self._open) < KEPT_OPEN and shard not in self._open:
                    self._open[shard] = descriptor
                    kept = True
        try:
            parts = []
            while size > 0 and (part := read_at(descriptor, size, offset)):
                parts.append(part)
                size, offset = size - len(part), offset + len(part)
            return b"".join(parts)
        finally:
            if not kept:
                os.close(descriptor)


_SIDES = ("height", "width")


def _found(shards: str | Path) -> list[Path]:
    text = str(shards)
    if "://" in text or text.startswith("pipe:"):
        raise ValueError(f"{printable(text)}: shards are read from local files only")
    path = Path(shards)
    if path.is_dir():
        unfinished = sorted(path.glob(f"*.tar{PARTIAL}"))
        if unfinished:
            raise ValueError(
                f"{printable(str(unfinished[0]))}: left by a pack that did not finish: delete "
                "the folder and pack again"
            )
        found = sorted(
            shard
            for shard in path.iterdir()
            if shard.name.endswith(".tar") or shard.name.lower().endswith(COMPRESSED_ENDINGS)
        )
    elif path.exists():
        found = [path]
    else:
        found = sorted(map(Path, glob.glob(text)))
    if not found:
        raise ValueError(f"{printable(text)}: no tar files there")
    for shard in found:
        if shard.name.lower().endswith(COMPRESSED_ENDINGS):
            raise ValueError(f"{printable(str(shard))}: {NOT_IN_PLACE}")
    return found


def _others(folder: Path) -> int:
    """Entries of a folder of shards that are neither shards nor belong to them."""
    ours = (".tar", f".tar{shard_index.SUFFIX}")
    return sum(
        not entry.name.startswith(".") and entry.name != CLASSES and not entry.name.endswith(ours)
        for entry in folder.iterdir()
    )


def _classes(path: Path, labels: np.ndarray | None) -> list[str] | None:
    """The names of the classes, where `pack` has left them."""
    where = printable(str(path))
    try:
        with open_regular(path, LONGEST_CLASSES) as file:
            content = file.readall()
    except FileNotFoundError:
        return None
    try:
        names = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: not a list of names")
    if labels is not None and labels.max() >= len(names):
        raise ValueError(f"{where}: {len(names)} names, but label {labels.max()} occurs")
    return names
