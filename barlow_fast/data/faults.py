"""Images that cannot be read: what is found wrong with them, and what is done about it.

Every image file goes through `decode`, or through `check` before another decoder gets it, and its
size through `header_size`. All take bytes that nobody vouches for: what is wrong comes out as a
`BadImageError` that names the image, never as a crash, a wait, an image made up from the half that
was there, or a process without memory.
"""

from __future__ import annotations

import functools
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

from ..inputs import open_regular
from ..terminal import printable
from .whole import load_whole

if TYPE_CHECKING:
    from PIL import Image

LOG = logging.getLogger("barlow_fast.data")

# PIL's own limit, beyond which it refuses to open: 537 MB once decoded to three bytes per pixel.
MAX_PIXELS = 178_956_970
# Of an encoded file. 16-bit colour without compression at `MAX_PIXELS` takes 1.1e9.
MAX_BYTES = 2**31

# Content decides which of these reads a file, whatever its name says. PIL knows forty more, some of
# which start other programs or are no pictures at all: they are not for files of unknown origin.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

OnBadImage = Literal["error", "skip"]
POLICIES = get_args(OnBadImage)


@dataclass(frozen=True)
class BadImage:
    """One image that cannot be read."""

    index: int  # its sample number in the source; -1 where there is none
    identity: str  # path, or shard:member, printable
    reason: str  # one line

    def __str__(self) -> str:
        return f"{self.identity}: {self.reason}"


class BadImageError(ValueError):
    """An image that cannot be read; `image` says which and why. Survives the way between
    processes."""

    def __init__(self, image: BadImage) -> None:
        super().__init__(image)
        self.image = image

    def __str__(self) -> str:
        return str(self.image)


class BadImages:
    """What is done about bad images, and the record of them.

    Each is reported once, in a warning of the logger `barlow_fast.data`, however many epochs,
    scores and loaders meet it: one record serves a whole run. Memory is bounded: of the first
    `limit` images the whole record is kept, of the others their number.

    Args:
        policy: 'error': the first bad image raises; 'skip': it is recorded, and its sample left
            out.
        limit: how many are kept in `images`.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, policy: OnBadImage = "error", limit: int = 1000) -> None:
        if policy not in POLICIES:
            raise ValueError(f"on_bad_image must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.policy = policy
        self.limit = limit
        self.images: list[BadImage] = []
        self.encounters = 0  # every time that one was met, in every epoch
        self._known: set[str] = set()
        self._full = False

    @classmethod
    def of(cls, given: OnBadImage | BadImages) -> BadImages:
        """A record that is given, or a new one of a policy."""
        return given if isinstance(given, cls) else cls(given)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, image: BadImage) -> None:
        """Records a bad image, or raises `BadImageError` under the policy 'error'."""
        if self.policy == "error":
            raise BadImageError(image)
        self.encounters += 1
        if image.identity in self._known or self._full:
            return
        if len(self.images) == self.limit:
            self._full = True
            LOG.warning("more than %d bad images: further ones are not listed", self.limit)
            return
        self._keep(image)
        LOG.warning("left out: %s", image)

    def learn(self, images: Iterable[BadImage]) -> None:
        """Takes in images that another process has reported."""
        for image in images:
            if image.identity not in self._known and len(self.images) < self.limit:
                self._keep(image)

    def _keep(self, image: BadImage) -> None:
        self._known.add(image.identity)
        self.images.append(image)


def decode(
    encoded: bytes, identity: str, index: int = -1, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The image in the bytes of a file, as 8-bit RGB.

    Converted as torchvision's image folders convert: palettes are looked up, CMYK is turned to
    RGB, gray is repeated, alpha is dropped, of an animation the first frame is taken, and EXIF's
    orientation is not applied. One thing differs: 16-bit gray is scaled to 8 bits. PIL would clip
    it, which turns every value above 255 of 65535 to white, and hence most images to a white
    rectangle.

    Args:
        encoded: the whole file.
        identity: what messages call it.
        index: its sample number.
        max_pixels: the largest image; read from the header, before anything is decoded.

    Returns:
        A PIL image of mode RGB.

    Raises:
        BadImageError: empty, truncated, damaged, no image, of a format outside `FORMATS`, too
            large, or without a defined white.
        ModuleNotFoundError: Pillow is missing.
    """
    with guard(identity, index), _open(io.BytesIO(encoded), max_pixels) as image:
        _load(image, encoded, lambda file: _open(io.BytesIO(file), max_pixels))
        return _rgb(image)


def check(
    encoded: bytes, identity: str, index: int = -1, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(height, width) in pixels of the image that `decode` would give.

    For decoders that accept damaged files: a JPEG or PNG that `decode` refuses is refused here, by
    the same decoder. Of a JPEG all data are read, but only an eighth of the pixels a side is
    computed, which takes half the time.

    Args:
        encoded, identity, index, max_pixels: as for `decode`.

    Raises:
        BadImageError, ModuleNotFoundError: as `decode`.
    """

    sizes = []

    def reduced(file: bytes) -> Image.Image:
        image = _open(io.BytesIO(file), max_pixels)
        sizes.append((image.height, image.width))
        image.draft(image.mode, (1, 1))
        return image

    with guard(identity, index), reduced(encoded) as image:
        _load(image, encoded, reduced)
    return sizes[0]


def _load(image: Image.Image, encoded: bytes, open_again: Callable[[bytes], Image.Image]) -> None:
    if not load_whole(image, encoded, open_again):
        raise Unreadable("its data end before the image does: a part of it is missing")


def header_size(
    file: bytes | BinaryIO, identity: str, index: int = -1, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(height, width) in pixels of the image that `decode` would give, from the header alone.

    Args:
        file: the bytes, or a seekable binary file, of which only the header is read.
        identity, index, max_pixels: as for `decode`.

    Raises:
        BadImageError, ModuleNotFoundError: as `decode`, as far as the header shows it.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    with guard(identity, index), _open(stream, max_pixels) as image:
        return image.height, image.width


def read_file(path: str | bytes, identity: str, index: int = -1) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: missing, not permitted, a folder, a device or a pipe (which could keep a
            reader waiting for ever), or larger than any image.
    """
    with guard(identity, index), open_regular(path, MAX_BYTES) as file:
        return file.read(MAX_BYTES)


class Unreadable(ValueError):
    """Why an image cannot be read, before it is known which image it is."""


_reading = threading.local()  # identity: what this thread reads
_show_warning = warnings.showwarning


def _name_warnings() -> None:
    """Warnings of Pillow name no file: from now on those of a thread that reads an image go to the
    log, with its name."""
    global _show_warning
    # Looked at every time: whoever catches warnings puts back what was there.
    if warnings.showwarning is not _named_warning:
        _show_warning, warnings.showwarning = warnings.showwarning, _named_warning


def _named_warning(message: Warning | str, *rest: object, **more: object) -> None:
    identity = getattr(_reading, "identity", None)
    if identity is None:
        _show_warning(message, *rest, **more)
    else:
        LOG.warning("%s: %s", identity, printable(" ".join(str(message).split())))


class guard:
    """Turns whatever goes wrong inside into a `BadImageError`.

    Whatever: decoders of damaged bytes raise OSError, SyntaxError, ValueError, struct.error,
    IndexError, EOFError, zlib.error and more, and a list of them would be one short. Only
    MemoryError passes: sizes are checked first, so it is the machine's state and not the image's.
    """

    def __init__(self, identity: str, index: int) -> None:
        self.identity, self.index = identity, index

    def __enter__(self) -> None:
        self.outer = getattr(_reading, "identity", None)
        _reading.identity = self.identity
        _name_warnings()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        _reading.identity = self.outer
        if not isinstance(error, Exception) or isinstance(
            error, (BadImageError, MemoryError, ModuleNotFoundError)
        ):
            return
        raise BadImageError(BadImage(self.index, self.identity, _reason(error))) from error


def _reason(error: Exception) -> str:
    """One line of at most 200 characters."""
    if isinstance(error, Unreadable):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = f"{error}" or type(error).__name__
    return printable(" ".join(text.split()))[:200]


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
        raise Unreadable("holds floating-point pixels, for which no white is defined")
    # Alpha is dropped here, so a palette's transparency says nothing; PIL would warn about it.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray, 65535 as 255, rounded to nearest (as DALI has it)."""
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("holds 32-bit pixels beyond 0 to 65535, for which no white is defined")
    return pillow().fromarray(((values + 128) // 257).astype(np.uint8))


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
