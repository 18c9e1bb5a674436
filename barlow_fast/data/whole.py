"""Detection of images whose data end early although checksums and end markers are valid, which
decoders accept.

* PNG, TIFF: the decoder stops, and rows, tiles or channels keep what was in memory. That is filled
  beforehand; where the fill seems to have survived, a decoding over another fill decides.
* JPEG: libjpeg fills what is missing with the gray that all coefficients 0 stand for. Where the
  last pixel is as bright as that, a decoding with more data before the end marker decides: a scan
  that is complete ignores them.

The others (BMP, WebP, GIF, PPM) are refused by their decoders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FILLS = (165, 90)  # values that borders, text and masks rarely have
BLACK_AND_WHITE = (0, 255)
COLUMNS = 4  # the last ones, in which no row or pass ends before its data do
JPEG = ("JPEG", "MPO")
END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", 0xDA
FRAMES = range(0xC0, 0xC3)  # baseline, extended, progressive
STRIP_OFFSETS, ROWS_PER_STRIP, TILE_LENGTH, TILE_OFFSETS = 273, 278, 323, 324  # tags of TIFF
MORE_DATA = b"\x5a\xa5\x33\xcc" * 64


def load_whole(
    image: Image.Image, encoded: bytes, open_again: Callable[[bytes], Image.Image]
) -> bool:
    """Decodes an image; False where its data do not fill it.

    Args:
        image: opened and not loaded; a JPEG perhaps with another scale (`draft`).
        encoded: the file.
        open_again: opens a file of the same kind, at full scale.
    """
    if image.format in JPEG:
        image.load()
        return not _may_end_early(image) or _is_complete_jpeg(encoded, open_again)
    if image.format not in ("PNG", "TIFF"):
        image.load()
        return True
    if not _covered(image, encoded):
        return False
    fills = BLACK_AND_WHITE if image.mode == "1" else FILLS
    first = _loaded_over(image, fills[0])
    left = first == np.frombuffer(_pixel(image.mode, fills[0]), np.uint8)
    # An interlaced image of one row is its only one that is filled in parts.
    if not (left.any() if image.height == 1 else left.all(1).any()):
        return True
    with open_again(encoded) as again:
        return np.array_equal(first, _loaded_over(again, fills[1]))


def _covered(image: Image.Image, encoded: bytes) -> bool:
    """Whether the parts that the file lists cover the image."""
    parts = {tuple(tile[1]) for tile in image.tile}
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in parts)
    return area >= image.width * image.height and _strips_are_high_enough(image, encoded)


def _strips_are_high_enough(image: Image.Image, encoded: bytes) -> bool:
    """Whether the JPEGs in a TIFF have the rows that they stand for: libtiff takes fewer."""
    if image.info.get("compression") != "jpeg":
        return True
    tags, height = image.tag_v2, image.height
    tiled = TILE_OFFSETS in tags
    rows = tags[TILE_LENGTH] if tiled else min(tags.get(ROWS_PER_STRIP, height), height)
    for number, offset in enumerate(tags.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())):
        frame = find_marker(encoded, FRAMES, offset)
        # Of several planes each begins at the top again.
        above = 0 if tiled else number * rows % (-(-height // rows) * rows)
        expected = rows if tiled else min(rows, height - above)
        if frame is None or int.from_bytes(encoded[frame + 5 : frame + 7], "big") < expected:
            return False
    return True


def _loaded_over(image: Image.Image, value: int) -> np.ndarray:
    """(H, columns, bytes) uint8, the last columns of an image decoded over a fill."""
    # A TIFF that is turned when loaded is decoded into another size, and left as it is.
    if getattr(image, "_tile_size", image.size) == image.size:
        image.im = _filled(image.mode, image.size, value).im
    image.load()
    width, height = image.size
    pixels = image.crop((max(width - COLUMNS, 0), 0, width, height)).tobytes()
    columns = 1 if image.mode == "1" else min(COLUMNS, width)  # of one bit: packed into a byte
    return np.frombuffer(pixels, np.uint8).reshape(height, columns, -1)


def _filled(mode: str, size: tuple[int, int], value: int) -> Image.Image:
    from PIL import Image

    bands = Image.getmodebands(mode)
    return Image.new(mode, size, (value,) * bands if bands > 1 else value)


@functools.cache
def _pixel(mode: str, value: int) -> bytes:
    return _filled(mode, (1, 1), value).tobytes()


def _may_end_early(image: Image.Image) -> bool:
    last = image.getpixel((image.width - 1, image.height - 1))
    if image.mode == "RGB":
        # Its color may come from a neighbor that is there: color has a lower resolution.
        red, green, blue = last
        return abs(0.299 * red + 0.587 * green + 0.114 * blue - 128) < 2
    # 127: as CMYK, which is stored inverted.
    return all(value in (127, 128) for value in (last if isinstance(last, tuple) else (last,)))


def _is_complete_jpeg(encoded: bytes, open_again: Callable[[bytes], Image.Image]) -> bool:
    scan = find_marker(encoded, range(START_OF_SCAN, START_OF_SCAN + 1))
    end = -1 if scan is None else encoded.find(END_OF_IMAGE, scan)
    if end < 0:
        return True  # with data to the end of the file, of which the decoder has said nothing
    # At full scale: what more data add may be too fine for a reduced one.
    with open_again(encoded) as once, open_again(encoded[:end] + MORE_DATA + encoded[end:]) as more:
        once.load()
        more.load()
        return once.tobytes() == more.tobytes()


def find_marker(encoded: bytes, wanted: range, start: int = 0) -> int | None:
    """Where the first marker segment of a JPEG whose code is in `wanted` begins, among those before
    the first scan: thumbnails inside of them have markers of their own.

    Args:
        encoded: a file that holds the JPEG.
        wanted: second bytes of markers.
        start: where the JPEG begins.
    """
    at = start + 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        code = encoded[at + 1]
        if code in wanted:
            return at
        if code == START_OF_SCAN:
            return None
        padding = code == 0xFF
        at += 1 if padding else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None
