"""What a view is: a specification of distributions, and the parameters that one (seed, epoch,
sample, view) draws from it.

Everything here is a pure function. The same sample shows the same view whatever the batch size,
the worker or the rank, and resuming a run needs the epoch and the position in it, no generator
state.
"""

from __future__ import annotations

import functools
import math
import reprlib
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np

from ..kernels.photometry import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    LARGEST_SIGMA,
    ORDERS,
    PARAMETERS,
    SATURATION,
    Parameter,
)
from .order import ORDER_STREAM, check_range, order
from .philox import philox, uniform

__all__ = ["DRAWS", "INTERPOLATIONS", "ViewParameters", "ViewSpecification", "draw", "order"]

# Pixels a side of a view: it decides how much memory a batch takes.
LARGEST_SIDE = 2**15
# How often a crop window is tried before a central one is taken.
ATTEMPTS = 10

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
    "jitter",
    "saturation",
    "hue",
    "jitter_order",
    "grayscale",
    *(f"{name}_{n}" for n in range(2, ATTEMPTS + 1) for name in ("crop_area", "crop_ratio")),
)
_POSITION = {name: position for position, name in enumerate(DRAWS)}
# The attempts in turn, area before ratio.
_TRIES = [0, 1, *range(_POSITION["crop_area_2"], len(DRAWS))]
_PLACE = [_POSITION["crop_top"], _POSITION["crop_left"]]
# Numbers come by four from a block of the generator; the first sixteen are always drawn.
_ALL_BLOCKS = -(-len(DRAWS) // 4)
_FIRST_BLOCKS = 4

Interpolation = Literal["bicubic", "bilinear"]
INTERPOLATIONS = get_args(Interpolation)

_NO_JITTER = -1  # in place of an index into `ORDERS`
_NEVER = 256  # a threshold that no level reaches


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """A value in an error message, cut short: values come from files, where a few lines of
    references can stand for a billion numbers."""
    return _SHORT.repr(value)


@dataclass(frozen=True)
class ViewSpecification:
    """The distributions that one view's parameters are drawn from.

    Pairs are (low, high) of a uniform draw. The defaults change nothing: the view is the image.

    Raises:
        ValueError: a value of the wrong type or out of its range; the message begins with the
            field's name.
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
    solarize: float = 0.0  # probability that values from solarize_threshold on are inverted
    erase: float = 0.0  # probability that a square is blackened
    erase_area: tuple[float, float] = (0.05, 0.2)  # of the view
    # Output pixels: (height, width), or one number for a square; None: as large as the image.
    size: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bicubic"  # or 'bilinear'; both antialiased, as PIL resizes
    jitter: float = 1.0  # probability that brightness, contrast, saturation, hue change at all
    saturation: float = 0.0  # factor uniform in [1 - saturation, 1 + saturation]
    hue: float = 0.0  # turns of the colour circle, uniform in [-hue, hue]
    # Whether these four come in an order of their own for each sample, or in the one above.
    random_order: bool = False
    grayscale: float = 0.0  # probability
    solarize_threshold: int = 128  # levels, of 255

    def __post_init__(self) -> None:
        for name in ("flip", "blur", "solarize", "erase", "jitter", "grayscale"):
            if not 0 <= self._number(name) <= 1:
                raise ValueError(f"{name} is a probability, got {shown(getattr(self, name))}")
        for name in ("crop_area", "crop_ratio", "blur_sigma", "erase_area"):
            low, high = self._pair(name)
            if not 0 < low <= high < math.inf:
                raise ValueError(
                    f"{name} must be (low, high) with 0 < low <= high, got {(low, high)}"
                )
        for name, limit in (
            ("brightness", 1),
            ("contrast", 1),
            ("saturation", 1),
            ("hue", 0.5),
            ("rotation", 180),
            ("shear", 89),
        ):
            if not 0 <= self._number(name) <= limit:
                raise ValueError(
                    f"{name} must be in [0, {limit}], got {shown(getattr(self, name))}"
                )
        # What the photometric kernels have room for; four standard deviations on either side are
        # looked at.
        if self.blur_sigma[1] > LARGEST_SIGMA:
            raise ValueError(f"blur_sigma must be at most {LARGEST_SIGMA:g}, got {self.blur_sigma}")
        if self.erase_area[1] > 1:
            raise ValueError(f"erase_area must be at most 1, got {self.erase_area}")
        if not _whole(self.solarize_threshold) or not 0 <= self.solarize_threshold <= 255:
            raise ValueError(
                "solarize_threshold must be a whole number in [0, 255], "
                f"got {shown(self.solarize_threshold)}"
            )
        if not isinstance(self.random_order, bool):
            raise ValueError(f"random_order must be true or false, got {shown(self.random_order)}")
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"got {shown(self.interpolation)}"
            )
        self._check_size()

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if not _real(value):
            raise ValueError(f"{name} must be a number, got {shown(value)}")
        return value

    def _pair(self, name: str) -> tuple[float, float]:
        value = getattr(self, name)
        if not isinstance(value, tuple | list) or len(value) != 2 or not all(map(_real, value)):
            raise ValueError(f"{name} must be two numbers, (low, high), got {shown(value)}")
        # A list would make the specification unhashable.
        object.__setattr__(self, name, tuple(value))
        return getattr(self, name)

    def _check_size(self) -> None:
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        sides = self.size if isinstance(self.size, tuple) else (self.size,) * 2
        if self.size is not None and (
            len(sides) != 2 or not all(_whole(side) and 0 < side <= LARGEST_SIDE for side in sides)
        ):
            raise ValueError(
                "size must be pixels, or (height, width) in pixels, or none, with sides of at most "
                f"{LARGEST_SIDE}, got {shown(self.size)}"
            )

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of the view in pixels; None: those of the image."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def warped(self) -> bool:
        """Whether a view is turned, sheared or zoomed out, so that no upright window shows it."""
        return self.rotation > 0 or self.shear > 0 or self.crop_area[1] > 1

    @property
    def crops(self) -> bool:
        """Whether a view may be less than the image."""
        return (self.crop_area, self.crop_ratio) != ((1, 1), (1, 1))

    @property
    def jitters(self) -> bool:
        """Whether a view's brightness, contrast, saturation or hue may change."""
        return (
            self.jitter > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0
        )


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for a batch: arrays of B values, float32 unless marked; lengths are fractions
    of the image.

    The window as fractions (top, left, height, width) is what a warped view shows. An upright one
    is found by `windows`, in whole pixels, from the numbers in `tries` and `place`.
    """

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
    saturation: np.ndarray
    hue: np.ndarray  # turns
    order: np.ndarray  # int8, index into `barlow_fast.kernels.photometry.ORDERS`; -1: no jitter
    grayscale: np.ndarray  # bool
    solarize_threshold: np.ndarray  # levels
    # Numbers in (0, 1): (B, 10, 2), area and ratio of each window that is tried, or (B, 0, 2) where
    # nothing is; (B, 2), where in the image's height and width it lies.
    tries: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, index: slice | np.ndarray) -> ViewParameters:
        return ViewParameters(*(getattr(self, field.name)[index] for field in fields(self)))

    def photometric_rows(self, height: int, width: int) -> np.ndarray:
        """What is left to do when a view has been cropped, for `photometric` of a kernel set.

        Args:
            height, width: of the view, in pixels.

        Returns:
            (B, PARAMETERS) float32 in the columns of `barlow_fast.kernels.photometry.Parameter`.
            The square to erase becomes the pixels whose centres lie in it.
        """
        rows = np.empty((len(self), PARAMETERS), np.float32)
        rows[:, Parameter.FLIP] = self.flip
        rows[:, Parameter.ORDER] = self.order
        rows[:, Parameter.BRIGHTNESS] = self.brightness
        rows[:, Parameter.CONTRAST] = self.contrast
        rows[:, Parameter.SATURATION] = self.saturation
        rows[:, Parameter.HUE] = self.hue
        rows[:, Parameter.GRAY] = self.grayscale
        rows[:, Parameter.BLUR_SIGMA] = self.blur_sigma
        rows[:, Parameter.SOLARIZE] = np.where(self.solarize, self.solarize_threshold, _NEVER)
        for start, first, last, pixels in (
            (self.erase_top, Parameter.ERASE_TOP, Parameter.ERASE_BOTTOM, height),
            (self.erase_left, Parameter.ERASE_LEFT, Parameter.ERASE_RIGHT, width),
        ):
            rows[:, first] = np.ceil(start * pixels - 0.5)
            rows[:, last] = np.ceil((start + self.erase_side) * pixels - 0.5)
        # No square at all, rather than one without pixels anywhere in the image.
        rows[self.erase_side == 0, Parameter.ERASE_TOP :] = 0
        return rows


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
    check_range("seed", seed, 2**64)
    check_range("epoch", epoch, 2**32)
    check_range("view", view, ORDER_STREAM)
    if samples.size and not 0 <= int(samples.min()) <= int(samples.max()) < 2**32:
        raise ValueError("samples must be indices in [0, 2**32)")
    blocks = _blocks(specification)
    words = philox((samples, epoch, view, blocks[:, None]), seed)
    # Numbers that the specification does not use are not drawn, and stay at 0: nothing reads them.
    numbers = np.zeros((_ALL_BLOCKS, 4, len(samples)), np.float32)
    numbers[blocks] = uniform(words).swapaxes(0, 1)
    numbers = numbers.reshape(4 * _ALL_BLOCKS, len(samples))
    u = dict(zip(DRAWS, numbers, strict=False))
    top, left, height, width = _window(specification, u)
    erase_top, erase_left, erase_side = _erased_square(specification, u)
    jittered = u["jitter"] < (specification.jitter if specification.jitters else 0)
    return ViewParameters(
        top,
        left,
        height,
        width,
        rotation=np.deg2rad(_swing(specification.rotation, u["rotation"])),
        shear=np.tan(np.deg2rad(_swing(specification.shear, u["shear"]))),
        flip=u["flip"] < specification.flip,
        brightness=_factor(specification.brightness, u["brightness"], jittered),
        contrast=_factor(specification.contrast, u["contrast"], jittered),
        blur_sigma=np.where(
            u["blur"] < specification.blur, _between(specification.blur_sigma, u["blur_sigma"]), 0
        ).astype(np.float32),
        solarize=u["solarize"] < specification.solarize,
        erase_top=erase_top,
        erase_left=erase_left,
        erase_side=erase_side,
        saturation=_factor(specification.saturation, u["saturation"], jittered),
        hue=np.where(jittered, _swing(specification.hue, u["hue"]), np.float32(0)),
        order=_jitter_order(specification, u["jitter_order"], jittered),
        grayscale=u["grayscale"] < specification.grayscale,
        solarize_threshold=np.full(len(samples), specification.solarize_threshold, np.float32),
        tries=_tries(specification, numbers),
        place=numbers[_PLACE].T,
    )


@functools.lru_cache(maxsize=64)
def _blocks(specification: ViewSpecification) -> np.ndarray:
    """The generator's blocks that hold what the specification looks at."""
    used = []
    if specification.jitters:
        used += ["jitter", "saturation", "hue", "jitter_order"]
    if specification.grayscale:
        used += ["grayscale"]
    if specification.crops and not specification.warped:
        used += [DRAWS[position] for position in _TRIES]
    later = {_POSITION[name] // 4 for name in used}
    return np.array(sorted(later.union(range(_FIRST_BLOCKS))))


def _swing(amplitude: float, u: np.ndarray) -> np.ndarray:
    """Uniform in [-amplitude, amplitude]."""
    return amplitude * (2 * u - 1)


def _factor(amplitude: float, u: np.ndarray, applied: np.ndarray) -> np.ndarray:
    return np.where(applied, 1 + _swing(amplitude, u), np.float32(1))


def _jitter_order(
    specification: ViewSpecification, u: np.ndarray, applied: np.ndarray
) -> np.ndarray:
    in_turn = ORDERS.index((BRIGHTNESS, CONTRAST, SATURATION, HUE))
    index = (u * len(ORDERS)).astype(np.int8) if specification.random_order else in_turn
    return np.where(applied, index, _NO_JITTER).astype(np.int8)


def _tries(specification: ViewSpecification, numbers: np.ndarray) -> np.ndarray:
    count = numbers.shape[1]
    if not specification.crops or specification.warped:
        return np.empty((count, 0, 2), np.float32)
    return numbers[_TRIES].T.reshape(count, ATTEMPTS, 2)


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
