"""What loaders elsewhere do: torchvision's transforms of PIL images in a DataLoader.

The recipe is that of the authors' code (facebookresearch/barlowtwins, `main.py`), written anew from
its operations and parameters: random resized crop (bicubic), flip, colour jitter with probability
0.8, gray with 0.2, PIL's Gaussian blur with a standard deviation uniform in [0.1, 2], PIL's
solarize, tensor, normalisation. For small images it is the same list with the parameters of the
small images' preset.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from barlow_fast.data import Views, ViewSpecification

Transform = Callable[[Image.Image], Any]


class Blur:
    """PIL's Gaussian blur, with a probability and a standard deviation drawn anew each time."""

    def __init__(self, probability: float, sigma: tuple[float, float]) -> None:
        self.probability, self.sigma = probability, sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class Solarize:
    """PIL's solarize, with a probability."""

    def __init__(self, probability: float, threshold: int) -> None:
        self.probability, self.threshold = probability, threshold

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return ImageOps.solarize(image, self.threshold)


class Each:
    """All views of one image."""

    def __init__(self, transform_of_views: list[Transform]) -> None:
        self.transforms = transform_of_views

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


def view(specification: ViewSpecification, side: int, views: Views) -> transforms.Compose:
    """One view by torchvision and PIL. What the specification leaves out takes no time here."""
    s = specification
    bicubic = transforms.InterpolationMode.BICUBIC
    steps: list[Any] = [
        transforms.RandomResizedCrop(side, s.crop_area, s.crop_ratio, interpolation=bicubic)
    ]
    if s.flip:
        steps.append(transforms.RandomHorizontalFlip(s.flip))
    if s.jitters:
        jitter = transforms.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue)
        steps.append(transforms.RandomApply([jitter], s.jitter) if s.jitter < 1 else jitter)
    if s.grayscale:
        steps.append(transforms.RandomGrayscale(s.grayscale))
    if s.blur:
        steps.append(Blur(s.blur, s.blur_sigma))
    if s.solarize:
        steps.append(Solarize(s.solarize, s.solarize_threshold))
    steps += [transforms.ToTensor(), transforms.Normalize(views.mean, views.std)]
    if s.erase:
        black = [-mean / std for mean, std in zip(views.mean, views.std, strict=True)]
        steps.append(transforms.RandomErasing(s.erase, s.erase_area, (1, 1), black))
    return transforms.Compose(steps)


def official(views: Views, side: int) -> Transform:
    """The recipe, with the parameters of `views`."""
    return Each([view(specification, side, views) for specification in views.views])


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


class Files(Dataset):
    """Views of image files."""

    def __init__(self, folder: Path, transform: Transform) -> None:
        self.paths = sorted(map(str, folder.glob("*.jpg")))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with open(self.paths[index], "rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


class Pixels(Dataset):
    """Views of (N, H, W, C) uint8 images in memory."""

    def __init__(self, images: np.ndarray, transform: Transform) -> None:
        self.images = images[..., 0] if images.shape[-1] == 1 else images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index]))


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
