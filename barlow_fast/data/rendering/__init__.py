"""Cropped views as bytes: batches of sample numbers in, uint8 crops out.

A renderer is built for one source and one `Views`, and does everything that happens in the
coordinates of the source image: read, decode once, cut each view's window out of it, resize. What
comes after, in the coordinates of the view, is the photometric kernel's.

* `arrays`: images in memory, a batch at a time, in torch
* `pil`: files, decoded by Pillow, in this process or in worker processes; any platform
* `dali`: files, decoded by NVIDIA DALI, on the CPU or a GPU; Linux

All three draw the same windows, so they show the same crops.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..faults import BadImage

__all__ = ["Crops", "Renderer"]


class Crops(NamedTuple):
    """One batch, without the photometric part."""

    crops: list[Tensor]  # one per view: (B, H, W, C) uint8, on the renderer's device
    samples: np.ndarray  # (B,) int64: those that could be read, in the order of submission
    bad: list[BadImage]  # those that could not


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
            RuntimeError: nothing is under way, a worker process died, or the renderer is closed.
        """

    def close(self) -> None:
        """Ends what the renderer runs in the background and gives up what is under way. May be
        called again."""
