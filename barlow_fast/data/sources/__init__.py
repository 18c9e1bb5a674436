"""Where images come from: arrays, folders and shards behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from .arrays import ArraySource
from .folder import FolderSource

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ArraySource", "FolderSource", "Source"]


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

    def image(self, index: int) -> Image.Image:
        """The decoded image, RGB (or L in a source of one channel), not rotated by EXIF.

        Raises:
            BadImageError: it cannot be read or decoded.
        """

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """(B, 2) int32 heights and widths of the images at (B,) `indices`, from their headers;
        (0, 0) where the header cannot be read, of which `image` tells the reason."""

    def fingerprint(self) -> str:
        """A hash of names, sizes in bytes and labels, not of the files' contents: equal on every
        machine that has the same files."""
