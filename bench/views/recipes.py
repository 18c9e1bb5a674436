"""What loaders elsewhere do: torchvision's transforms of PIL images in a DataLoader.

The recipe is that of the authors' code (facebookresearch/barlowtwins, `main.py`), written anew from
its operations and parameters: random resized crop (bicubic), flip, colour jitter with probability
0.8, gray with 0.2, PIL's Gaussian blur with a standard deviation uniform in [0.1, 2], PIL's
solarize, tensor, normalisation. For small images it is the same list with the parameters of the
small images' preset.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from barlow_fast.data import Views, ViewSpecification
from bench.views.images import LIGHTLY, V2

TAPS = 23  # of torchvision's blur

Transform = Callable[[Any], Any]


class Blur:
    """PIL's Gaussian blur with a standard deviation drawn anew each time."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class Each:
    """All views of one image."""

    def __init__(self, transform_of_views: list[Transform]) -> None:
        self.transforms = transform_of_views

    def __call__(self, image: Any) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


def view(
    specification: ViewSpecification, side: int, views: Views, tensors: bool = False
) -> Transform:
    """One view by torchvision, of PIL images or of uint8 tensors (its transforms v2). What the
    specification leaves out takes no time here."""
    s, t = specification, v2 if tensors else transforms
    steps: list[Any] = [
        t.RandomResizedCrop(
            side, s.crop_area, s.crop_ratio, transforms.InterpolationMode.BICUBIC, antialias=True
        )
    ]
    if s.flip:
        steps.append(t.RandomHorizontalFlip(s.flip))
    if s.jitters:
        jitter = t.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue)
        steps.append(t.RandomApply([jitter], s.jitter) if s.jitter < 1 else jitter)
    if s.grayscale:
        steps.append(t.RandomGrayscale(s.grayscale))
    if s.blur:
        blur = v2.GaussianBlur(TAPS, s.blur_sigma) if tensors else Blur(s.blur_sigma)
        steps.append(t.RandomApply([blur], s.blur))
    if s.solarize:
        steps.append(t.RandomSolarize(s.solarize_threshold, s.solarize))
    steps.append(v2.ToDtype(torch.float32, scale=True) if tensors else t.ToTensor())
    steps.append(t.Normalize(views.mean, views.std))
    if s.erase:
        black = [-mean / std for mean, std in zip(views.mean, views.std, strict=True)]
        steps.append(t.RandomErasing(s.erase, s.erase_area, (1, 1), black))
    return t.Compose(steps)


def official(views: Views, side: int, tensors: bool = False) -> Transform:
    """The recipe, with the parameters of `views`."""
    return Each([view(specification, side, views, tensors) for specification in views.views])


def lightly(side: int, views: Views | None = None) -> Transform:
    """lightly's transform as its documents set it up for Barlow Twins: without blur where images
    are small. Gray images are normalised by the numbers of `views`, because lightly's are for three
    channels."""
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    if side >= 96:
        return BYOLTransform()
    changes: dict[str, Any] = {"input_size": side, "gaussian_blur": 0.0}
    if views is not None and len(views.mean) == 1:
        changes["normalize"] = {"mean": list(views.mean), "std": list(views.std)}
    return BYOLTransform(BYOLView1Transform(**changes), BYOLView2Transform(**changes))


class Images(Dataset):
    """Views of what `opened` makes of each of `items`."""

    def __init__(self, items: Sequence[Any], opened: Transform, transform: Transform) -> None:
        self.items, self.opened, self.transform = items, opened, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.opened(self.items[index]))


def _opened(path: str) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def files(folder: Path, transform: Transform, tensors: bool = False) -> Images:
    """Views of JPEG files."""
    opened = (lambda path: decode_image(path, ImageReadMode.RGB)) if tensors else _opened
    return Images(sorted(map(str, folder.glob("*.jpg"))), opened, transform)


def pixels(images: np.ndarray, transform: Transform, tensors: bool = False) -> Images:
    """Views of (N, H, W, C) uint8 images in memory."""
    if tensors:
        return Images(torch.from_numpy(images).permute(0, 3, 1, 2), lambda image: image, transform)
    return Images(images[..., 0] if images.shape[-1] == 1 else images, Image.fromarray, transform)


def loader(dataset: Dataset, batch_size: int, workers: int, pin_memory: bool = False) -> DataLoader:
    """Shuffled, whole batches only; the workers outlive an epoch, which is to its advantage."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=pin_memory,
        # The default of Linux until Python 3.14; a process that was spawned would spawn its own.
        multiprocessing_context="fork",
    )


def batches(
    recipe: str, views: Views, side: int, images: Path | np.ndarray, *given: Any, **options: Any
) -> Iterator[list[Tensor]]:
    """Epoch after epoch of two views of the files in a folder, or of images in memory, by a name of
    `views.images`; `given` and `options` as of `loader`."""
    tensors = recipe == V2
    transform = lightly(side, views) if recipe == LIGHTLY else official(views, side, tensors)
    made = files if isinstance(images, Path) else pixels
    feed = loader(made(images, transform, tensors), *given, **options)
    return itertools.chain.from_iterable(itertools.repeat(feed))
