"""What a view is: a specification of distributions, and the parameters that one (seed, epoch,
sample, view) draws from it.

Everything here is a pure function. The same sample shows the same view whatever the batch size,
the worker or the rank, and resuming a run needs the epoch and the position in it, no generator
state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from .philox import philox, uniform

# One random number each, by position. Append only: a number that moves changes every view of every
# seed.
DRAWS = (
    "crop_area",
    "crop_ratio",
    "crop_top",
    "crop_left",
    "rotation",
    "shear",
    "flip",
    "brightness",
    "contrast",
    "blur",
    "blur_sigma",
    "solarize",
    "erase",
    "erase_area",
    "erase_top",
    "erase_left",
)
_BLOCKS = -(-len(DRAWS) // 4)

# The word of the counter that keeps the sample order apart from the views; views count from zero.
_ORDER = 0xFFFFFFFF


@dataclass(frozen=True)
class ViewSpecification:
    """The distributions that one view's parameters are drawn from.

    Pairs are (low, high) of a uniform draw. The defaults change nothing: the view is the image.
    """

    # Of the image's area; above 1 zooms out, with black outside.
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)  # width / height, uniform in its logarithm
    rotation: float = 0.0  # degrees, uniform in [-rotation, rotation], about the window's centre
    shear: float = 0.0  # degrees, horizontal, uniform in [-shear, shear]
    flip: float = 0.0  # probability of a horizontal mirror
    brightness: float = 0.0  # factor uniform in [1 - brightness, 1 + brightness]
    contrast: float = 0.0  # the same, about the mean of the view
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.5, 1.0)  # pixels
    solarize: float = 0.0  # probability that values of at least one half are inverted
    erase: float = 0.0  # probability that a square is blackened
    erase_area: tuple[float, float] = (0.05, 0.2)  # of the view

    def __post_init__(self) -> None:
        for name in ("flip", "blur", "solarize", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        for name in ("crop_area", "crop_ratio", "blur_sigma", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} must be (low, high) with 0 < low <= high, got {(low, high)}"
                )
        for name, limit in (("brightness", 1), ("contrast", 1), ("rotation", 180), ("shear", 89)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in [0, {limit}], got {getattr(self, name)}")


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for a batch: arrays of B values, float32 unless marked; lengths are fractions
    of the image."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    rotation: np.ndarray  # radians, anticlockwise
    shear: np.ndarray  # tangent of the angle
    flip: np.ndarray  # bool
    brightness: np.ndarray
    contrast: np.ndarray
    blur_sigma: np.ndarray  # pixels; 0 for none
    solarize: np.ndarray  # bool
    erase_top: np.ndarray
    erase_left: np.ndarray
    erase_side: np.ndarray  # 0 for none

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, index: slice | np.ndarray) -> ViewParameters:
        return ViewParameters(*(getattr(self, field.name)[index] for field in fields(self)))


# The two views differ, as in the paper: there one is blurred always and the other seldom, and only
# the other is solarized.
PRESETS: dict[str, tuple[ViewSpecification, ViewSpecification]] = {
    # Mirrored digits are other characters, so no flip; 8 x 8 pixels bear no blur.
    "digits": (
        ViewSpecification(
            (0.6, 1.2), (0.75, 1.33), rotation=15, shear=20, brightness=0.3, contrast=0.3
        ),
        ViewSpecification(
            (0.6, 1.2), (0.75, 1.33), rotation=15, shear=20, brightness=0.3, contrast=0.3, erase=0.3
        ),
    ),
    "fashion-mnist": (
        ViewSpecification(
            (0.3, 1.0), (0.75, 1.33), flip=0.5, brightness=0.4, contrast=0.4, blur=0.5
        ),
        ViewSpecification(
            (0.3, 1.0), (0.75, 1.33), flip=0.5, brightness=0.4, contrast=0.4, blur=0.1, erase=0.2
        ),
    ),
}


def draw(
    specification: ViewSpecification, seed: int, epoch: int, samples: np.ndarray, view: int
) -> ViewParameters:
    """The parameters of view number `view` of each sample: parameters(seed, epoch, sample, view),
    for a batch at once.

    Args:
        specification: the distributions.
        seed: in [0, 2**64).
        epoch: in [0, 2**32).
        samples: (B,) integer indices into the data set, each in [0, 2**32).
        view: 0 or 1, or more for losses of many views; below 2**32 - 1.

    Returns:
        ViewParameters of B rows, in the order of `samples`.

    Raises:
        ValueError: a number out of its range.
    """
    samples = np.asarray(samples)
    _check_range("seed", seed, 2**64)
    _check_range("epoch", epoch, 2**32)
    _check_range("view", view, _ORDER)
    if samples.size and not 0 <= int(samples.min()) <= int(samples.max()) < 2**32:
        raise ValueError("samples must be indices in [0, 2**32)")
    blocks = np.arange(_BLOCKS)[:, None]
    words = philox((samples, epoch, view, blocks), seed)
    numbers = uniform(words).swapaxes(0, 1).reshape(-1, len(samples))
    u = dict(zip(DRAWS, numbers[: len(DRAWS)], strict=True))
    top, left, height, width = _window(specification, u)
    erase_top, erase_left, erase_side = _erased_square(specification, u)
    return ViewParameters(
        top,
        left,
        height,
        width,
        rotation=np.deg2rad(specification.rotation * (2 * u["rotation"] - 1)),
        shear=np.tan(np.deg2rad(specification.shear * (2 * u["shear"] - 1))),
        flip=u["flip"] < specification.flip,
        brightness=1 + specification.brightness * (2 * u["brightness"] - 1),
        contrast=1 + specification.contrast * (2 * u["contrast"] - 1),
        blur_sigma=np.where(
            u["blur"] < specification.blur, _between(specification.blur_sigma, u["blur_sigma"]), 0
        ).astype(np.float32),
        solarize=u["solarize"] < specification.solarize,
        erase_top=erase_top,
        erase_left=erase_left,
        erase_side=erase_side,
    )


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits its samples: a permutation of [0, count), int64, pure in
    (seed, epoch).

    1.3 million samples take about a tenth of a second. Independent of every view's parameters.

    Raises:
        ValueError: seed not in [0, 2**64), epoch not in [0, 2**32), count not in [0, 2**32).
    """
    _check_range("seed", seed, 2**64)
    _check_range("epoch", epoch, 2**32)
    _check_range("count", count, 2**32)
    # Sorting random high bits that carry their index in the low ones needs no argsort, and has no
    # ties to break. Only the raw stream of numpy's generator is used: it is the part that numpy
    # promises never to change.
    bits = np.uint64(max(count - 1, 1).bit_length())
    generator = np.random.Philox(key=seed, counter=[0, 0, epoch, _ORDER])
    keys = (generator.random_raw(count) >> bits << bits) | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def _between(pair: tuple[float, float], u: np.ndarray) -> np.ndarray:
    return pair[0] + (pair[1] - pair[0]) * u


def _window(
    specification: ViewSpecification, u: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    area = _between(specification.crop_area, u["crop_area"])
    logarithms = tuple(map(math.log, specification.crop_ratio))
    stretch = np.exp(0.5 * _between(logarithms, u["crop_ratio"]))
    # A side longer than the image is cut to it, unless the specification zooms out.
    longest = max(1.0, math.sqrt(specification.crop_area[1]))
    height = np.minimum(np.sqrt(area) / stretch, longest)
    width = np.minimum(np.sqrt(area) * stretch, longest)
    return u["crop_top"] * (1 - height), u["crop_left"] * (1 - width), height, width


def _erased_square(
    specification: ViewSpecification, u: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = np.sqrt(_between(specification.erase_area, u["erase_area"]))
    side = np.where(u["erase"] < specification.erase, side, 0).astype(np.float32)
    return u["erase_top"] * (1 - side), u["erase_left"] * (1 - side), side


def _check_range(name: str, value: int, end: int) -> None:
    if not 0 <= value < end:
        raise ValueError(f"{name} must be in [0, {end}), got {value}")
