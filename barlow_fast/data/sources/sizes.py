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
        read: gives (height, width) of one, or raises `BadImageError`.
    """

    def __init__(self, count: int, read: Callable[[int], tuple[int, int]]) -> None:
        self._known = np.full((count, 2), UNKNOWN, dtype=np.int32)
        self._read = read

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """(B, 2) int32 heights and widths; (0, 0) for an image whose header cannot be read.

        That is not remembered: a file that could not be reached may be there the next time.
        """
        indices = np.asarray(indices)
        sizes = self._known[indices]
        for row in np.flatnonzero(sizes[:, 0] == UNKNOWN):
            index = int(indices[row])
            try:
                sizes[row] = self._known[index] = self._read(index)
            except BadImageError:
                sizes[row] = 0
        return sizes
