"""Crops of images that Pillow decodes, in this process: torchvision's `RandomResizedCrop`, to the
bit.

The window is cut out and resized by the native kernels, and by Pillow where they cannot run: with
the same bits from Pillow 13 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..decoding import pillow
from ..faults import BadImage, BadImageError
from ..sources import Source
from ..views import draw
from ..windows import windows
from . import CallingProcess, Crops, crop_shapes, native_crop, without

if TYPE_CHECKING:
    from PIL import Image

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
        (row, what is wrong) of each image that could not be read; its rows are left as they were.
    """
    specifications = views.views
    drawn = [draw(s, seed, epoch, samples, number) for number, s in enumerate(specifications)]
    resize = _by_pillow if native_crop() is None else _by_kernel
    bad = []
    for row, sample in enumerate(samples.tolist()):
        try:
            image = source.image(sample)
        except BadImageError as error:
            bad.append((row, error.image))
            continue
        mode = "L" if out[0].shape[-1] == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        found = [
            # Row by row: the size is known once the image is decoded, and the windows of a whole
            # batch would need every header to be read ahead.
            windows(parameters[row : row + 1], view, image.height, image.width)[0].tolist()
            for view, parameters in zip(specifications, drawn, strict=True)
        ]
        resize(image, found, [view.interpolation for view in specifications], [o[row] for o in out])
    return bad


def _by_kernel(
    image: Image.Image, found: list[list[int]], interpolations: list[str], out: list[np.ndarray]
) -> None:
    pixels = torch.from_numpy(np.array(image).reshape(image.height, image.width, -1))
    for window, interpolation, crop in zip(found, interpolations, out, strict=True):
        native_crop()(pixels, window, interpolation, torch.from_numpy(crop))


def _by_pillow(
    image: Image.Image, found: list[list[int]], interpolations: list[str], out: list[np.ndarray]
) -> None:
    """Cuts first and then resizes. `Image.resize(box=...)` would do both at once, but its filter
    reaches over the window's border into the rest of the image."""
    resampling = pillow().Resampling
    filters = {"bicubic": resampling.BICUBIC, "bilinear": resampling.BILINEAR}
    for (top, left, height, width), interpolation, crop in zip(
        found, interpolations, out, strict=True
    ):
        view = image
        if (height, width) != (image.height, image.width):
            view = view.crop((left, top, left + width, top + height))
        if (view.height, view.width) != crop.shape[:2]:
            view = view.resize(crop.shape[1::-1], filters[interpolation])
        crop[:] = np.asarray(view).reshape(crop.shape)


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
