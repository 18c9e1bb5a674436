"""Photometric part of a view, after the crop: the contract, and plain torch.

One row of `PARAMETERS` per image, in this order of operations:

    mirror -> brightness, contrast, saturation, hue (in the row's own order) -> gray -> blur
    -> solarize -> erase -> (value / 255 - mean) / std -> the encoder's type

The arithmetic is torchvision's on float images, without rounding in between: contrast is about the
image's mean gray at that point of the order, hue turns the angle of HSV, each of the four clamps to
[0, 1]. Source of the operations: Grill et al., *Bootstrap Your Own Latent* (NeurIPS 2020), appendix
B, which Barlow Twins takes over.
"""

from __future__ import annotations

import itertools
import math
from enum import IntEnum

import torch
from torch import Tensor


class Parameter(IntEnum):
    """Columns of a row; all float32."""

    FLIP = 0  # 1: mirrored left to right
    ORDER = 1  # index into `ORDERS`; -1: no jitter, the four factors are not looked at
    BRIGHTNESS = 2  # factor
    CONTRAST = 3  # factor
    SATURATION = 4  # factor
    HUE = 5  # turns, -0.5 to 0.5
    GRAY = 6  # 1: all channels become the gray value
    BLUR_SIGMA = 7  # pixels, at most `LARGEST_SIGMA`; 0: none
    SOLARIZE = 8  # levels: values from here on are inverted; above 255: none
    ERASE_TOP = 9  # pixels, half-open; an empty rectangle: none
    ERASE_LEFT = 10
    ERASE_BOTTOM = 11
    ERASE_RIGHT = 12


PARAMETERS = len(Parameter)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision has them

LARGEST_SIGMA = 8.0


def blur_radius(sigma: float) -> int:
    """Pixels on each side that a blur takes in: what lies beyond 4 sigma is less than 1e-4."""
    return math.ceil(4 * sigma)


def check_arguments(
    crops: Tensor,
    parameters: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    place: str | None = None,
) -> None:
    """Checks the arguments of `photometric`, except for their values.

    place: what to call the device of `crops`; None for its own name.

    Raises:
        TypeError: crops that are not uint8, another dtype than float32, bfloat16 and float16, or
            parameters, mean or std that are not floating point.
        ValueError: a shape or device that does not fit.
    """
    if crops.dtype != torch.uint8:
        raise TypeError(f"crops must be uint8, got {crops.dtype}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    if crops.dim() != 4 or crops.shape[3] not in (1, 3):
        raise ValueError(f"crops must be (B, H, W, 1 or 3), got {tuple(crops.shape)}")
    wanted = {
        "parameters": (parameters, (crops.shape[0], PARAMETERS)),
        "mean": (mean, (crops.shape[3],)),
        "std": (std, (crops.shape[3],)),
    }
    for name, (x, shape) in wanted.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
        if tuple(x.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} for crops of {tuple(crops.shape)}, got {tuple(x.shape)}"
            )
        if x.device != crops.device:
            raise ValueError(f"{name} must be on {place or crops.device}, is on {x.device}")


def photometric(
    crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Finishes cropped views: an encoder's input from bytes.

    Args:
        crops: (B, H, W, C) uint8, C = 1 or 3. With one channel saturation, hue and gray change
            nothing, and gray is the value itself.
        parameters: (B, PARAMETERS) float32, on the device of `crops`.
        mean, std: (C,) float32, where white is 1.
        dtype: float32, bfloat16 or float16.

    Returns:
        (B, C, H, W) of `dtype`, channels-last. Borders are mirrored in the blur, without repeating
        the outermost pixel; erased pixels are black before `mean` and `std`.
    """
    x = crops.permute(0, 3, 1, 2).to(torch.float32) / 255
    p = parameters.to(torch.float32)
    flip = p[:, Parameter.FLIP] > 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    for index in p[:, Parameter.ORDER].unique().tolist():
        if index < 0:
            continue
        rows = (p[:, Parameter.ORDER] == index).nonzero().flatten()
        y, q = x[rows], p[rows]
        for operation in ORDERS[int(index)]:
            y = _JITTER[operation](y, q)
        x[rows] = y
    gray = p[:, Parameter.GRAY] > 0.5
    if x.shape[1] == 3:
        x = torch.where(gray[:, None, None, None], _gray(x), x)
    for row in (p[:, Parameter.BLUR_SIGMA] > 0).nonzero().flatten().tolist():
        x[row] = _blur(x[row], float(p[row, Parameter.BLUR_SIGMA]))
    threshold = _column(p, Parameter.SOLARIZE) / 255
    x = torch.where(x >= threshold, 1 - x, x)
    x = _erase(x, p)
    x = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _column(p: Tensor, which: Parameter) -> Tensor:
    return p[:, which].view(-1, 1, 1, 1)


def _gray(x: Tensor) -> Tensor:
    """(B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    return (GRAY_WEIGHTS[0] * r + GRAY_WEIGHTS[1] * g + GRAY_WEIGHTS[2] * b)[:, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _brightness(x: Tensor, p: Tensor) -> Tensor:
    return (x * _column(p, Parameter.BRIGHTNESS)).clamp(0, 1)


def _contrast(x: Tensor, p: Tensor) -> Tensor:
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    return _blend(x, mean, _column(p, Parameter.CONTRAST))


def _saturation(x: Tensor, p: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else _blend(x, _gray(x), _column(p, Parameter.SATURATION))


def _hue(x: Tensor, p: Tensor) -> Tensor:
    """Turns the hue of HSV (Smith 1978) by a part of the circle."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        value == r,
        (g - b) / divisor,
        torch.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor),
    )
    turned = sector / 6 + p[:, Parameter.HUE].view(-1, 1, 1)
    turned = 6 * (turned - turned.floor())

    def channel(offset: int) -> Tensor:
        k = (offset + turned) % 6
        return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack((channel(5), channel(3), channel(1)), 1)


_JITTER = {BRIGHTNESS: _brightness, CONTRAST: _contrast, SATURATION: _saturation, HUE: _hue}


def blur_weights(sigma: float) -> Tensor:
    """(2 r + 1,) float32 weights of a Gaussian, r = `blur_radius`, that sum to 1."""
    radius = blur_radius(sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")
    weights = torch.exp(-0.5 * (at / sigma).square())
    return weights / weights.sum()


def _blur(x: Tensor, sigma: float) -> Tensor:
    weights = blur_weights(sigma).to(x.device)
    for dimension in (-1, -2):
        x = _mirrored(x, blur_radius(sigma), dimension)
        x = x.unfold(dimension, len(weights), 1) @ weights
    return x


def _mirrored(x: Tensor, radius: int, dimension: int) -> Tensor:
    """Padded by mirror images of any extent: -1, -2, ... are 1, 2, ..., back and forth."""
    size = x.shape[dimension]
    at = torch.arange(-radius, size + radius, device=x.device)
    period = max(2 * size - 2, 1)
    at = at.remainder(period)
    return x.index_select(dimension, torch.where(at < size, at, period - at))


def _erase(x: Tensor, p: Tensor) -> Tensor:
    row = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1)
    column = torch.arange(x.shape[3], device=x.device).view(1, 1, 1, -1)
    inside = (row >= _column(p, Parameter.ERASE_TOP)) & (row < _column(p, Parameter.ERASE_BOTTOM))
    inside = inside & (column >= _column(p, Parameter.ERASE_LEFT))
    inside = inside & (column < _column(p, Parameter.ERASE_RIGHT))
    return x.masked_fill(inside, 0)
