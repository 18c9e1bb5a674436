"""Images in memory."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..decoding import Decoded, Reduce, in_channels, picture
from .base import Labelled

if TYPE_CHECKING:
    from PIL import Image

    from ..datasets import ImageDataset

# Of how many images the contents enter the fingerprint.
SAMPLED = 1024


class ArraySource(Labelled):
    """Images of one size in memory.

    Args:
        images: (N, H, W, C) uint8, torch on the CPU or numpy, C = 1 or 3; any strides, and not
            copied, so that it may be mapped from a file.
        labels: (N,) integers, at least 0, or None.
        name: for messages.
        classes: names of the classes, in the order of their labels.

    Raises:
        ValueError: another dtype or shape, no images, labels that do not fit.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[int] | None = None,
        *,
        name: str = "array",
        classes: Sequence[str] | None = None,
    ) -> None:
        images = images if isinstance(images, Tensor) else torch.as_tensor(images, device="cpu")
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                "images must be (N, H, W, C) uint8 with C = 1 or 3, "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        if not images.numel():
            raise ValueError(f"{name}: holds no images")
        if images.device.type != "cpu":
            raise ValueError(f"images must be on the CPU, got {images.device}")
        self.name = name
        self.images = images
        self.classes = None if classes is None else list(classes)
        self._labels = None if labels is None else _checked_labels(labels, len(images), classes)

    @classmethod
    def of_dataset(cls, dataset: ImageDataset, split: str = "train") -> ArraySource:
        """One split of a named data set: 'train', 'test' or 'unlabelled'.

        Raises:
            ValueError: a split that the data set lacks.
        """
        if split not in dataset.splits:
            there = ", ".join(dataset.splits)
            raise ValueError(f"{dataset.name} has no split {split!r}; there are {there}")
        images = getattr(dataset, f"{split}_images")
        labels = getattr(dataset, f"{split}_labels", None)
        return cls(
            images.permute(0, 2, 3, 1),
            labels,
            name=f"{dataset.name} {split}",
            classes=dataset.class_names,
        )

    def __len__(self) -> int:
        return len(self.images)

    def identity(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def encoded(self, index: int) -> bytes:
        """There are none.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self.name} holds pixels, not encoded files: use image() or images")

    def pixels(self, index: int, channels: int = 3, reduce: Reduce | None = None) -> Decoded:
        pixels = self.images[index].contiguous().numpy()
        return Decoded(in_channels(pixels, channels), *pixels.shape[:2])

    def image(self, index: int) -> Image.Image:
        return picture(self.images[index].contiguous().numpy())

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        return np.full((len(indices), 2), self.images.shape[1:3], dtype=np.int32)

    def fingerprint(self) -> str:
        """Of shape, labels and some of the contents: images in memory have no names that
        distinguish two sets."""
        digest = hashlib.sha256(f"barlow_fast array 1, {tuple(self.images.shape)}\n".encode())
        step = -(-len(self.images) // SAMPLED)
        digest.update(b"%d" % zlib.crc32(self.images[::step].contiguous().numpy()))
        if self._labels is not None:
            digest.update(self._labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]


def _checked_labels(labels: object, count: int, classes: Sequence[str] | None) -> np.ndarray:
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be ({count},) integers, got shape {array.shape} {array.dtype}"
        )
    array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"labels must be at least 0, got {array.min()}")
    if classes is not None and array.max() >= len(classes):
        raise ValueError(f"label {array.max()} where {len(classes)} classes are named")
    return array
