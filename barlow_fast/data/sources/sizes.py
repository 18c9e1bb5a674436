"""Sizes of images in pixels, read when first asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..faults import BadImageError

UNKNOWN = -1


class SizeCache:
    """(height, width) of images, each read once.

    Args:
        count: how many images there are.
        known: (count, 2) int32 of what is known already, `UNKNOWN` elsewhere; taken over.
    """

    def __init__(self, count: int, known: np.ndarray | None = None) -> None:
        self._known = np.full((count, 2), UNKNOWN, dtype=np.int32) if known is None else known

    def get(self, indices: np.ndarray, read: Callable[[int], tuple[int, int]]) -> np.ndarray:
        """(B, 2) int32 heights and widths; (0, 0) for an image whose header cannot be read.

        That is not remembered: a file that could not be reached may be there the next time.

        Args:
            indices: (B,) integers.
            read: gives (height, width) of one image, or raises `BadImageError`.
        """
        indices = np.asarray(indices)
        sizes = self._known[indices]
        for row in np.flatnonzero(sizes[:, 0] == UNKNOWN):
            index = int(indices[row])
            try:
                sizes[row] = self._known[index] = read(index)
            except BadImageError:
                sizes[row] = 0
        return sizes
