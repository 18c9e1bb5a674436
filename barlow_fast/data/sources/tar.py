"""Where the files of a tar archive lie in it.

`tarfile` parses single headers here, but does not iterate over them: it stops silently at a
damaged header that is not the first one, takes a damaged PAX record for a name, reads extended
headers of any size into memory, and loops on a negative size (CVE-2025-8194) in some supported
versions of Python. Here every byte of the file is accounted for, or the archive is refused.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
ZEROS_AT_ONCE = 2**18  # a multiple of `BLOCK`

# Of the headers that carry a long name; a name has 4096 bytes at most on Linux.
LONGEST_EXTENSION = 2**20
# After an end marker. Archives are padded to some KiB; a hole in a file may have terabytes.
LONGEST_PADDING = 2**30

# What compressed files start with.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
COMPRESSED_ENDINGS = (
    *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "lz4", "lzma", "lz", "br", "z")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz"),
)

FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

NOT_IN_PLACE = (
    "is compressed, and shards are read in place, by offset: unpack it to a .tar first (such as "
    "gunzip, unzstd)"
)

_POSITION = threading.Lock()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset` on. The file's position, which threads and forked processes
    share, is left alone, except on Windows, which cannot and locks it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _POSITION:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


class Member(NamedTuple):
    """A file in an archive."""

    name: bytes
    offset: int  # of its first byte in the archive
    size: int  # bytes


def members(descriptor: int, path: str) -> Iterator[Member]:
    """The files of a tar archive (ustar, GNU or PAX), in its order, from their headers alone; of
    several archives one after another (`cat a.tar b.tar`) those of all. Folders are left out.

    Args:
        descriptor: of the archive, open for reading; its position is neither used nor moved.
        path: for messages.

    Raises:
        ValueError: compressed, a damaged header, a member beyond the end of the file, a missing end
            marker, a link, a device or a sparse file; the message names the archive and the byte.
    """
    length = os.fstat(descriptor).st_size
    offset = 0
    long_name: bytes | None = None
    extension: dict[bytes, bytes] = {}
    ended = False
    while not ended or offset < length:
        header = read_at(descriptor, BLOCK, offset)
        ended = header == ZEROS
        if ended:
            offset = _after_zeros(descriptor, offset, length, path)
            continue
        if not offset and header.startswith(COMPRESSED):
            raise ValueError(f"{path}: {NOT_IN_PLACE}")
        if len(header) < BLOCK:
            raise ValueError(
                f"{path}: ends at byte {length} without an end marker: it has been cut short"
            )
        info = _parse(header, path, offset)
        name = info.name.encode("utf-8", "surrogateescape")
        start, size = offset + BLOCK, info.size
        if info.type in FILES:
            name = extension.get(b"path", long_name or name)
            size = int(extension.get(b"size", size))
        elif info.type == tarfile.DIRTYPE:
            size = 0
        if size < 0 or start + size > length:
            raise ValueError(
                f"{path}: at byte {offset}: a member of {size} bytes where {length - start} are "
                "left: the shard is damaged or has been cut short"
            )
        offset = start + -(-size // BLOCK) * BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > LONGEST_EXTENSION:
                raise ValueError(f"{path}: at byte {start}: a name of {size} bytes")
            content = read_at(descriptor, size, start)
            if info.type == tarfile.XHDTYPE:
                extension = _pax(content, path, start)
            else:
                long_name = content.rstrip(b"\0")
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if info.type in FILES:
            yield Member(name, start, size)
        elif info.type != tarfile.DIRTYPE:
            kind = "a link" if info.islnk() or info.issym() else f"of type {info.type!r}"
            raise ValueError(
                f"{path}: at byte {start - BLOCK}: a member that is {kind}: shards hold files only"
            )
        long_name, extension = None, {}


def _after_zeros(descriptor: int, offset: int, length: int, path: str) -> int:
    """Where the zeros from `offset` on end: the next block that holds something else, or the end of
    the file. Only another archive may follow."""
    start = offset
    while content := read_at(descriptor, ZEROS_AT_ONCE, offset):
        if content.count(0) < len(content):
            return offset + (len(content) - len(content.lstrip(b"\0"))) // BLOCK * BLOCK
        offset += len(content)
        if offset - start > LONGEST_PADDING:
            raise ValueError(f"{path}: more than {LONGEST_PADDING} bytes of zeros at byte {start}")
    return length


def _parse(header: bytes, path: str, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise ValueError(f"{path}: at byte {offset}: damaged tar header ({error})") from error


def _pax(content: bytes, path: str, start: int) -> dict[bytes, bytes]:
    """Records '<length> <key>=<value>\\n', the length counting itself."""
    found = {}
    while content.rstrip(b"\0"):
        digits = re.match(rb"\d{1,18}(?= )", content)
        length = int(digits[0]) if digits else 0
        key, equals, value = content[:length].partition(b" ")[2].partition(b"=")
        value, end = value[:-1], value[-1:]
        number = key != b"size" or value.isdigit()
        if not equals or length > len(content) or end != b"\n" or not number:
            raise ValueError(f"{path}: at byte {start}: damaged PAX header")
        found[key] = value
        content = content[length:]
    return found
