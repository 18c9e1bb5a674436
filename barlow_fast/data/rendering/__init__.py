"""Cropped views as bytes: batches of sample numbers in, uint8 crops out.

A renderer is built for one source and one `Views`, and does everything that happens in the
coordinates of the source image: read, decode once, cut each view's window out of it, resize. What
comes after, in the coordinates of the view, is the photometric kernel's.

* `arrays`: images in memory, a batch at a time, in torch
* `threads`: files, image by image, in threads of this process; any platform
* `dali`: files, decoded by NVIDIA DALI, on the CPU or a GPU; Linux

All three draw the same windows, so they show the same crops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import kernels
from ..faults import BadImage
from ..sources import ArraySource, Source

if TYPE_CHECKING:
    from ..presets import Views

__all__ = [
    "Crops",
    "Renderer",
    "check_room",
    "crop_shapes",
    "less",
    "native_crop",
    "without",
]


class Crops(NamedTuple):
    """One batch, without the photometric part."""

    # One per view: (B, H, W, C) uint8, on the renderer's device; of a renderer that finishes views,
    # these.
    crops: list[Tensor]
    samples: np.ndarray  # (B,) int64: those that could be read, in the order of submission
    bad: list[BadImage]  # those that could not, and suspect ones, which are among `samples`


class Renderer(Protocol):
    """What every rendering offers. Not for several threads at once."""

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        """Starts a batch. Several may be under way; how many is the renderer's `prefetch`.

        Args:
            epoch: whose views are drawn.
            samples: (B,) int64 sample numbers, B from 1 to the renderer's batch size.

        Raises:
            RuntimeError: too many under way, or the renderer is closed.
        """

    def receive(self) -> Crops:
        """The oldest batch under way, waiting for it if need be.

        Its tensors may be overwritten as soon as `receive` is called again.

        Raises:
            RuntimeError: nothing is under way, a thread failed or does not answer, or the renderer
                is closed.
        """

    def close(self) -> None:
        """Ends what the renderer runs in the background and gives up what is under way. May be
        called again."""


def check_room(closed: bool, under_way: int, prefetch: int) -> None:
    """Refuse a batch that a renderer does not take.

    Raises:
        RuntimeError: as `Renderer.submit`.
    """
    if closed:
        raise RuntimeError("the renderer is closed")
    if under_way == prefetch:
        raise RuntimeError(f"{prefetch} batches are under way, no more are taken")


def crop_shapes(source: Source, views: Views) -> list[tuple[int, int, int]]:
    """(H, W, C) of each view's crops, for renderers that cut upright windows.

    Raises:
        ValueError: a view without a size where the images have no common one, or one that is
            turned, sheared or zoomed out.
    """
    shapes = []
    for number, specification in enumerate(views.views):
        if specification.warped:
            raise ValueError(
                f"view {number} of {views.name!r} turns, shears or zooms out: only images in "
                "memory are rendered so (loader='arrays')"
            )
        shape = specification.shape
        if shape is None and isinstance(source, ArraySource):
            shape = tuple(source.images.shape[1:3])
        if shape is None:
            raise ValueError(
                f"view {number} of {views.name!r} has no size, and the images of {source.name} "
                "need not be of one size: say size=..."
            )
        shapes.append((*shape, len(views.mean)))
    return shapes


@functools.cache
def native_crop() -> Callable[..., None] | None:
    """`crop_resize` of the native kernels, or None where they cannot run."""
    if kernels.why_unusable("cpu", torch.device("cpu")) is not None:
        return None
    return kernels.load("cpu").crop_resize


def without(crops: Crops, bad: list[tuple[int, BadImage]]) -> Crops:
    """The batch with the images found in its rows added to `Crops.bad`, and less the rows of those
    that are not suspect, which were not rendered."""
    if not bad:
        return crops
    crops = crops._replace(bad=crops.bad + [image for _, image in bad])
    return less(crops, [row for row, image in bad if not image.suspect])


def less(crops: Crops, rows: list[int]) -> Crops:
    """The batch without some of its rows."""
    if not rows:
        return crops
    good = np.delete(np.arange(len(crops.samples)), rows)
    rows = torch.from_numpy(good)
    return Crops(
        [view.index_select(0, rows.to(view.device)) for view in crops.crops],
        crops.samples[good],
        crops.bad,
    )
