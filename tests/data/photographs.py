"""Real photographs, and folders of files made from them."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import sklearn
from PIL import Image

from barlow_fast.data import PRESETS, Views, ViewSpecification

PHOTOGRAPHS = (
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def photograph(number: int) -> Image.Image:
    """RGB; (height, width) is (427, 640), (427, 640), (600, 512)."""
    return Image.open(PHOTOGRAPHS[number]).convert("RGB")


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def photographs(folder: Path, count: int, longest: int = 160) -> Path:
    """A folder of `count` JPEG files of different sizes and shapes, cut out of the photographs."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    for number in range(count):
        image = photograph(number % len(PHOTOGRAPHS))
        height, width = generator.integers(longest // 3, longest + 1, 2).tolist()
        top = int(generator.integers(0, image.height - height + 1))
        left = int(generator.integers(0, image.width - width + 1))
        piece = image.crop((left, top, left + width, top + height))
        (folder / f"{number:04d}.jpg").write_bytes(encoded(piece, quality=90))
    return folder


def cropping(size: int | tuple[int, int] = 48, **more: object) -> ViewSpecification:
    """RandomResizedCrop with its usual distributions, and other options."""
    return ViewSpecification(crop_area=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), size=size, **more)


def colouring(size: int = 48) -> Views:
    """Two views with everything that happens to a photograph."""
    imagenet = PRESETS["imagenet"]
    views = tuple(replace(view, size=size) for view in imagenet.views)
    return replace(imagenet, name="colouring", views=views)
