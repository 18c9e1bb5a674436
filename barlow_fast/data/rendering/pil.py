"""Crops by Pillow, in this process: torchvision's `RandomResizedCrop`, to the bit.

The window is cut out first and then resized. `Image.resize(box=...)` would do both at once, but its
filter reaches over the window's border into the rest of the image, and the outermost pixels differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..decoding import picture, pillow
from ..faults import BadImage, BadImageError
from ..sources import Source
from ..views import draw
from ..windows import reduced, reduction, windows
from . import CallingProcess, Crops, crop_shapes, without

if TYPE_CHECKING:
    from ..presets import Views


def crop_rows(
    source: Source,
    views: Views,
    seed: int,
    epoch: int,
    samples: np.ndarray,
    out: list[np.ndarray],
) -> list[tuple[int, BadImage]]:
    """Renders samples into rows: each image is read and decoded once for all of its views.

    Args:
        source: of the images.
        views: what is drawn.
        seed, epoch: of the parameters.
        samples: (B,) sample numbers.
        out: one (B, H, W, C) uint8 array per view, to be filled.

    Returns:
        (row, what is wrong) of each image that could not be read, whose rows are left as they were,
        and of each suspect one.
    """
    specifications = views.views
    drawn = [draw(s, seed, epoch, samples, number) for number, s in enumerate(specifications)]
    resampling = pillow().Resampling
    filters = {"bicubic": resampling.BICUBIC, "bilinear": resampling.BILINEAR}
    shapes = [rows.shape[1:] for rows in out]
    bad = []
    for row, sample in enumerate(samples.tolist()):

        def cut(height: int, width: int, row: int = row) -> np.ndarray:
            """(V, 4) windows of the views. Row by row: the size is known once a header is read, and
            the windows of a whole batch would need every header to be read ahead."""
            found = [
                windows(parameters[row : row + 1], specification, height, width)
                for specification, parameters in zip(specifications, drawn, strict=True)
            ]
            return np.concatenate(found)

        def reduce(height: int, width: int) -> int:
            return reduction(cut(height, width), shapes)

        try:
            decoded = source.pixels(
                sample, out[0].shape[-1], reduce if views.reduced_decoding else None
            )
        except BadImageError as error:
            bad.append((row, error.image))
            continue
        if decoded.warning:
            identity = source.identity(sample)
            bad.append((row, BadImage(sample, identity, decoded.warning, suspect=True)))
        image = picture(decoded.pixels)
        places = reduced(cut(decoded.height, decoded.width), decoded.reduction).tolist()
        for specification, rows, place in zip(specifications, out, places, strict=True):
            top, left, height, width = place
            view = image
            if (height, width) != (image.height, image.width):
                view = view.crop((left, top, left + width, top + height))
            size = rows.shape[1:3]
            if (view.height, view.width) != size:
                view = view.resize(size[::-1], filters[specification.interpolation])
            rows[row] = np.asarray(view).reshape(rows.shape[1:])
    return bad


class PilRenderer(CallingProcess):
    """Renders with Pillow.

    Args:
        source: any; arrays are taken image by image.
        views: what is drawn; only windows that are upright (`windows`).
        seed: of the parameters.
        prefetch: how many batches may be under way.

    Raises:
        ValueError: views that need another renderer.
        ModuleNotFoundError: Pillow is missing.
    """

    def __init__(self, source: Source, views: Views, *, seed: int = 0, prefetch: int = 2) -> None:
        super().__init__(prefetch)
        pillow()
        self._source, self._views, self._seed = source, views, seed
        self._shapes = crop_shapes(source, views)

    def render(self, epoch: int, samples: np.ndarray) -> Crops:
        crops = [
            torch.empty(len(samples), *shape, dtype=torch.uint8, device="cpu")
            for shape in self._shapes
        ]
        bad = crop_rows(
            self._source,
            self._views,
            self._seed,
            epoch,
            samples,
            [view.numpy() for view in crops],
        )
        return without(Crops(crops, samples, []), bad)
