"""Crops of images that come one by one: torchvision's `RandomResizedCrop`, to the bit.

The window is cut out first and then resized, as if nothing were around it. `Image.resize(box=...)`
would do both at once, but its filter reaches over the window's border into the rest of the image,
and the outermost pixels differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import kernels
from ..decoding import picture, pillow
from ..faults import BadImage, BadImageError
from ..sources import Source
from ..views import ViewParameters, ViewSpecification, draw
from ..windows import WindowOfEach

if TYPE_CHECKING:
    from ..presets import Views

CropResize = Callable[[Tensor, tuple[int, int, int, int], str, Tensor], None]


class DrawnView(NamedTuple):
    """What one view shows of each sample of a batch."""

    specification: ViewSpecification
    parameters: ViewParameters
    windows: WindowOfEach


def draw_views(views: Views, seed: int, epoch: int, samples: np.ndarray) -> list[DrawnView]:
    """The parameters of all views of a batch; arguments as for `draw`."""
    drawn = []
    for number, view in enumerate(views.views):
        parameters = draw(view, seed, epoch, samples, number)
        drawn.append(DrawnView(view, parameters, WindowOfEach(parameters, view)))
    return drawn


def crop_rows(
    source: Source, samples: np.ndarray, rows: range, views: list[DrawnView], out: list[Tensor]
) -> list[tuple[int, BadImage]]:
    """Renders rows of a batch: each image is read and decoded once for all of its views.

    Args:
        source: of the images.
        samples: (B,) sample numbers of the batch.
        rows: those that are rendered.
        views: of the batch.
        out: one (len(rows), H, W, C) uint8 tensor per view, to be filled.

    Returns:
        (row, what is wrong) of each image that could not be read, whose part of `out` is left as it
        was, and of each suspect one.
    """
    channels = out[0].shape[-1]
    crop_resize = resizer()
    places = [(view.windows, view.specification.interpolation) for view in views]
    bad = []
    for row, *parts in zip(rows, *out, strict=True):
        sample = int(samples[row])
        try:
            decoded = source.pixels(sample, channels)
        except BadImageError as error:
            bad.append((row, error.image))
            continue
        if decoded.warning:
            identity = source.identity(sample)
            bad.append((row, BadImage(sample, identity, decoded.warning, suspect=True)))
        image = torch.from_numpy(decoded.pixels)
        for (windows, interpolation), part in zip(places, parts, strict=True):
            window = windows.find(row, decoded.height, decoded.width)
            crop_resize(image, window, interpolation, part)
    return bad


@functools.cache
def resizer() -> CropResize:
    """`crop_resize` of the native kernels, or the same by Pillow where they are not built."""
    if kernels.why_unusable("cpu", torch.device("cpu")) is None:
        return kernels.load("cpu").crop_resize
    return by_pillow


def by_pillow(
    image: Tensor, window: tuple[int, int, int, int], interpolation: str, out: Tensor
) -> None:
    """`crop_resize` of the kernels, by Pillow."""
    top, left, height, width = window
    view = picture(image.numpy()[top : top + height, left : left + width])
    size = (out.shape[1], out.shape[0])
    if view.size != size:
        view = view.resize(size, getattr(pillow().Resampling, interpolation.upper()))
    out.copy_(torch.from_numpy(np.array(view)).view(out.shape))
