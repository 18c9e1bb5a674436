"""Whether a loader shows what torchvision shows for the same parameters: no speed without it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from barlow_fast.data import Batch, ViewLoader, draw, windows
from barlow_fast.data.sources import Source
from barlow_fast.kernels.photometry import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    ORDERS,
    SATURATION,
    Parameter,
)
from bench.views.recipes import TAPS

CHECKED = 8  # images of the first batch
# Levels of 255, the mean over a view: DALI's crops differ from PIL's by up to 0.3 on average, which
# jitter enlarges.
BOUND = 1.0

_JITTER = {
    BRIGHTNESS: (functional.adjust_brightness, Parameter.BRIGHTNESS),
    CONTRAST: (functional.adjust_contrast, Parameter.CONTRAST),
    SATURATION: (functional.adjust_saturation, Parameter.SATURATION),
    HUE: (functional.adjust_hue, Parameter.HUE),
}
_ERASED = (
    Parameter.ERASE_TOP,
    Parameter.ERASE_LEFT,
    Parameter.ERASE_BOTTOM,
    Parameter.ERASE_RIGHT,
)


def problem(loader: ViewLoader, batch: Batch) -> str | None:
    """What is wrong with the first batch; None where nothing is."""
    for number, (got, want) in enumerate(zip(batch.views, expected(loader, batch), strict=True)):
        if got.dtype != torch.float32 or got[:CHECKED].shape != want.shape:
            return f"view {number} is {tuple(got.shape)} {got.dtype}"
        errors = levels(loader, got, want)
        worst = int(errors.argmax())
        # Written so that NaN is a problem.
        if not float(errors[worst]) <= BOUND:
            return (
                f"view {number} of sample {int(batch.index[worst])} is {float(errors[worst]):.2f} "
                f"levels from torchvision's on average, more than {BOUND:g}"
            )
    return None


def error(loader: ViewLoader, batch: Batch, source: Source) -> float:
    """How far the views of the first batch are from those of another source with the same images,
    in levels, on average."""
    pairs = zip(batch.views, expected(loader, batch, source), strict=True)
    return float(torch.stack([levels(loader, *pair) for pair in pairs]).mean())


def levels(loader: ViewLoader, got: Tensor, want: Tensor) -> Tensor:
    """(B,) mean differences of views, in levels of 255."""
    std = torch.tensor(loader.views.std).view(1, -1, 1, 1)
    return ((got[:CHECKED].float() - want) * std * 255).abs().mean((1, 2, 3))


def expected(loader: ViewLoader, batch: Batch, source: Source | None = None) -> list[Tensor]:
    """The views of the first samples, by PIL and torchvision's own functions."""
    source, samples, views = source or loader.source, batch.index[:CHECKED].numpy(), loader.views
    pictures = [source.image(sample) for sample in samples.tolist()]
    found = []
    for number, specification in enumerate(views.views):
        drawn, made = draw(specification, loader.seed, 0, samples, number), []
        for row, image in enumerate(pictures):
            size = specification.shape or (image.height, image.width)
            mine = drawn[row : row + 1]
            where = windows(mine, specification, image.height, image.width)[0].tolist()
            crop = functional.resized_crop(image, *where, list(size), InterpolationMode.BICUBIC)
            made.append(finished(crop, mine.photometric_rows(*size)[0]))
        found.append(functional.normalize(torch.stack(made), list(views.mean), list(views.std)))
    return found


def finished(crop: Image.Image, row: np.ndarray) -> Tensor:
    """(C, H, W) float32 in [0, 1]: what a row of parameters does to a crop."""
    x = functional.to_dtype(functional.pil_to_tensor(crop), torch.float32, scale=True)
    p = {parameter: float(row[parameter]) for parameter in Parameter}
    if p[Parameter.FLIP]:
        x = functional.horizontal_flip(x)
    for operation in ORDERS[int(p[Parameter.ORDER])] if p[Parameter.ORDER] >= 0 else ():
        adjust, column = _JITTER[operation]
        if len(x) == 3 or operation in (BRIGHTNESS, CONTRAST):
            x = adjust(x, p[column])
    if p[Parameter.GRAY] and len(x) == 3:
        x = functional.rgb_to_grayscale(x, 3)
    if p[Parameter.BLUR_SIGMA] > 0:
        x = functional.gaussian_blur(x, [TAPS, TAPS], [p[Parameter.BLUR_SIGMA]] * 2)
    if p[Parameter.SOLARIZE] <= 255:
        x = functional.solarize(x, p[Parameter.SOLARIZE] / 255)
    top, left, bottom, right = (max(int(p[side]), 0) for side in _ERASED)
    x = x.clone()
    x[:, top:bottom, left:right] = 0
    return x
