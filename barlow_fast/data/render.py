"""Views of images in memory, from bytes to what an encoder takes, without a loader: for training
loops that hold their images on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import kernels
from ..plan import choose_backend
from .rendering.arrays import crops_of
from .views import ViewParameters, ViewSpecification


def render(
    images: Tensor,
    parameters: ViewParameters,
    specification: ViewSpecification,
    mean: float | tuple[float, ...] = 0.0,
    std: float | tuple[float, ...] = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crops or warps, rounds to bytes, then mirrors, adjusts, blurs, solarizes, erases and
    normalises, as every other rendering does (`rendering.arrays`, `photometric` of the kernels).

    Args:
        images: (B, C, H, W) uint8, any device and strides, C = 1 or 3.
        parameters: B rows, drawn from `specification`.
        specification: of the view; without a size the view is as large as the images.
        mean, std: of the data set, on the scale where white is 1; one number, or one per channel.
        dtype: of the view: float32, bfloat16 or float16.

    Returns:
        (B, C, h, w) of `dtype`, channels-last, on the device of `images`. Black, the value outside
        the image, is 0 before `mean` and `std`.

    Raises:
        ValueError: images of another dtype or number of dimensions, or a different number of
            parameters.
    """
    crops = crops_of(images.movedim(1, -1), parameters, specification)
    rows = torch.from_numpy(parameters.photometric_rows(*crops.shape[1:3])).to(crops.device)
    mean, std = (
        torch.as_tensor(values, dtype=torch.float32, device=crops.device).expand(crops.shape[-1])
        for values in (mean, std)
    )
    kernel = photometric_kernel(crops.device)
    return kernel(crops, rows, mean.contiguous(), std.contiguous(), dtype)


def photometric_kernel(device: torch.device) -> Callable[..., Tensor]:
    """The function that finishes cropped views on a device (`photometric` of the kernels)."""
    return kernels.load(choose_backend("auto", device)).photometric


def normalise(images: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """The images as they are, for evaluation: (B, C, H, W) uint8 -> float32 with `mean` and `std`
    taken out."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)
