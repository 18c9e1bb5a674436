"""What is loaded: images of one kind, and what is compared on them. They are JPEG files cut out of
photographs that come with libraries, or random pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from barlow_fast.data import PRESETS, Views, batches
from barlow_fast.data.order import Shard

if TYPE_CHECKING:
    from PIL import Image

OFFICIAL, V2, LIGHTLY = "official", "torchvision-v2", "lightly"  # recipes
DISTINCT, QUICK_DISTINCT, FILES = 300, 60, 4_800
LEAST_SHARE = 0.6  # of a photograph's sides, in a piece
QUALITY = 90
NOISE = (480, 640)  # height and width of what stands in for a photograph
PIXELS, PIXEL_BYTES = 20_000, 2**28  # images of random pixels, at most, and their bytes


@dataclass(frozen=True)
class Photographs:
    """JPEG files of one kind.

    Attributes:
        widths, heights: in pixels, half-open.
        share: of the files and of those that differ: the larger they are, the fewer.
        noise: standard deviation in levels of what a camera adds; an enlarged piece of a photograph
            lacks it, and would take few bytes.
        max_side: of the images in shards; None: they are the files.
    """

    widths: tuple[int, int] = (460, 541)
    heights: tuple[int, int] = (370, 431)
    share: float = 1.0
    noise: float = 0.0
    max_side: int | None = None


SMALL = Photographs()
LARGE = Photographs((4032, 4033), (3024, 3025), 0.04, noise=8.0, max_side=512)


@dataclass(frozen=True)
class Case:
    """Images of one kind.

    Attributes:
        name: what `--cases` and the rows call it.
        title: what the tables call it.
        preset: of the views.
        side: of the views, in pixels.
        batch_size: images per batch.
        feeds: names, ours first; or kernels.
        photographs: the files; None: random pixels in memory.
        share: of the time that a feed gets; the faster the images, the less is needed.
        seconds: that the case takes at most; 0 where it is begun while any time is left.
    """

    name: str
    title: str
    preset: str
    side: int
    batch_size: int
    feeds: tuple[str, ...]
    photographs: Photographs | None = None
    share: float = 1.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def views(self) -> Views:
        return PRESETS[self.preset]

    def samples(self, count: int) -> Iterator[np.ndarray]:
        """Those of the batches of `count` images, epoch after epoch."""
        while True:
            yield from batches(0, 0, count, self.batch_size, Shard(0, 1))

    def only(self, names: Collection[str]) -> Case:
        """The same with these feeds alone."""
        return replace(self, feeds=tuple(feed for feed in self.feeds if feed in names))


def originals() -> list[Image.Image]:
    """Three photographs, two of scikit-learn and one of matplotlib. Where these are not installed,
    noise whose amplitude falls with its frequency, as in photographs: files of about their size,
    which take as long to decode."""
    from PIL import Image

    try:
        from matplotlib import cbook
        from sklearn.datasets import load_sample_images
    except ImportError:
        total = np.zeros((*NOISE, 3), np.float32)
        for octave in range(2, 9):
            layer = Image.fromarray(pixels(2**octave, 3, 1)[0]).resize(NOISE[::-1])
            total += np.asarray(layer, np.float32) * 2.0 ** (1 - octave)
        return [Image.fromarray(total.clip(0, 255).astype(np.uint8))]
    third = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    return [*map(Image.fromarray, load_sample_images().images), third]


def photographs(
    folder: Path, distinct: int = DISTINCT, files: int = FILES, kind: Photographs = SMALL
) -> Path:
    """Fills `folder` with `files` JPEG files, or a share of them, pieces of photographs; `distinct`
    of them differ. The others are further names of the same files, so that an epoch is long enough
    to have a steady state: the disk's cache holds all of them anyway.
    """
    generator, some = np.random.default_rng(0), originals()
    distinct, files = (max(round(kind.share * count), 2) for count in (distinct, files))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"{number:06d}.jpg"
        if number < distinct:
            _piece(some[number % len(some)], kind, generator).save(path, quality=QUALITY)
        else:
            path.hardlink_to(folder / f"{number % distinct:06d}.jpg")
    return folder


def packed(folder: Path, kind: Photographs) -> Path:
    """The shards beside a folder, made by the first call."""
    from barlow_fast.data.pack import pack
    from barlow_fast.data.sources import FolderSource

    shards = folder.with_name(f"{folder.name}-shards")
    if not shards.exists():
        options = {} if kind.max_side is None else {"max_side": kind.max_side}
        pack(FolderSource(folder), shards, **options)
    return shards


def pixels(side: int, channels: int, count: int = PIXELS) -> np.ndarray:
    """(count, side, side, channels) uint8, uniform; fewer where they would take PIXEL_BYTES."""
    generator = np.random.default_rng(0)
    count = min(count, PIXEL_BYTES // (side * side * channels))
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def _piece(image: Image.Image, kind: Photographs, generator: np.random.Generator) -> Image.Image:
    """A part of a photograph, resized."""
    from PIL import Image

    share = generator.uniform(LEAST_SHARE, 1, 2) * (image.width, image.height)
    width, height = share.astype(int).tolist()
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, image.height - height + 1))
    size = int(generator.integers(*kind.widths)), int(generator.integers(*kind.heights))
    piece = image.resize(size, box=(left, top, left + width, top + height))
    if not kind.noise:
        return piece
    noisy = np.asarray(piece) + generator.normal(0, kind.noise, (*size[::-1], 3))
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
