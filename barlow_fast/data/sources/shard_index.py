"""What lies where in one shard, and the file beside it that remembers.

The index of `x.tar` is `x.tar.index`: a line of JSON, then the columns of `Rows` one after another,
little-endian. It belongs to a shard of one size and modification time (in whole seconds, since
copies keep no more); with another shard, another version or a wrong checksum it is not used. One
file per shard, not one per folder: subsets can be opened, and one new shard is one scan.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files import write_whole
from ...inputs import open_descriptor, open_regular
from ...terminal import printable
from ..decoding import header_size
from ..faults import BadImageError
from .names import Names
from .tar import Member, members, read_at

LOG = logging.getLogger("barlow_fast.data")

FORMAT, VERSION = "barlow_fast shard index", 2
SUFFIX = ".index"

# Keys of a sample's files, as WebDataset has them: everything before the first dot of the base
# name, and the extension after it.
IMAGES = (b"jpg", b"jpeg", b"jfif", b"png", b"webp", b"bmp", b"tif", b"tiff", b"gif", b"ppm")
LONGEST_LABEL, LONGEST_JSON = 32, 2**20
LARGEST_LABEL = 2**31 - 1
LARGEST_HEADER = 2**20  # of an index


@dataclass(frozen=True)
class Rows:
    """The images of one shard, in its order: N of each."""

    names: Names  # of the members, with their extensions
    offset: np.ndarray  # int64, bytes
    size: np.ndarray  # int64, bytes
    label: np.ndarray  # int64; -1: none
    height: np.ndarray  # int32, pixels; 0: the header cannot be read
    width: np.ndarray  # int32
    ignored: int = 0  # members that are neither an image nor the label of one

    def __len__(self) -> int:
        return len(self.names)


def rows_of(
    found: list[tuple[bytes, int, int, int, int, int]],
    ignored: int = 0,
) -> Rows:
    """`Rows` from (name, offset, size, label, height, width) of each image."""
    columns = list(zip(*found, strict=True)) or [()] * 6
    names, offset, size, label, height, width = columns
    return Rows(
        Names.of(names),
        *(np.array(column, dtype=np.int64) for column in (offset, size, label)),
        *(np.array(column, dtype=np.int32) for column in (height, width)),
        ignored,
    )


def load(shard: Path, unkept: list[tuple[Path, str]]) -> Rows:
    """The rows of a shard: from its index where that is current, else from a scan, which is then
    remembered where the folder can be written to.

    Args:
        shard: the tar file.
        unkept: gets the shard, and why, where its index cannot be written.

    Raises:
        ValueError: a damaged shard, or labels that are none; the message names the member.
        OSError: it cannot be read.
    """
    status = os.stat(shard)
    rows = _read(shard, status)
    if rows is None:
        rows = scan(shard)
        try:
            write(shard, rows)
        except OSError as error:
            unkept.append((shard, str(error.strerror)))
    return rows


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + SUFFIX)


def scan(shard: Path) -> Rows:
    """The rows of a shard from its headers and those of its images.

    Raises:
        ValueError, OSError: as `load`.
    """
    path = printable(str(shard))
    descriptor = open_descriptor(shard)
    try:
        images: dict[bytes, Member] = {}
        labels: dict[bytes, int] = {}
        compound: list[bytes] = []
        ignored = 0
        for member in members(descriptor, path):
            key, extension = split(member.name)
            if extension in IMAGES:
                if key in images:
                    raise ValueError(
                        f"{path}: two images of one sample: {printable(images[key].name)} and "
                        f"{printable(member.name)}"
                    )
                images[key] = member
            elif extension in (b"cls", b"json"):
                label = _label(descriptor, member, extension, path)
                if labels.setdefault(key, label) != label:
                    raise ValueError(f"{path}: two labels of one sample: {printable(key)}")
            else:
                ignored += 1
                if extension.rpartition(b".")[2] in IMAGES:
                    compound.append(member.name)
        found = []
        for key, (name, offset, size) in images.items():
            identity = f"{path}:{printable(name)}"
            height, width = _pixels(descriptor, offset, size, identity)
            found.append((name, offset, size, labels.get(key, -1), height, width))
    finally:
        os.close(descriptor)
    if compound:
        LOG.warning(
            "%s: %d members such as %s are not taken as images: in a sample's name everything "
            "after the first dot is the extension",
            path,
            len(compound),
            printable(compound[0]),
        )
    return rows_of(found, ignored + len(labels.keys() - images.keys()))


def split(name: bytes) -> tuple[bytes, bytes]:
    """(key, extension in small letters) of a member. A hidden file has no extension."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    if not stem:
        return name, b""
    return folder + slash + stem, extension.lower()


def _label(descriptor: int, member: Member, extension: bytes, path: str) -> int:
    """A label, or -1 for JSON without one."""
    longest = LONGEST_LABEL if extension == b"cls" else LONGEST_JSON
    where = f"{path}:{printable(member.name)}"
    if member.size > longest:
        raise ValueError(f"{where}: {member.size} bytes are no label")
    content = read_at(descriptor, member.size, member.offset)
    if extension == b"cls":
        text = content.strip()
        label: object = int(text) if text.isdigit() else None
    else:
        try:
            # ValueError: no JSON, or no UTF-8. RecursionError: nested without end.
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if not isinstance(values, dict) or "label" not in values:
            return -1
        label = values["label"]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= LARGEST_LABEL:
        raise ValueError(f"{where}: no label, which is an integer from 0 to {LARGEST_LABEL}")
    return label


def _pixels(descriptor: int, offset: int, size: int, identity: str) -> tuple[int, int]:
    """(height, width) of the image at `offset`; (0, 0) where its header cannot be read."""
    try:
        return header_size(io.BufferedReader(Window(descriptor, offset, size)), identity)
    except BadImageError:
        return 0, 0


class Window(io.RawIOBase):
    """A part of a file as a file of its own: reading it moves no position that others share."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size = descriptor, offset, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        content = read_at(self._descriptor, count, self._offset + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


# ---- the file


def write(shard: Path, rows: Rows) -> None:
    """Writes the index of a shard, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    status = os.stat(shard)
    body = b"".join((*(column.tobytes() for column in _columns(rows)), rows.names.block))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "shard_bytes": status.st_size,
        "shard_modified": int(status.st_mtime),
        "images": len(rows),
        "ignored": rows.ignored,
        "crc32": zlib.crc32(body),
    }
    path = index_path(shard)
    # Ranks that start together may all write it; the last one wins, with the same contents.
    write_whole(path, json.dumps(header).encode() + b"\n" + body)


def _columns(rows: Rows) -> list[np.ndarray]:
    wide = (rows.names.ends, rows.offset, rows.size, rows.label)
    return [*(c.astype("<i8") for c in wide), rows.height.astype("<i4"), rows.width.astype("<i4")]


def _read(shard: Path, status: os.stat_result) -> Rows | None:
    """The rows in a shard's index; None where there is none that can be used, and why in the
    log."""
    path = index_path(shard)
    try:
        # An image takes more room in its shard than in the index.
        with open_regular(path, status.st_size + LARGEST_HEADER) as file:
            content = file.readall()
    except FileNotFoundError:
        return None
    except OSError as error:
        LOG.warning("%s: %s: scanning the shard", printable(str(path)), error.strerror)
        return None
    try:
        return _parse(content, status)
    except ValueError as error:
        LOG.warning("%s %s: scanning the shard", printable(str(path)), error)
        return None


def _parse(content: bytes, status: os.stat_result) -> Rows:
    line, _, body = content.partition(b"\n")
    try:
        header = json.loads(line)
        current = header["format"] == FORMAT and header["version"] == VERSION
        shard = (header["shard_bytes"], header["shard_modified"])
        count, checksum, ignored = header["images"], header["crc32"], header["ignored"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("is damaged") from error
    if not current:
        raise ValueError("is of another version")
    if shard != (status.st_size, int(status.st_mtime)):
        raise ValueError("is older than its shard")
    if not all(isinstance(number, int) and number >= 0 for number in (count, ignored)):
        raise ValueError("is damaged")
    wide = 4 * 8 * count
    names_at = wide + 2 * 4 * count
    if not names_at <= len(body) or zlib.crc32(body) != checksum:
        raise ValueError("is damaged")
    ends, offset, size, label = np.frombuffer(body[:wide], "<i8").reshape(4, count)
    height, width = np.frombuffer(body[wide:names_at], "<i4").reshape(2, count)
    names = body[names_at:]
    inside = (offset >= 0) & (size >= 0) & (offset <= status.st_size - size)
    steps = np.diff(ends, prepend=0)
    if not inside.all() or (steps < 0).any() or (int(ends[-1]) if count else 0) != len(names):
        raise ValueError("is damaged")
    if count and (min(height.min(), width.min()) < 0 or label.min() < -1):
        raise ValueError("is damaged")
    return Rows(
        Names(names, ends.astype(np.int64)),
        *(column.astype(np.int64) for column in (offset, size, label)),
        *(column.astype(np.int32) for column in (height, width)),
        ignored,
    )
