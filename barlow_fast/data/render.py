"""Rendering of views in plain torch, for a whole batch at once: the oracle for any faster
rendering."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .views import ViewParameters


def render(
    images: Tensor, parameters: ViewParameters, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Crop, turn, mirror, adjust, blur, solarize and erase, in this order; then (value - mean) /
    std.

    Args:
        images: (B, C, H, W) uint8, any device.
        parameters: B rows, as `draw` returns them.
        mean, std: of the data set, on the scale where white is 1.

    Returns:
        (B, C, H, W) float32 on the device of `images`. Black, the value outside the image, is 0
        before `mean` and `std`.

    Raises:
        ValueError: another dtype or number of dimensions, or a different number of parameters.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"images must be (B, C, H, W) uint8, got {tuple(images.shape)} {images.dtype}"
        )
    if len(parameters) != len(images):
        raise ValueError(f"{len(images)} images need as many parameters, got {len(parameters)}")
    values = images.to(torch.float32) / 255
    values = _warp(values, parameters)
    values = _adjust(values, parameters)
    values = _blur(values, parameters)
    values = _solarize(values, parameters)
    values = _erase(values, parameters)
    return values.sub_(mean).div_(std)


def normalise(images: Tensor, mean: float, std: float) -> Tensor:
    """The images as they are, for evaluation: (B, C, H, W) uint8 -> float32 with `mean` and `std`
    taken out."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device).view(-1, 1, 1, 1)


def _warp(values: Tensor, parameters: ViewParameters) -> Tensor:
    height, width = values.shape[-2:]
    # input = centre + rotation . shear . window . flip . output, with coordinates that run from -1
    # to 1 over the image; angles are taken in pixels, hence the aspect.
    aspect = height / width
    cosine, sine = np.cos(parameters.rotation), np.sin(parameters.rotation)
    across = np.where(parameters.flip, -parameters.width, parameters.width)
    down = parameters.height
    theta = np.empty((len(values), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = cosine * across
    theta[:, 0, 1] = (cosine * parameters.shear - sine) * down * aspect
    theta[:, 0, 2] = 2 * parameters.left + parameters.width - 1
    theta[:, 1, 0] = sine * across / aspect
    theta[:, 1, 1] = (cosine + sine * parameters.shear) * down
    theta[:, 1, 2] = 2 * parameters.top + parameters.height - 1
    grid = functional.affine_grid(
        torch.from_numpy(theta).to(values.device), list(values.shape), align_corners=False
    )
    return functional.grid_sample(values, grid, mode="bilinear", align_corners=False)


def _adjust(values: Tensor, parameters: ViewParameters) -> Tensor:
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    values = torch.lerp(mean, values, _column(parameters.contrast, values))
    return values.mul_(_column(parameters.brightness, values)).clamp_(0, 1)


def _blur(values: Tensor, parameters: ViewParameters) -> Tensor:
    blurred = np.flatnonzero(parameters.blur_sigma)
    if not len(blurred):
        return values
    rows = torch.from_numpy(blurred).to(values.device)
    sigma = _column(parameters.blur_sigma[blurred], values)
    # A separable blur is a matrix on either side, one per sample; rows sum to one, so borders do
    # not darken.
    down, across = (_blur_matrix(size, sigma) for size in values.shape[-2:])
    values[rows] = down @ values[rows] @ across.transpose(-1, -2)
    return values


def _blur_matrix(size: int, sigma: Tensor) -> Tensor:
    position = torch.arange(size, device=sigma.device, dtype=torch.float32)
    distance = position[:, None] - position[None, :]
    weights = torch.exp(-0.5 * (distance / sigma).square())
    return weights / weights.sum(-1, keepdim=True)


def _solarize(values: Tensor, parameters: ViewParameters) -> Tensor:
    if not parameters.solarize.any():
        return values
    inverted = (values >= 0.5) & _column(parameters.solarize, values)
    return torch.where(inverted, 1 - values, values)


def _erase(values: Tensor, parameters: ViewParameters) -> Tensor:
    if not parameters.erase_side.any():
        return values
    inside = None
    for dimension, start in ((-2, parameters.erase_top), (-1, parameters.erase_left)):
        size = values.shape[dimension]
        centre = (torch.arange(size, device=values.device, dtype=torch.float32) + 0.5) / size
        centre = centre.view((-1, 1) if dimension == -2 else (1, -1))
        covered = (centre >= _column(start, values)) & (
            centre < _column(start + parameters.erase_side, values)
        )
        inside = covered if inside is None else inside & covered
    return values.masked_fill_(inside, 0)
