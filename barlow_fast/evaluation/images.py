"""Images on their way into an encoder that is being judged: as they are for tests, cropped and
mirrored where a classifier is trained.

Source of the sizes and of the crops: Zbontar et al., *Barlow Twins* (ICML 2021), appendix A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import ViewLoader, Views, ViewSpecification
from ..data.faults import BadImage, BadImageError, BadImages, OnBadImage
from ..data.parallel import in_order
from ..data.render import normalise
from ..data.rendering import native_crop
from ..data.rendering.arrays import crop, with_channels
from ..data.rendering.files import by_pillow
from ..data.sources import ArraySource, Source
from ..data.windows import reduction

# A photograph's shorter side before the middle is cut out: 256 for 224 pixels.
MARGIN = 256 / 224
# How many times as long as high, relative to what is shown, an image may be that is resized as a
# whole.
LONGEST = 8
# Up to this size pictures fill their frame, and no border is cut off.
SMALL = 64

Progress = Callable[[str, int, int], None]


def silent(words: str, done: int, total: int) -> None:
    """A `Progress` without output: what is being done, images or steps done, of how many."""


@dataclass(frozen=True)
class ImageFormat:
    """What an encoder takes: (B, channels, *size) float32, (value - mean) / std where white is 1.

    Args:
        size: (height, width) in pixels, one number for a square, or None: images in memory as they
            are (files have no common size, and need one).
        channels: 1 or 3.
        mean, std: of every channel, or one number for all.

    Raises:
        ValueError: another number of channels, a size below 1, mean and std that do not fit.
    """

    size: int | tuple[int, int] | None = None
    channels: int = 3
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        sides = (self.size,) * 2 if isinstance(self.size, int) else self.size
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(f"size must be pixels or (height, width), got {self.size}")
        object.__setattr__(self, "size", None if sides is None else tuple(map(int, sides)))
        for name in ("mean", "std"):
            value = (
                torch.as_tensor(getattr(self, name), dtype=torch.float64, device="cpu")
                .flatten()
                .tolist()
            )
            if len(value) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(value)} numbers for an encoder of {self.channels} channels"
                )
            object.__setattr__(self, name, tuple(value * (self.channels // len(value))))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def normalised(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32 with `mean` and `std` taken out, on the same device."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return normalise(images, mean, std)


@dataclass(frozen=True)
class Reading:
    """How images are read, and what was wrong with them.

    Args:
        device: where the encoder is.
        chunk: images per pass where none is trained.
        workers: threads that decode files, as for `in_order`.
        on_bad_image: 'error' raises at the first image that cannot be read; 'skip' leaves it out,
            'strict' suspect ones too; a `BadImages` is a policy with a record that others share.
        progress: called with what is being done, how many images or steps are done and of how many.
        reduced_decoding: whether large JPEGs are decoded smaller, as `Views` describes.
    """

    device: torch.device | str = "cpu"
    chunk: int = 256
    workers: int | None = None
    on_bad_image: OnBadImage | BadImages = "error"
    progress: Progress = silent
    reduced_decoding: bool = False
    bad: BadImages = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")
        object.__setattr__(self, "bad", BadImages.of(self.on_bad_image))


class Pictures(NamedTuple):
    """Some images of a source, as they are."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,) int64


class CroppedImage(NamedTuple):
    """What `CentreCrop` returns."""

    pixels: np.ndarray | None  # (H, W, C) uint8; None where the image cannot be read
    found: BadImage | None = None  # where it cannot be read or is suspect


@dataclass(frozen=True)
class CentreCrop:
    """Reads image `index` of a source.

    The shorter side is resized (bilinear, antialiased) to `MARGIN` times the size, or for sizes up
    to `SMALL` to the size, and the middle is cut out: torchvision's Resize and CenterCrop.
    """

    source: Source
    size: tuple[int, int]
    channels: int
    reduced_decoding: bool = False

    def __call__(self, index: int) -> CroppedImage:
        reduce = self._reduction if self.reduced_decoding else None
        try:
            decoded = self.source.pixels(index, self.channels, reduce)
        except BadImageError as error:
            return CroppedImage(None, error.image)
        found = decoded.suspect(index, self.source.identity(index))
        return CroppedImage(self._cropped(decoded.pixels), found)

    def _reduction(self, height: int, width: int) -> int:
        """The largest that leaves the image as large as it is resized to."""
        whole = np.array([[0, 0, height, width]])
        return reduction(whole, [self._resized(height, width)])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which an image of this size is resized before the middle is cut
        out."""
        # The side that decides comes out exact; the other is cut to whole pixels, as torchvision
        # cuts it.
        margin = MARGIN if min(self.size) > SMALL else 1.0
        tall, wide = (round(side * margin) for side in self.size)
        if tall * width >= wide * height:
            return tall, tall * width // height
        return wide * height // width, wide

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        # Of a strip only the middle is shown, and the whole of it resized may not fit into memory.
        sides = image.shape[:2]
        longest = LONGEST * min(sides) * max(self.size) // min(self.size)
        image = _middle(image, *(min(side, longest) for side in sides))
        height, width = image.shape[:2]
        # NumPy refuses a size that is too large with errors that commands expect.
        resized = np.empty((*self._resized(height, width), self.channels), np.uint8)
        window, out = (0, 0, height, width), torch.from_numpy(resized)
        (native_crop() or by_pillow)(torch.from_numpy(image), window, "bilinear", out)
        return _middle(resized, *self.size).copy()


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, C): the middle of an image, which shares its memory."""
    top, left = (
        round((side - wanted) / 2)
        for side, wanted in zip(image.shape, (height, width), strict=False)
    )
    return image[top : top + height, left : left + width]


def check_fits(source: Source, form: ImageFormat, adapt: bool = False) -> None:
    """Refuses images that an encoder was not made for.

    Args:
        source: of the images. Files are read in any size and colour.
        form: what the encoder takes.
        adapt: whether images in memory may be resized and change their channels.

    Raises:
        ValueError: as described, or files for an encoder that has no size.
    """
    if not isinstance(source, ArraySource):
        if form.size is None:
            raise ValueError(
                f"{source.name} holds files of any size, and the encoder's input size is unknown: "
                "give an image size"
            )
        return
    if adapt:
        return
    height, width, channels = source.images.shape[1:]
    hint = "; the command `evaluate transfer` resizes and converts (adapt=True)"
    if channels != form.channels:
        raise ValueError(
            f"{source.name} has images of {channels} channels, the encoder takes {form.channels}"
            + hint
        )
    if form.size is not None and (height, width) != form.size:
        raise ValueError(
            f"{source.name} has images of {height} x {width} pixels, the encoder was trained on "
            f"{form.size[0]} x {form.size[1]}" + hint
        )


def pictures(
    source: Source, form: ImageFormat, reading: Reading, words: str = "reading"
) -> Iterator[Pictures]:
    """All images of a source in its order, without augmentation, `reading.chunk` at a time.

    Images in memory are resized as a whole where the encoder has another size; files as
    `CentreCrop` does.

    Raises:
        BadImageError: an image that cannot be read, under the policy 'error', or none that can.
        RuntimeError: storage does not answer.
    """
    labels = torch.from_numpy(np.asarray(source.labels, np.int64))
    if isinstance(source, ArraySource):
        for first in range(0, len(source), reading.chunk):
            part = slice(first, first + reading.chunk)
            images = with_channels(source.images[part].to(reading.device), form.channels)
            shape = tuple(images.shape[1:3])
            if form.size is not None and shape != form.size:
                whole = np.tile(np.array([0, 0, *shape]), (len(images), 1))
                images = crop(images, whole, form.size, "bilinear")
            yield Pictures(images.permute(0, 3, 1, 2), labels[part])
            reading.progress(words, min(first + reading.chunk, len(source)), len(source))
        return
    task = CentreCrop(source, form.size, form.channels, reading.reduced_decoding)
    rows: list[np.ndarray] = []
    numbers: list[int] = []
    read, last = 0, None
    for number, result in enumerate(in_order(source, task, reading.workers)):
        if result.found is not None and reading.bad.add(result.found):
            last = result.found
        else:
            rows.append(result.pixels)
            numbers.append(number)
            read += 1
        if rows and (len(rows) == reading.chunk or number + 1 == len(source)):
            images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
            yield Pictures(images, labels[numbers])
            rows, numbers = [], []
        reading.progress(words, number + 1, len(source))
    if not read:
        raise BadImageError(
            BadImage(-1, source.name, f"no image can be read, nor {last.identity}: {last.reason}")
        )


# RandomResizedCrop with its usual distributions and a mirror, nothing else.
CROP_AND_FLIP = ViewSpecification(
    crop_area=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear"
)
# Mirrored digits are other characters, and small pictures of one thing in the middle lose it in a
# small crop.
AUGMENTATIONS = {
    "digits": ViewSpecification(crop_area=(0.6, 1.0), crop_ratio=(3 / 4, 4 / 3)),
    "fashion-mnist": ViewSpecification(crop_area=(0.3, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5),
}


def training_crops(
    source: Source,
    form: ImageFormat,
    reading: Reading,
    batch_size: int,
    seed: int,
    augmentation: ViewSpecification = CROP_AND_FLIP,
) -> ViewLoader:
    """Batches of one randomly cropped and mirrored view, shuffled in every epoch.

    Args:
        source: of the images.
        form: what the encoder takes.
        reading: device, workers and policy.
        batch_size: images per step; all of them where there are fewer.
        seed: of order and crops.
        augmentation: what is drawn; its size is replaced by the encoder's.
    """
    size = form.size
    if size is None:
        size = tuple(source.images.shape[1:3])
    view = replace(augmentation, size=tuple(size))
    batch_size = min(batch_size, len(source))
    reduced = reading.reduced_decoding and not isinstance(source, ArraySource)
    # A last batch of one image has no batch statistics.
    lonely = len(source) % batch_size == 1 and len(source) > batch_size
    return ViewLoader(
        source,
        Views("evaluation", (view,), form.mean, form.std, reduced),
        batch_size,
        seed=seed,
        workers=reading.workers,
        device=reading.device,
        drop_last=lonely,
        on_bad_image=reading.bad,
    )
