"""IDX files, the format of MNIST and similar data sets. Every byte is checked.

Format: two zero bytes, a type code, the number of dimensions, one big-endian 32-bit size per
dimension, the values in row-major order. Files may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from ..inputs import open_regular

UNSIGNED_BYTE = 0x08
# What a compressed file may unpack to: so many times its size, or so many bytes. Fashion-MNIST's
# images unpack to 1.8 times their size, labels that are all alike to 1000 times.
LARGEST_RATIO, SMALL = 64, 2**24
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int, limit: int = 2**31) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by its first bytes, not by its name.
        dimensions: how many the array must have: 3 for images (N, H, W), 1 for labels.
        limit: the most bytes that the values may take. A header that requests more, or for more
            than a file of this size can hold, is refused before any is read.

    Returns:
        uint8 array, writable, of the sizes in the header.

    Raises:
        ValueError: the file is not such an IDX file, is cut short, has bytes left over, or its
            gzip stream is damaged; the message names the file.
        OSError: the file cannot be opened or read.
    """
    with io.BufferedReader(open_regular(path)) as raw:
        weight = os.fstat(raw.fileno()).st_size
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        # A few bytes can unpack to gigabytes.
        most = max(SMALL, LARGEST_RATIO * weight) if compressed else weight
        try:
            return _parse(stream, path, dimensions, min(limit, most))
        except EOFError as error:
            raise ValueError(f"{path}: the gzip stream is cut short") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: the gzip stream is damaged ({error})") from error


def _parse(stream, path: Path, dimensions: int, limit: int) -> np.ndarray:
    magic = stream.read(4)
    expected = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if magic != expected:
        raise ValueError(
            f"{path}: not an IDX file of unsigned bytes with {dimensions} dimension(s): "
            f"it starts with {magic.hex(' ') or 'nothing'}, not {expected.hex(' ')}"
        )
    header = stream.read(4 * dimensions)
    if len(header) != 4 * dimensions:
        raise ValueError(f"{path}: cut short inside its header")
    sizes = struct.unpack(f">{dimensions}I", header)
    count = math.prod(sizes)
    if count > limit:
        raise ValueError(
            f"{path}: the header requests {count} bytes of shape {sizes}; at most {limit} "
            "are accepted of a file of this size"
        )
    values = stream.read(count)
    if len(values) != count:
        raise ValueError(
            f"{path}: cut short: the header promises {count} values of shape {sizes}, "
            f"the file has {len(values)}"
        )
    if stream.read(1):
        raise ValueError(f"{path}: has bytes left over after its {count} values of shape {sizes}")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(sizes)
