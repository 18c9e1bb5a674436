"""torch's zip files: written with a digest, and checked before torch reads them.

torch verifies no checksum when it reads, believes what the directory says about each record, and
reads nothing at all into a tensor whose record is marked as a folder. So everything is compared
here first.

The digest is the SHA-256 of the file as torch wrote it, in the archive's comment, which readers of
zip files ignore.
"""

from __future__ import annotations

import hashlib
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

# What `barlow_fast.checkpoints.training` writes, and since which version with a digest; that module
# needs far more than this one.
PRETRAIN = "barlow_fast.pretrain"
DIGEST_VERSION = 3
PICKLE = "data.pkl"
START = b"PK\x03\x04"
# torch stores without compression, so what a file unpacks to is what it weighs.
UNPACKED_LIMIT = 2
_MARK = b"barlow-fast sha256 "
_DIGITS = 64
_TRAILER = struct.pack("<H", len(_MARK) + _DIGITS) + _MARK
_TRAILER_SIZE = len(_TRAILER) + _DIGITS
_NO_COMMENT = b"\0\0"
_BLOCK = 2**20

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_END = struct.Struct("<4sHHHHIIH")
_END_SIGNATURE = b"PK\x05\x06"
_SIZE_FOLLOWS, _ENCRYPTED = 0x8, 0x1 | 0x20 | 0x40 | 0x2000
_FOLDER = 0x10  # an attribute of MS-DOS
# In fields whose value stands in a 64-bit field elsewhere.
_WIDE16, _WIDE32 = 0xFFFF, 0xFFFFFFFF


def save(content: Any, path: Path) -> None:
    """Writes with `torch.save`, and the digest.

    Raises:
        OSError: the disk is full, or other errors of writing.
    """
    with open(path, "wb") as file:
        stream = _Stream(file)
        try:
            torch.save(content, stream)
        except Exception:
            # torch reports a full disk as a position that it did not expect.
            if stream.error is not None:
                raise stream.error from None
            raise
        file.flush()
        # The archive ends with the length of its comment.
        file.seek(-len(_NO_COMMENT), 2)
        file.write(_TRAILER + stream.digest.hexdigest().encode())


class _Stream:
    """Passes on what is written, and keeps its digest and the error that ended it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            written = self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(content)
        return written

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise


def check(stream: BinaryIO) -> bool:
    """Whether the archive carries a digest; all that can be verified in any archive has been.

    Raises:
        ValueError: damaged, one that torch would misread, or unpacking to much more than it
            weighs. The message is what is said of the file.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            carries = _check_digest(stream)
            _check_directory(stream, archive)
            for entry in archive.infolist():
                _check_record(stream, archive, entry)
                if entry.filename.rpartition("/")[2] == PICKLE:
                    _check_calls(archive.read(entry))
    except ValueError:
        raise
    except Exception as error:
        # Damage shows as whatever the reader stumbles over.
        raise ValueError(str(error).split("\n", 1)[0] or type(error).__name__) from error
    finally:
        stream.seek(0)
    return carries


def _check_digest(stream: BinaryIO) -> bool:
    size = stream.seek(0, 2) - _TRAILER_SIZE
    stream.seek(max(size, 0))
    trailer = stream.read()
    if not trailer.startswith(_TRAILER):
        return False
    digest = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        digest.update(block)
        size -= len(block)
    digest.update(_NO_COMMENT)
    if digest.hexdigest().encode() != trailer[len(_TRAILER) :]:
        raise ValueError("it is damaged: its SHA-256 is not the one that it carries")
    return True


def _check_directory(stream: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Of the whole archive: that all readers find the same records in it."""
    weight = stream.seek(0, 2)
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > UNPACKED_LIMIT * weight + 2**20:
        raise ValueError(f"it unpacks to {unpacked} bytes and has {weight}")
    stream.seek(weight - _END.size - len(archive.comment))
    signature, disk, first, here, count, _, _, comment = _END.unpack(stream.read(_END.size))
    whole = signature == _END_SIGNATURE and comment == len(archive.comment)
    if not whole or any(number not in (0, _WIDE16) for number in (disk, first)):
        raise ValueError("its end is damaged")
    if any(number not in (len(entries), _WIDE16) for number in (here, count)):
        raise ValueError(f"it has {len(entries)} records and counts {count}")
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise ValueError("it does not begin with a record")
    # Other readers take no notice of capitals.
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise ValueError("several records have one name")


def _check_record(stream: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    stream.seek(entry.header_offset)
    header = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    _, _, flags, method, _, _, checksum, packed, size, _, _ = header
    if entry.external_attr & _FOLDER or name.endswith("/"):
        raise ValueError(f"{name} is marked as a folder")
    if (flags ^ entry.flag_bits) or flags & _ENCRYPTED or method != entry.compress_type:
        raise ValueError(f"{name} is described in two ways")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise ValueError(f"{name} has two sizes")
    said = ((checksum, entry.CRC), (packed, entry.compress_size), (size, entry.file_size))
    allowed = (_WIDE32, 0) if flags & _SIZE_FOLLOWS else (_WIDE32,)
    if any(ours != theirs and ours not in allowed for ours, theirs in said):
        raise ValueError(f"{name} is described in two ways")
    read = 0
    with archive.open(entry) as record:
        try:
            while block := record.read(_BLOCK):
                read += len(block)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{name} fails its checksum") from error
    if read != entry.file_size:
        raise ValueError(f"{name} ends after {read} of {entry.file_size} bytes")


def _check_calls(content: bytes) -> None:
    """Refuses what torch runs although it makes memory that no record fills: empty tensors, and
    bytes of any number. `torch.save` writes neither for tensors."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL":
            name = argument.rpartition(" ")[2]
            if name == "bytearray" or name.endswith("Tensor"):
                raise ValueError(f"it calls {name}, which no file of weights needs to")
