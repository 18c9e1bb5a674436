"""Crop windows in pixels.

The rule is RandomResizedCrop's (Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015, as
torchvision words it): a window of random area and shape is tried until one fits into the image, ten
times at most; after that a central one takes as much of the image as the shapes allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .jpeg import REDUCTIONS
from .views import ViewParameters, ViewSpecification

# Pixels of a reduced image per pixel of a view, at least. A smaller margin is hardly faster, since
# the Huffman code is read at every scale, and a larger one halves fewer images (README.md).
MARGIN = 1.25


def windows(
    parameters: ViewParameters,
    specification: ViewSpecification,
    heights: np.ndarray | int,
    widths: np.ndarray | int,
) -> np.ndarray:
    """The part of each image that its view shows.

    Args:
        parameters: B rows, drawn from `specification`.
        specification: one that shows an upright window: no rotation, no shear, no zooming out.
        heights, widths: of the images, in pixels: (B,) integers, or one for all.

    Returns:
        (B, 4) int32: top, left, height, width. The window lies within its image and has at least
        one pixel. A specification that does not crop gives whole images.

    Raises:
        ValueError: a specification whose views are warped; parameters that were drawn from
            another; an image without pixels.
    """
    _check(parameters, specification)
    count = len(parameters)
    heights, widths = (np.broadcast_to(np.asarray(s, np.int64), count) for s in (heights, widths))
    if count and min(heights.min(), widths.min()) < 1:
        raise ValueError("an image has no pixels")
    found = np.stack((heights, widths), 1)
    if specification.crops:
        found = _sizes(parameters.tries, specification, heights, widths)
    centred = found[:, 0] < 0
    found = np.abs(found)
    room = np.stack((heights, widths), 1) - found
    # A number in (0, 1) times the places that the window can take; float64 keeps the product below
    # their number.
    corner = (parameters.place.astype(np.float64) * (room + 1)).astype(np.int64)
    corner = np.where(centred[:, None], room // 2, corner)
    return np.concatenate((corner, found), 1).astype(np.int32)


class WindowOfEach:
    """`windows` for images whose sizes are found one after another.

    Finding one takes 2 us, where `windows` of a single image takes 60, all of it under the
    interpreter's lock, which the threads of a loader share.

    Args:
        parameters, specification: as for `windows`.

    Raises:
        ValueError: as `windows`.
    """

    def __init__(self, parameters: ViewParameters, specification: ViewSpecification) -> None:
        _check(parameters, specification)
        tries = parameters.tries if specification.crops else parameters.tries[:, :0]
        self._shapes = np.stack(_shapes(tries, specification), -1).tolist()
        self._ratios = specification.crop_ratio
        self._place = parameters.place.tolist()

    def find(self, row: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the window of one row, in an image of height x width pixels
        that has at least one."""
        # IEEE 754 rounds each of these operations as it does in numpy.
        for share, ratio in self._shapes[row]:
            area = height * width * share
            tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < tall <= height and 0 < wide <= width:
                break
        else:
            if self._shapes[row]:
                return self._central(height, width)
            tall, wide = height, width
        down, across = self._place[row]
        return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        narrow, broad = self._ratios
        shape = width / height
        tall = max(round(width / narrow), 1) if shape < narrow else height
        wide = max(round(height * broad), 1) if shape > broad else width
        return (height - tall) // 2, (width - wide) // 2, tall, wide


def _check(parameters: ViewParameters, specification: ViewSpecification) -> None:
    if specification.warped:
        raise ValueError(
            "a view that is turned, sheared or zoomed out has no window of whole pixels"
        )
    if specification.crops and not parameters.tries.shape[1]:
        raise ValueError("the parameters were drawn from a specification that does not crop")


def _shapes(tries: np.ndarray, specification: ViewSpecification) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the image's area and ratios of width to height, float64, of the windows that
    `tries` (..., 2) stands for."""
    # In float64: its rounding does not depend on the machine's vector instructions to a degree that
    # could move a pixel.
    u = tries.astype(np.float64)
    low, high = specification.crop_area
    low_ratio, high_ratio = (math.log(ratio) for ratio in specification.crop_ratio)
    ratios = np.exp(low_ratio + (high_ratio - low_ratio) * u[..., 1])
    return low + (high - low) * u[..., 0], ratios


def _sizes(
    tries: np.ndarray, specification: ViewSpecification, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """(B, 2) int64 heights and widths of the windows; negative where none fitted, for a central
    one."""
    found = np.zeros((len(tries), 2), np.int64)
    rows = np.arange(len(tries))
    # Most rows are done after the first attempt, so each attempt looks at what is left.
    for attempt in range(tries.shape[1]):
        share, ratio = _shapes(tries[rows, attempt], specification)
        area = (heights[rows] * widths[rows]) * share
        height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        fits = (height > 0) & (height <= heights[rows]) & (width > 0) & (width <= widths[rows])
        found[rows[fits], 0], found[rows[fits], 1] = height[fits], width[fits]
        rows = rows[~fits]
        if not len(rows):
            return found
    height, width = heights[rows], widths[rows]
    narrow, wide = specification.crop_ratio
    shape = width / height
    # Extreme ratios could round a side of a tiny image to nothing.
    cut_height = np.maximum(np.rint(width / narrow), 1)
    cut_width = np.maximum(np.rint(height * wide), 1)
    found[rows, 0] = -np.where(shape < narrow, cut_height, height)
    found[rows, 1] = -np.where(shape > wide, cut_width, width)
    return found


def reduction(found: np.ndarray, shapes: Sequence[tuple[int, ...]], margin: float = MARGIN) -> int:
    """By how much an image's sides may be divided in decoding: the largest of `REDUCTIONS` that
    leaves every window `margin` times as high and as wide as its view, else 1. So nothing is
    enlarged that would not be otherwise.

    Args:
        found: (V, 4) windows of one image, as `windows` returns them, one per view.
        shapes: (height, width, ...) in pixels of the views.
        margin: as described; at least 1.
    """
    wanted = np.array([shape[:2] for shape in shapes])
    for divisor in REDUCTIONS:
        if (reduced(found, divisor)[:, 2:] >= margin * wanted).all():
            return divisor
    return 1


def reduced(found: np.ndarray, divisor: int) -> np.ndarray:
    """(V, 4) int32 windows of an image in the coordinates of one whose sides are divided by
    `divisor` and rounded up: their edges are moved by up to half a pixel of the latter."""
    if divisor == 1:
        return found
    first, end = found[:, :2], found[:, :2] + found[:, 2:]
    first, end = ((2 * edge + divisor) // (2 * divisor) for edge in (first, end))
    return np.concatenate((first, end - first), 1).astype(np.int32)
