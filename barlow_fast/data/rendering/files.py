"""Crops of images that come one by one: torchvision's `RandomResizedCrop`, to the bit.

Windows are cut out and resized by the native kernels, and by Pillow where they cannot run: with the
same bits from Pillow 13 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..decoding import Decoded, picture, pillow
from ..faults import BadImage, BadImageError
from ..sources import Source
from ..views import draw
from ..windows import WindowOfEach, reduced, reduction
from . import native_crop

if TYPE_CHECKING:
    from ..presets import Views


class DrawnViews:
    """What the views show of the samples of a batch.

    Args:
        views: what is drawn.
        seed, epoch: as for `draw`.
        samples: (B,) sample numbers.
        shapes: (H, W, C) of the crops of each view.
    """

    def __init__(
        self,
        views: Views,
        seed: int,
        epoch: int,
        samples: np.ndarray,
        shapes: list[tuple[int, int, int]],
    ) -> None:
        self.samples, self.shapes = samples, shapes
        self.parameters = [
            draw(view, seed, epoch, samples, number) for number, view in enumerate(views.views)
        ]
        self.interpolations = [view.interpolation for view in views.views]
        self.reduced_decoding = views.reduced_decoding
        self._windows = list(map(WindowOfEach, self.parameters, views.views))

    def windows(self, row: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) of each view's window, in an image of height x width
        pixels."""
        return [view.find(row, height, width) for view in self._windows]

    def decoded(self, source: Source, row: int) -> Decoded:
        """The image of a row.

        Raises:
            BadImageError: it cannot be read or decoded.
        """

        def reduce(height: int, width: int) -> int:
            return reduction(np.array(self.windows(row, height, width)), self.shapes)

        sample, channels = int(self.samples[row]), self.shapes[0][2]
        return source.pixels(sample, channels, reduce if self.reduced_decoding else None)


def crop_rows(
    source: Source, drawn: DrawnViews, rows: range, out: list[Tensor]
) -> list[tuple[int, BadImage]]:
    """Renders rows of a batch: each image is read and decoded once for all of its views.

    Args:
        source: of the images.
        drawn: the views of the batch.
        rows: those that are rendered.
        out: one (len(rows), H, W, C) uint8 tensor per view, to be filled.

    Returns:
        (row, what is wrong) of each image that could not be read, whose part of `out` is left as it
        was, and of each suspect one.
    """
    crop_resize = native_crop() or by_pillow
    found = []
    for row, *parts in zip(rows, *out, strict=True):
        try:
            decoded = drawn.decoded(source, row)
        except BadImageError as error:
            found.append((row, error.image))
            continue
        if decoded.warning:
            sample = int(drawn.samples[row])
            found.append((row, decoded.suspect(sample, source.identity(sample))))
        places = drawn.windows(row, decoded.height, decoded.width)
        if decoded.reduction > 1:
            places = reduced(np.array(places), decoded.reduction).tolist()
        pixels = torch.from_numpy(decoded.pixels)
        for place, interpolation, part in zip(places, drawn.interpolations, parts, strict=True):
            crop_resize(pixels, place, interpolation, part)
    return found


def by_pillow(
    image: Tensor, window: tuple[int, int, int, int], interpolation: str, out: Tensor
) -> None:
    """`crop_resize` of the kernels, by Pillow: cuts first and then resizes. `Image.resize(box=...)`
    would do both at once, but its filter reaches over the window's border into the rest of the
    image."""
    top, left, height, width = window
    view = picture(image.numpy()[top : top + height, left : left + width])
    size = (out.shape[1], out.shape[0])
    if view.size != size:
        view = view.resize(size, getattr(pillow().Resampling, interpolation.upper()))
    out.copy_(torch.from_numpy(np.array(view)).view(out.shape))
