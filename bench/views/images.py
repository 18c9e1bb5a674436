"""Images to load: JPEG files cut out of photographs that come with libraries, and random pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

DISTINCT, QUICK_DISTINCT, FILES = 300, 60, 12_800
WIDTHS, HEIGHTS = (460, 541), (370, 431)  # half-open
LEAST_SHARE = 0.6  # of a photograph's sides, in a piece
QUALITY = 90
CLOUDS = (427, 640)  # height and width of noise that stands in for a photograph
PIXELS = 20_000  # images of random pixels


def sources() -> list[Path]:
    """Three photographs: two of scikit-learn, one of matplotlib.

    Raises:
        FileNotFoundError: one of these libraries is not installed.
    """
    found = []
    for package, folder, names in (
        ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
        ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"photographs are taken from {package}, which is not installed")
        found += [Path(spec.origin).parent / folder / name for name in names]
    return found


def photographs(folder: Path, distinct: int = DISTINCT, files: int = FILES) -> Path:
    """Fills `folder` with `files` JPEG files of about 500 x 400 pixels, `distinct` of which differ.

    They are pieces of photographs; of noise at all scales where no photographs are installed.

    The others are further names of the same files, so that an epoch is long enough to have a steady
    state: the disk's cache holds all of them anyway.
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    try:
        originals = [Image.open(path).convert("RGB") for path in sources()]
    except FileNotFoundError:
        originals = [_clouds(generator) for _ in range(3)]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"{number:06d}.jpg"
        if number < distinct:
            _piece(originals[number % len(originals)], generator).save(path, quality=QUALITY)
        else:
            path.hardlink_to(folder / f"{number % distinct:06d}.jpg")
    return folder


def pixels(side: int, channels: int, count: int = PIXELS) -> np.ndarray:
    """(count, side, side, channels) uint8, uniform."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def _piece(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A part of a photograph, resized."""
    share = generator.uniform(LEAST_SHARE, 1, 2) * (image.width, image.height)
    width, height = share.astype(int).tolist()
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, image.height - height + 1))
    size = int(generator.integers(*WIDTHS)), int(generator.integers(*HEIGHTS))
    return image.resize(size, box=(left, top, left + width, top + height))


def _clouds(generator: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with its frequency, as in photographs: files of about their
    size, which take about as long to decode."""
    from PIL import Image

    total = np.zeros((*CLOUDS, 3), np.float32)
    for octave in range(2, 9):
        cells = generator.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        layer = Image.fromarray(cells).resize(CLOUDS[::-1], Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float32) * 2.0 ** (1 - octave)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))
