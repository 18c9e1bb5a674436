"""JPEG decoded by simplejpeg: the pixels of Pillow in half the time, without the interpreter's
lock, and with libjpeg's warnings, which Pillow drops.

Pillow stays the reference: it decodes whatever libjpeg warns of, and what is no JPEG of 8 bits in
gray or colour. Where simplejpeg is missing it decodes everything, and no warning is noticed.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..terminal import printable

START_OF_IMAGE = b"\xff\xd8\xff"
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
START_OF_SCAN = 0xDA
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantization, restart interval
APP0, APP2, PHOTOSHOP, ADOBE, COMMENT = 0xE0, 0xE2, 0xED, 0xEE, 0xFE
# The other segments of a header, and how many bytes, their length included, they have at least
# where Pillow reads them.
SEGMENTS = dict.fromkeys((*TABLES, COMMENT, *range(APP0, APP0 + 16)), 2)
SEGMENTS |= {APP0: 9, APP2: 16, ADOBE: 9}
del SEGMENTS[PHOTOSHOP]  # a structure of its own
MULTIPLE_PICTURES = b"MPF\0"

# Sides are divided by one of these when an image is decoded at reduced scale; libjpeg has vector
# code for them.
REDUCTIONS = (8, 4, 2, 1)


class Frame(NamedTuple):
    """What the header of a JPEG states."""

    height: int
    width: int
    components: int


@functools.cache
def simplejpeg() -> ModuleType | None:
    """The library, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def plain_frame(encoded: bytes) -> Frame | None:
    """The frame of a JPEG whose header every decoder accepts; None where Pillow has to decide,
    since its own reader of headers refuses files that libjpeg decodes.

    Args:
        encoded: a whole file.
    """
    at, frame = 2, None
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        code = encoded[at + 1]
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        if code == START_OF_SCAN:
            return frame
        if code in FRAMES:
            components = encoded[at + 9] if at + 9 < len(encoded) else 0
            if frame or length != 8 + 3 * components or encoded[at + 4] != 8:
                return None
            sides = (int.from_bytes(encoded[at + i : at + i + 2], "big") for i in (5, 7))
            frame = Frame(*sides, components)
            if components not in (1, 3) or not frame.height * frame.width:
                return None
        elif length < SEGMENTS.get(code, 2**16) or (
            code == APP2 and encoded.startswith(MULTIPLE_PICTURES, at + 4)
        ):
            return None
        at += 2 + length
    return None


def decode(
    encoded: bytes, frame: Frame, reduction: int = 1, *, gray: bool = False, strict: bool = True
) -> np.ndarray:
    """(h, w, components) uint8, C-contiguous: the pixels that libjpeg gives, as Pillow calls it.

    Args:
        encoded: a JPEG of 8 bits.
        frame: its header.
        reduction: of both sides, which are rounded up; one of `REDUCTIONS`.
        gray: whether colour is left out.
        strict: whether a warning of libjpeg is an error.

    Raises:
        ValueError: not decoded, or with a warning; its text is libjpeg's.
    """
    return simplejpeg().decode_jpeg(
        encoded,
        "GRAY" if gray or frame.components == 1 else "RGB",
        min_height=-(-frame.height // reduction),
        min_width=-(-frame.width // reduction),
        strict=strict,
    )


def warning(encoded: bytes, frame: Frame) -> str | None:
    """What libjpeg warns of while it decodes a JPEG, in one line; '' where it does not. None where
    it does not decode it, as what this build lacks, which is nothing wrong with the file.

    All data are read, and an eighth of the pixels a side is computed.
    """
    for strict in (True, False):
        try:
            decode(encoded, frame, REDUCTIONS[0], gray=True, strict=strict)
        except ValueError as error:
            found = str(error)
        else:
            return "" if strict else printable(" ".join(found.split()))
    return None
