"""A window of an image, resized to bytes as Pillow does: the contract, and plain torch.

A pixel of the result is the filter's weighted mean of the pixels about it. A pass sums along one
direction and rounds to bytes; there are two of them. The filter is stretched by the factor that the
direction shrinks by (antialiasing), and cut at the window's border, where its weights still sum to
one. Weights are whole numbers of 2**-22: halves are rounded away from zero, and sums upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHT_BITS = 22


def columns_first(height: Any, width: Any, size: tuple[int, int]) -> Any:
    """Whether the pass across rows comes first, as in Pillow 13: where the height shrinks by more
    than twice the pixels that the width does. Pillow before 13 always sums along rows first.

    height, width: of windows, integers or arrays of them.
    """
    lost = height - size[0]
    return (lost > 0) & (lost > 2 * (width - size[1]))


def weights(lengths: Tensor, size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Weights that resize lines of pixels.

    Args:
        lengths: (U,) pixels of the lines, integers on the CPU.
        size: pixels of the results.
        interpolation: 'bicubic' or 'bilinear'.

    Returns:
        (first, fixed): (U, size) int64, the first pixel that each pixel of the result is summed
        from, and (U, size, T) int64, the weights of that one and of the next ones, times
        2**WEIGHT_BITS. Zero beyond the end of a line.
    """
    radius, kernel = FILTERS[interpolation]
    lengths = lengths.double()[:, None]
    scale = lengths / size  # pixels of the line per pixel of the result
    stretch = scale.clamp(min=1)
    support = radius * stretch
    centre = (_range(size) + 0.5) * scale
    first = (centre - support + 0.5).trunc().clamp(min=0)
    end = (centre + support + 0.5).trunc().minimum(lengths)
    taps = first[..., None] + _range(int((end - first).max()))
    found = kernel((taps - centre[..., None] + 0.5) * (1 / stretch)[..., None])
    found = torch.where(taps < end[..., None], found, 0.0)
    # One after the other: the last bit of a sum depends on the order.
    total = torch.zeros_like(centre)
    for weight in found.unbind(-1):
        total += weight
    found /= total[..., None]
    halves = torch.where(found < 0, -0.5, 0.5)
    return first.long(), (found * 2**WEIGHT_BITS + halves).long()


def crop_resize(image: Tensor, window: Sequence[int], interpolation: str, out: Tensor) -> None:
    """Resizes a window of an image, or of each image of a batch.

    Args:
        image: (H, W, C) uint8, C = 1 or 3, or (B, H, W, C).
        window: top, left, height, width, within the image; of a batch those of the first image,
            then those of the second one, 4 B numbers.
        interpolation: 'bicubic' (a = -1/2) or 'bilinear', antialiased.
        out: (h, w, C) uint8, or (B, h, w, C): is overwritten.
    """
    if image.dim() == 4:
        for row, (one, to) in enumerate(zip(image, out, strict=True)):
            crop_resize(one, window[4 * row : 4 * row + 4], interpolation, to)
        return
    top, left, height, width = window
    pixels = image[top : top + height, left : left + width].long()
    size = (out.shape[0], out.shape[1])
    for direction in (0, 1) if columns_first(height, width, size) else (1, 0):
        pixels = _resized(pixels.movedim(direction, 0), size[direction], interpolation)
        pixels = pixels.movedim(0, direction)
    out.copy_(pixels)


def _resized(pixels: Tensor, size: int, interpolation: str) -> Tensor:
    """Along the first direction."""
    length = torch.tensor([len(pixels)], device="cpu")
    first, fixed = (x[0].to(pixels.device) for x in weights(length, size, interpolation))
    sums = pixels.new_full((size, *pixels.shape[1:]), 2 ** (WEIGHT_BITS - 1))
    for tap in range(fixed.shape[1]):
        at = (first + tap).clamp(max=len(pixels) - 1)
        sums += fixed[:, tap].view(-1, *[1] * (pixels.dim() - 1)) * pixels[at]
    return (sums >> WEIGHT_BITS).clamp(0, 255)


def _range(end: int) -> Tensor:
    return torch.arange(end, dtype=torch.float64, device="cpu")


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution (1981) with a = -1/2."""
    a = -0.5
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


# name -> (radius in pixels of the coarser grid, weights at a distance)
FILTERS = {"bicubic": (2.0, _cubic), "bilinear": (1.0, _triangle)}
