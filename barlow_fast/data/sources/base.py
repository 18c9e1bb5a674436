"""The protocol of image sources, and what sources of labelled images and of files share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..decoding import Decoded, Reduce, decode_pixels, picture
from ..faults import BadImageError
from .names import Names, fingerprint

if TYPE_CHECKING:
    from PIL import Image

UNKNOWN = -1  # in place of a height or width


@runtime_checkable
class Source(Protocol):
    """N images by number. Sources are pickled to worker processes; what they return depends on the
    number alone, from any thread or process."""

    name: str
    classes: list[str] | None  # names of the classes, in the order of their labels

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The label of one image; -1: none."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, -1 where an image has none; None where no image has one."""

    def identity(self, index: int) -> str:
        """What messages call the image: its path, or shard:member. One printable line."""

    def encoded(self, index: int) -> bytes:
        """The bytes of the image's file.

        Raises:
            BadImageError: they cannot be read.
            TypeError: the source holds pixels, not files.
        """

    def pixels(self, index: int, channels: int = 3, reduce: Reduce | None = None) -> Decoded:
        """The decoded image, not rotated by EXIF; see `decode_pixels`.

        Args:
            index: its number.
            channels: 1 or 3.
            reduce: as for `decode_pixels`; images in memory are not reduced.

        Raises:
            BadImageError: it cannot be read or decoded.
        """

    def image(self, index: int) -> Image.Image:
        """The same as a PIL image, RGB (or L in a source of one channel)."""

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """(B, 2) int32 heights and widths of the images at (B,) `indices`, from their headers;
        (0, 0) where the header cannot be read; `image` raises the reason."""

    def fingerprint(self) -> str:
        """A hash of names, sizes in bytes and labels, not of the files' contents: equal on every
        machine that has the same files."""


class Labelled:
    """A source whose labels are an array: (N,) int64, -1 where an image has none, or None."""

    name: str
    classes: list[str] | None
    _labels: np.ndarray | None

    def __repr__(self) -> str:
        classes = f"{len(self.classes)} classes" if self.classes else "no classes"
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {classes})"

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, none of number {index}")


class EncodedSource(Labelled):
    """A source of image files. Sizes in pixels are read from headers when first requested."""

    max_pixels: int
    _names: Names
    _bytes: np.ndarray  # (N,) int64, of the files
    _sizes: np.ndarray  # (N, 2) int32 heights and widths, `UNKNOWN` until they are read

    def __len__(self) -> int:
        return len(self._names)

    def pixels(self, index: int, channels: int = 3, reduce: Reduce | None = None) -> Decoded:
        encoded, identity = self.encoded(index), self.identity(index)
        return decode_pixels(encoded, identity, index, channels, self.max_pixels, reduce)

    def image(self, index: int) -> Image.Image:
        return picture(self.pixels(index).pixels)

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        sizes = self._sizes[indices]
        for row in np.flatnonzero(sizes[:, 0] == UNKNOWN):
            index = int(indices[row])
            try:
                sizes[row] = self._sizes[index] = self._size(index)
            except BadImageError:
                # Not kept: a file that could not be read may be readable the next time.
                sizes[row] = 0
        return sizes

    def fingerprint(self) -> str:
        """A hash of the images' names, sizes in bytes and labels, in whatever files they lie."""
        return fingerprint(self._names, self._bytes, self._labels)
