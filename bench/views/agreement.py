"""Whether a loader shows what torchvision shows for the same parameters: no speed without it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from barlow_fast.data import Batch, ViewLoader, draw, windows
from barlow_fast.kernels.photometry import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    ORDERS,
    SATURATION,
    Parameter,
)

CHECKED = 8  # images of the first batch
# Levels of 255, the mean over a view: DALI's crops differ from PIL's by up to 0.3 on average, which
# jitter enlarges.
BOUND = 1.0
TAPS = 23  # of torchvision's blur

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


def problem(loader: ViewLoader, batch: Batch, epoch: int = 0) -> str | None:
    """What is wrong with a batch; None where nothing is."""
    samples = batch.index[:CHECKED].numpy()
    for number, got in enumerate(batch.views):
        want = expected(loader, samples, number, epoch)
        std = torch.tensor(loader.views.std).view(1, -1, 1, 1)
        errors = ((got[:CHECKED].float() - want) * std * 255).abs().mean((1, 2, 3))
        if got.dtype != torch.float32 or got[:CHECKED].shape != want.shape:
            return f"view {number} is {tuple(got.shape)} {got.dtype}"
        worst = int(errors.argmax())
        # Written so that NaN is a problem.
        if not float(errors[worst]) <= BOUND:
            return (
                f"view {number} of sample {samples[worst]} is {float(errors[worst]):.2f} levels "
                f"from torchvision's on average, more than {BOUND:g}"
            )
    return None


def expected(loader: ViewLoader, samples: np.ndarray, number: int, epoch: int) -> Tensor:
    """View `number` of samples, by PIL and torchvision's own functions."""
    specification = loader.views.views[number]
    parameters = draw(specification, loader.seed, epoch, samples, number)
    found = []
    for row, sample in enumerate(samples.tolist()):
        image = loader.source.image(sample)
        height, width = specification.shape or (image.height, image.width)
        mine = parameters[row : row + 1]
        where = windows(mine, specification, image.height, image.width)[0].tolist()
        bicubic = InterpolationMode.BICUBIC
        crop = functional.resized_crop(image, *where, [height, width], bicubic)
        found.append(finished(crop, mine.photometric_rows(height, width)[0]))
    mean, std = loader.views.mean, loader.views.std
    return functional.normalize(torch.stack(found), list(mean), list(std))


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
