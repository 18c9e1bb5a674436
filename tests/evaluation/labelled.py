"""Labelled images of the tests of evaluations: classes that differ in where they are bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from barlow_fast.data import ImageDataset, ViewSpecification
from barlow_fast.evaluation import ImageFormat, dataset_splits


def patterns(count: int, seed: int, classes: int = 4, size: int = 8, channels: int = 1):
    """(count, channels, size, size) uint8 and (count,) int64: class c is bright in its rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    labels = labels[torch.randperm(count, generator=generator)]
    noise = torch.randint(0, 60, (count, channels, size, size), generator=generator)
    rows = torch.arange(size) * classes // size
    bright = (rows == labels[:, None])[:, None, :, None]
    return (noise + 150 * bright).to(torch.uint8), labels


def dataset(train: int = 80, test: int = 40, **more: int) -> ImageDataset:
    """A data set in memory of such images."""
    drawn = *patterns(train, 1, **more), *patterns(test, 2, **more)
    return ImageDataset("patterns", "drawn", *drawn, classes=more.get("classes", 4))


FORM = ImageFormat(8, 1, 0.3, 0.25)
SPLITS = dataset_splits(dataset())
FLIPS = ViewSpecification(flip=0.5)


def clusters(count: int, seed: int, classes: int = 4, spread: float = 1.0):
    """(count, 6) features around a centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, 6, generator=generator), labels


def write_classes(
    folder: Path, per_class: dict[str, int], seed: int = 0, size: int = 12, kind: str = "png"
) -> Path:
    """A folder of classes, each of its own pattern; files are a little wider than high."""
    for number, (name, count) in enumerate(per_class.items()):
        (folder / name).mkdir(parents=True)
        generator = np.random.default_rng((seed, number))
        for index in range(count):
            pixels = generator.integers(0, 60, (size, size + 3, 3))
            rows = np.arange(size) * len(per_class) // size == number
            pixels[rows] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.{kind}")
    return folder


class Stem(nn.Sequential):
    """A small encoder with batch norm: (B, C, H, W) -> (B, 16)."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def stem(seed: int = 0, channels: int = 1) -> Stem:
    """With statistics that are not those of a fresh batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Stem(channels)
        encoder(torch.randn(64, channels, 8, 8))
    return encoder


def stages(encoder: nn.Module) -> dict[str, nn.Module]:
    """As `barlow_fast.models.stages`, of a `Stem`."""
    return {"Feature1": encoder[2], "Feature2": encoder[5]}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
