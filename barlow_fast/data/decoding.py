"""The one place where image files are decoded.

Every image file goes through `decode_pixels`, or through `check` before another decoder gets it,
and its size through `header_size`. None of them trusts the bytes: what is wrong with them is raised
as a `BadImageError` that names the image, and never ends in a crash, an endless wait, an image that
is only partly decoded, or a process without memory.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from ..inputs import open_regular
from . import jpeg
from .faults import BadImage, Unreadable, guard
from .whole import JPEG, load_whole

if TYPE_CHECKING:
    from PIL import Image

# PIL's own limit, beyond which it refuses to open: 537 MB once decoded to three bytes per pixel.
MAX_PIXELS = 178_956_970
# From here on PIL warns when it opens an image.
WARNED_PIXELS = 89_478_485
# Of an encoded file. 16-bit colour without compression at `MAX_PIXELS` takes 1.1e9.
MAX_BYTES = 2**31

# Content decides which of these reads a file, whatever its name says. PIL knows forty more, some of
# which start other programs or are no pictures at all: they are not for files of unknown origin.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")


class Decoded(NamedTuple):
    """An image, or a smaller version of it, and what its decoder warned of."""

    # (ceil(height / reduction), ceil(width / reduction), C) uint8, C-contiguous.
    pixels: np.ndarray
    height: int  # of the whole image, in pixels
    width: int
    reduction: int = 1  # of both sides
    warning: str = ""  # one line; '' where there is none, or none can be noticed (`jpeg`)

    def suspect(self, index: int, identity: str) -> BadImage | None:
        """The image's entry among suspect ones; None where there was no warning."""
        return BadImage(index, identity, self.warning, suspect=True) if self.warning else None


class Checked(NamedTuple):
    """The size in pixels of an image that is read, and what its decoder warned of."""

    height: int
    width: int
    warning: str = ""  # as of `Decoded`


# Chooses one of `jpeg.REDUCTIONS` for an image of (height, width).
Reduce = Callable[[int, int], int]


def decode_pixels(
    encoded: bytes,
    identity: str,
    index: int = -1,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    reduce: Reduce | None = None,
) -> Decoded:
    """The image in the bytes of a file, as 8-bit RGB or gray.

    Converted as torchvision's image folders convert: palettes are looked up, CMYK is turned to
    RGB, gray is repeated, alpha is dropped, of an animation the first frame is taken, and EXIF's
    orientation is not applied. One thing differs: 16-bit gray is scaled to 8 bits. PIL would clip
    it, which turns every value above 255 of 65535 to white, and hence most images to a white
    rectangle. Gray is computed from RGB, as PIL does.

    JPEG in gray and colour is decoded by simplejpeg where that is installed, everything else by
    PIL; pixels and refusals are the same. An image that is decoded with a warning is suspect: its
    data are damaged, but the decoder can continue.

    Args:
        encoded: the whole file.
        identity: what messages call it.
        index: its sample number.
        channels: 1 or 3.
        max_pixels: the largest image; read from the header, before anything is decoded.
        reduce: requested for every JPEG, which is decoded with sides divided by what it returns
            and rounded up. None: nothing is reduced.

    Raises:
        BadImageError: empty, truncated, damaged, no image, of a format outside `FORMATS`, too
            large, or with pixels of an unsupported type.
        ModuleNotFoundError: Pillow is missing.
    """
    with guard(identity, index):
        frame, warning = _jpeg_frame(encoded, max_pixels), ""
        if frame is not None:
            reduction = reduce(frame.height, frame.width) if reduce else 1
            with contextlib.suppress(ValueError):
                pixels = jpeg.decode(encoded, frame, reduction)
                return Decoded(in_channels(pixels, channels), frame.height, frame.width, reduction)
            # Decided by Pillow, as where simplejpeg is missing.
            warning = jpeg.warning(encoded, frame) or ""
        with _open(io.BytesIO(encoded), max_pixels) as image:
            height, width = image.height, image.width
            reduction = reduce(height, width) if reduce and image.format in JPEG else 1
            _load(image, encoded, max_pixels, reduction)
            pixels = np.array(_rgb(image))
        return Decoded(in_channels(pixels, channels), height, width, reduction, warning)


def check(encoded: bytes, identity: str, index: int = -1, max_pixels: int = MAX_PIXELS) -> Checked:
    """The size of the image that `decode_pixels` would give.

    For decoders that accept damaged files: a JPEG or PNG that `decode_pixels` refuses is refused
    here, by the same decoder. Of a JPEG all data are read, but only an eighth of the pixels a side
    is computed, which takes less time.

    Args:
        encoded, identity, index, max_pixels: as for `decode_pixels`.

    Raises:
        BadImageError, ModuleNotFoundError: as `decode_pixels`.
    """
    with guard(identity, index):
        frame, warning = _jpeg_frame(encoded, max_pixels), None
        if frame is not None:
            warning = jpeg.warning(encoded, frame)
            if warning == "":
                return Checked(frame.height, frame.width)
        with _open(io.BytesIO(encoded), max_pixels) as image:
            size = image.height, image.width
            _load(image, encoded, max_pixels, jpeg.REDUCTIONS[0])
        return Checked(*size, warning or "")


def _jpeg_frame(encoded: bytes, max_pixels: int) -> jpeg.Frame | None:
    """The header of a file that simplejpeg can decode as Pillow does, seen to be accepted by
    Pillow; None for any other."""
    if not encoded.startswith(jpeg.START_OF_IMAGE) or jpeg.simplejpeg() is None:
        return None
    frame = jpeg.plain_frame(encoded)
    if frame is not None and frame.height * frame.width <= min(max_pixels, WARNED_PIXELS):
        return frame
    with _open(io.BytesIO(encoded), max_pixels) as image:
        components = {"L": 1, "RGB": 3}.get(image.mode)
        if image.format not in JPEG or components is None:
            return None
        return jpeg.Frame(image.height, image.width, components)


def _load(image: Image.Image, encoded: bytes, max_pixels: int, reduction: int) -> None:
    """Decodes an opened image; a JPEG with its sides divided by `reduction`."""
    if reduction > 1:
        image.draft(image.mode, tuple(max(side // reduction, 1) for side in image.size))
    if not load_whole(image, encoded, lambda file: _open(io.BytesIO(file), max_pixels)):
        raise Unreadable("its data end before the image does: a part of it is missing")


def header_size(
    file: bytes | BinaryIO, identity: str, index: int = -1, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(height, width) in pixels of the image that `decode_pixels` would give, from the header.

    Args:
        file: the bytes, or a seekable binary file, of which only the header is read.
        identity, index, max_pixels: as for `decode_pixels`.

    Raises:
        BadImageError, ModuleNotFoundError: as `decode_pixels`, as far as the header shows it.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    with guard(identity, index), _open(stream, max_pixels) as image:
        return image.height, image.width


def read_file(path: str | bytes, identity: str, index: int = -1) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: missing, not permitted, a folder, a device or a pipe (which could keep a
            reader waiting forever), or larger than any image.
    """
    with guard(identity, index), open_regular(path, MAX_BYTES) as file:
        # No more than that: Python allocates what may be read, at once and under its lock.
        return file.read(os.fstat(file.fileno()).st_size)


def _open(stream: BinaryIO, max_pixels: int) -> Image.Image:
    """The image with its header read, its size checked and nothing decoded."""
    pil = pillow()
    try:
        image = pil.open(stream, formats=FORMATS)
    except pil.DecompressionBombError as error:
        raise Unreadable(
            f"has more than the {2 * pil.MAX_IMAGE_PIXELS} pixels that PIL opens"
        ) from error
    except pil.DecompressionBombWarning as warning:
        # Only where warnings have been made errors.
        raise Unreadable(f"has more than {pil.MAX_IMAGE_PIXELS} pixels") from warning
    except pil.UnidentifiedImageError as error:
        raise Unreadable(_not_an_image(stream)) from error
    if image.width * image.height > max_pixels:
        raise Unreadable(
            f"has {image.height} x {image.width} pixels, more than {max_pixels} are not decoded"
        )
    return image


def _not_an_image(stream: BinaryIO) -> str:
    stream.seek(0)
    start = stream.read(12)
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp":
        brand = start[8:].decode("latin-1").strip()
        return f"is {brand}, a kind of HEIF (HEIC, AVIF) or video: convert it to JPEG"
    start = start[:8]
    return (
        f"is none of {', '.join(FORMATS)}, or its header is damaged (starts with {start.hex(' ')})"
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise Unreadable("floating-point images are not supported")
    # Alpha is dropped here, so a palette's transparency says nothing; PIL would warn about it.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray, 65535 as 255, rounded to nearest (as DALI has it)."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("32-bit images with values outside 0 to 65535 are not supported")
    return pillow().fromarray(((values + 128) // 257).astype(np.uint8))


def in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 or 3) uint8 in `channels` channels, converted as PIL does."""
    if pixels.shape[2] == channels:
        return pixels
    converted = np.array(picture(pixels).convert("L" if channels == 1 else "RGB"))
    return converted.reshape(*pixels.shape[:2], channels)


def picture(pixels: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 as an image of mode L or RGB."""
    return pillow().fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


@functools.cache
def pillow() -> ModuleType:
    """PIL.Image with the readers of `FORMATS`; sought when the first image is read, so that arrays
    need no Pillow."""
    try:
        from PIL import (  # noqa: F401
            BmpImagePlugin,
            GifImagePlugin,
            Image,
            JpegImagePlugin,
            PngImagePlugin,
            PpmImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "image files are read with Pillow: pip install 'barlow-fast[train]'", name="PIL"
        ) from error
    return Image
