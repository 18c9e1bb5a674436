"""Crops of images in memory, a batch at a time, on any device.

On the CPU the native kernels crop. Elsewhere, or without them, torch does: PIL resizes with two
passes of weighted sums and rounds to bytes after each, and a pass is one batched matrix product.
Every sample has a (pixels of the view, pixels of the image) matrix per direction, which is zero
outside its window.

PIL's weights are whole numbers of 2**-22, too fine for float32 to add up without rounding. They are
split into two parts whose sums with bytes are exact. So a crop is PIL's to the bit, and does not
depend on the order in which a machine's matrix product adds, hence not on the batch either.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...kernels import resizing
from ...kernels.resizing import columns_first
from ..sources import ArraySource
from ..views import ViewParameters, ViewSpecification, draw
from ..windows import windows
from . import Crops, check_room, native_crop

if TYPE_CHECKING:
    from ..presets import Views

# Matrices of all windows of an extent are kept when they take no more bytes than this, and made for
# each batch otherwise.
KEPT_BYTES = 2**24
# Bytes that a part of a batch takes in each step: small enough for the caches of a few cores.
PART_BYTES = 2**20

# A weight is whole + rest / SPLIT, both multiples of 1 / SPLIT and rest in [0, 1): 22 bits in two
# parts of 11. Sums of up to 32 rests times a byte need no more than float32's 24.
SPLIT = 2**11


def crop(images: Tensor, places: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    """Windows of images, resized as PIL resizes an image that has been cropped first.

    The order of the two passes is that of Pillow 13, whichever is installed: rows first, except
    where the height shrinks by more than twice the pixels that the width does. Pillow before 13
    always has rows first, which differs by rounding, and by clipping at sharp edges.

    Args:
        images: (B, H, W, C) uint8, any strides.
        places: (B, 4) integers: top, left, height, width, within the images (`windows`).
        size: (height, width) of the crops.
        interpolation: 'bicubic' (a = -1/2) or 'bilinear', antialiased.

    Returns:
        (B, *size, C) uint8 on the device of `images`. Equal to PIL's; where matrix products crop
        and a side shrinks by a factor of eight or more within one level.
    """
    kernel = native_crop() if images.is_cpu else None
    if kernel is not None:
        out = images.new_empty((len(images), *size, images.shape[-1]))
        kernel(_with_whole_rows(images), places.ravel().tolist(), interpolation, out)
        return out
    return crop_by_products(images, places, size, interpolation)


def _with_whole_rows(images: Tensor) -> Tensor:
    """The images themselves where the pixels of a row are contiguous, else a copy."""
    return images if images[:1, :1].is_contiguous() else images.contiguous()


def crop_by_products(
    images: Tensor, places: np.ndarray, size: tuple[int, int], interpolation: str
) -> Tensor:
    """`crop` by matrix products, on any device."""
    turns = columns_first(*places[:, 2:].T, size)
    if not turns.any():
        return _crop(images, places, size, interpolation)
    out = images.new_empty((len(images), *size, images.shape[-1]))
    for turned in (False, True):
        rows = np.flatnonzero(turns == turned)
        at = torch.from_numpy(rows).to(images.device)
        group, where = images.index_select(0, at), places[rows]
        if turned:
            group, where = group.transpose(1, 2), where[:, [1, 0, 3, 2]]
            out[at] = _crop(group, where, size[::-1], interpolation).transpose(1, 2)
        else:
            out[at] = _crop(group, where, size, interpolation)
    return out


def _crop(images: Tensor, places: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    """The same with rows first."""
    count, height, width, channels = images.shape
    tall, wide = size
    out = images.new_empty((count, tall, wide, channels))
    sample = 8 * channels * max(height, tall) * max(width, wide)
    step = min(max(1, PART_BYTES // sample), max(count, 1))
    # The same memory for all parts: an allocator may give it back to the system in between, and
    # fetching it page by page again takes as long as the arithmetic.
    scratch = tuple(
        torch.empty(step, *shape, dtype=torch.float32, device=images.device)
        for shape in (
            (channels, height, width),
            (channels, height, 2, wide),
            (height, channels, wide),
            (2, tall, channels, wide),
            (tall, channels, wide),
        )
    )
    # Whatever precision the encoder is run in, pixels need float32.
    with torch.autocast(images.device.type, enabled=False):
        for first in range(0, count, step):
            part = slice(first, min(first + step, count))
            top, left, heights, widths = places[part].T
            down = _matrices(top, heights, tall, height, interpolation, images.device)
            across = _matrices(left, widths, wide, width, interpolation, images.device)
            _resize(images[part], down, across, out[part], scratch)
    return out


def warp(images: Tensor, parameters: ViewParameters, size: tuple[int, int]) -> Tensor:
    """Turned, sheared and zoomed views, interpolated bilinearly; black outside the image.

    Shrinking is not antialiased: this is for small images that stay about as large as they are.

    Args:
        images: (B, H, W, C) uint8, any strides.
        parameters: B rows; window, rotation and shear are looked at.
        size: (height, width) of the views.

    Returns:
        (B, *size, C) uint8 on the device of `images`.
    """
    count, height, width, _ = images.shape
    # input = centre + rotation . shear . window . output, with coordinates that run from -1 to 1
    # over the image; angles are taken in pixels, hence the aspect.
    aspect = height / width
    cosine, sine = np.cos(parameters.rotation), np.sin(parameters.rotation)
    across, down = parameters.width, parameters.height
    theta = np.empty((2, 3, count, 1, 1), dtype=np.float32)
    theta[0, 0, :, 0, 0] = cosine * across
    theta[0, 1, :, 0, 0] = (cosine * parameters.shear - sine) * down * aspect
    theta[0, 2, :, 0, 0] = 2 * parameters.left + across - 1
    theta[1, 0, :, 0, 0] = sine * across / aspect
    theta[1, 1, :, 0, 0] = (cosine + sine * parameters.shear) * down
    theta[1, 2, :, 0, 0] = 2 * parameters.top + down - 1
    y, x = (
        ((2 * torch.arange(n, dtype=torch.float32, device="cpu") + 1) / n - 1).to(images.device)
        for n in size
    )
    # Element by element, where a matrix product's rounding could depend on the batch.
    grid = torch.stack(
        [
            per_x * x + per_y * y[:, None] + shift
            for per_x, per_y, shift in torch.from_numpy(theta).to(images.device)
        ],
        -1,
    )
    planes = images.permute(0, 3, 1, 2).to(torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        planes = functional.grid_sample(planes, grid, mode="bilinear", align_corners=False)
    levels = planes.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def crops_of(
    images: Tensor, parameters: ViewParameters, specification: ViewSpecification
) -> Tensor:
    """What one view shows of each image, whatever its specification: warped or cropped.

    Args:
        images: (B, H, W, C) uint8, any strides.
        parameters: B rows, drawn from `specification`.
        specification: of the view; without a size the views are as large as the images.

    Returns:
        (B, h, w, C) uint8 on the device of `images`.

    Raises:
        ValueError: images of another dtype or shape, another number of parameters.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"images must be (B, H, W, C) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    if len(parameters) != len(images):
        raise ValueError(f"{len(images)} images need as many parameters, got {len(parameters)}")
    shape = tuple(images.shape[1:3])
    size = specification.shape or shape
    if specification.warped:
        return warp(images, parameters, size)
    if not specification.crops and size == shape:
        return images.contiguous()
    places = windows(parameters, specification, *shape)
    return crop(images, places, size, specification.interpolation)


class ArrayRenderer:
    """Renders images in memory, when a batch is received.

    Args:
        source: the images.
        views: what is drawn; the number of its channels may differ from that of the images, which
            are converted as PIL does.
        seed, prefetch: as for `ThreadRenderer`.
        device: where the crops are computed; batches are sent there, the images stay.
    """

    def __init__(
        self,
        source: ArraySource,
        views: Views,
        *,
        seed: int = 0,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        self._prefetch = prefetch
        self._waiting: deque[tuple[int, np.ndarray]] = deque()
        self._closed = False
        self._images, self._views, self._seed = source.images, views, seed
        self._device = torch.device(device)

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        check_room(self._closed, len(self._waiting), self._prefetch)
        self._waiting.append((epoch, samples))

    def receive(self) -> Crops:
        if not self._waiting:
            raise RuntimeError("no batch is under way")
        return self._render(*self._waiting.popleft())

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()

    def _render(self, epoch: int, samples: np.ndarray) -> Crops:
        images = self._images.index_select(0, torch.from_numpy(np.asarray(samples, np.int64)))
        images = with_channels(images.to(self._device), len(self._views.mean))
        crops = [
            crops_of(images, draw(view, self._seed, epoch, samples, number), view)
            for number, view in enumerate(self._views.views)
        ]
        return Crops(crops, samples, [])


def with_channels(images: Tensor, channels: int) -> Tensor:
    """(B, H, W, C) uint8 with one or three channels: gray values for each of
    three, or the luma of ITU-R 601-2 in 16-bit fixed point, as PIL has it."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:3], 3)
    red, green, blue = images.to(torch.int32).unbind(-1)
    luma = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return (luma >> 16).to(torch.uint8)[..., None]


def _resize(
    images: Tensor, down: Tensor, across: Tensor, out: Tensor, scratch: tuple[Tensor, ...]
) -> None:
    """out = bytes(down @ bytes(images @ across^T)), channel by channel.

    images (B, H, W, C) uint8; down (B, H, 2 h), across (B, W, 2 w) as `_matrices` makes them; out
    (B, h, w, C) uint8; scratch: float32, as `_crop` lays it out.
    """
    count = len(images)
    planes, row_sums, rows, column_sums, columns = (piece[:count] for piece in scratch)
    planes.copy_(images.permute(0, 3, 1, 2))
    torch.bmm(planes.flatten(1, 2), across, out=row_sums.view(count, -1, across.shape[2]))
    _round(row_sums, 3, rows.transpose(1, 2))
    rows.floor_()
    torch.bmm(down.mT, rows.flatten(2), out=column_sums.view(count, down.shape[2], -1))
    _round(column_sums, 1, columns)
    # As bytes before channels come last: four times less to move in small steps.
    torch.stack(columns.to(torch.uint8).unbind(2), -1, out=out)


def _round(sums: Tensor, dimension: int, out: Tensor) -> None:
    """Adds up both sums along a dimension; `out` then becomes bytes by leaving out its fractions,
    with halves rounded upwards."""
    whole, rest = sums.unbind(dimension)
    # Exact: the carry from the rests is a whole number, and the total has 11 bits of fraction.
    torch.add(whole, rest.floor_(), alpha=1 / SPLIT, out=out)
    out.add_(0.5).clamp_(0, 255)


def _matrices(
    start: np.ndarray,
    length: np.ndarray,
    size: int,
    extent: int,
    interpolation: str,
    device: torch.device,
) -> Tensor:
    """(B, extent, 2 size) float32 weights that resize windows of one direction: a column per pixel
    of the view for the whole parts, then one for the rests.

    start, length: (B,), in pixels of an image of `extent` pixels.
    """
    if 16 * size * extent * extent <= KEPT_BYTES:
        table, which = _all_lengths(size, extent, interpolation, device), length - 1
    else:
        lengths, which = np.unique(length, return_inverse=True)
        table = torch.from_numpy(_table(lengths, size, extent, interpolation)).to(device)
    # Rows extent - start to 2 extent - start of a window's table hold its weights, in one piece of
    # memory.
    rows, columns = table.shape[1:]
    pieces = table.as_strided((table.shape[0] * rows - extent + 1, extent * columns), (columns, 1))
    at = torch.from_numpy((which * rows + extent - start).astype(np.int64)).to(device)
    return pieces.index_select(0, at).view(-1, extent, columns)


@functools.lru_cache(maxsize=8)
def _all_lengths(size: int, extent: int, interpolation: str, device: torch.device) -> Tensor:
    lengths = np.arange(1, extent + 1)
    return torch.from_numpy(_table(lengths, size, extent, interpolation)).to(device)


def _table(lengths: np.ndarray, size: int, extent: int, interpolation: str) -> np.ndarray:
    """(U, at least 2 extent, 2 size) float32: weights of windows of each length that begin at row
    `extent`; columns as `_matrices` has them."""
    first, weights = (
        x.numpy() for x in resizing.weights(torch.from_numpy(lengths), size, interpolation)
    )
    taps = first[..., None] + np.arange(weights.shape[-1])
    whole = np.floor(weights / SPLIT)
    # Rows for taps beyond the window, which have no weight.
    table = np.zeros((len(lengths), 2 * extent + taps.shape[-1], 2, size), np.float32)
    taps = np.moveaxis(taps, 2, 1) + extent
    for part, values in enumerate((whole / SPLIT, weights / SPLIT - whole)):
        np.put_along_axis(table[:, :, part], taps, np.moveaxis(values, 2, 1), 1)
    return table.reshape(*table.shape[:2], 2 * size)
