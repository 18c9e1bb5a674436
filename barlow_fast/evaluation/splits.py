"""Labelled images to judge an encoder with: one part to learn from, one to be scored on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.datasets import ImageDataset
from ..data.decoding import MAX_PIXELS, Decoded, Reduce
from ..data.sources import ArraySource, Parts, Source, find_parts, open_source, passed_over
from ..data.sources.base import Labelled
from ..data.sources.parts import HELD_OUT
from ..terminal import printable

if TYPE_CHECKING:
    from PIL import Image

MOST_CLASSES = 2**16  # of labels without names


class SubsetSource(Labelled):
    """Some images of a source, in the order of their numbers, as a source of its own.

    Args:
        source: that the images come from.
        indices: (M,) integers, numbers of its images.
        name: for messages; None for the source's own.

    Raises:
        ValueError: no indices.
        IndexError: an index outside of the source.
    """

    def __init__(self, source: Source, indices: np.ndarray, name: str | None = None) -> None:
        self.indices = np.asarray(indices, np.int64)
        self.name = source.name if name is None else name
        if not len(self.indices):
            raise ValueError(f"{self.name}: holds no images")
        if not 0 <= self.indices.min() <= self.indices.max() < len(source):
            raise IndexError(f"{source.name} has {len(source)} images, not all of the indices")
        self.source = source
        self.ignored = getattr(source, "ignored", 0)
        self.max_pixels = getattr(source, "max_pixels", MAX_PIXELS)
        self.classes = source.classes
        self._labels = None if source.labels is None else source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def identity(self, index: int) -> str:
        return self.source.identity(self._number(index))

    def encoded(self, index: int) -> bytes:
        return self.source.encoded(self._number(index))

    def pixels(self, index: int, channels: int = 3, reduce: Reduce | None = None) -> Decoded:
        return self.source.pixels(self._number(index), channels, reduce)

    def image(self, index: int) -> Image.Image:
        return self.source.image(self._number(index))

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        return self.source.sizes(self.indices[indices])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def _number(self, index: int) -> int:
        self._check_index(index)
        return int(self.indices[index])


def subset(source: Source, indices: np.ndarray, name: str | None = None) -> Source:
    """Some images of a source. Of images in memory the result is in memory again, because that is
    what is rendered fastest.

    Args, Raises: as `SubsetSource`.
    """
    if not isinstance(source, ArraySource):
        return SubsetSource(source, indices, name)
    return ArraySource(
        source.images[np.asarray(indices, np.int64)],
        None if source.labels is None else source.labels[indices],
        name=source.name if name is None else name,
        classes=source.classes,
    )


@dataclass(frozen=True)
class LabelledSplits:
    """Images to learn from and images to be scored on, each with a label in [0, `classes`).

    Raises:
        ValueError: images without labels, fewer than two classes among the training images, a label
            outside of [0, `classes`).
    """

    name: str
    train: Source
    test: Source
    classes: int
    class_names: tuple[str, ...] | None = None
    notes: dict[str, object] = field(default_factory=dict)  # how the split was made

    def __post_init__(self) -> None:
        for source in (self.train, self.test):
            _check_labels(source, self.classes)
        found = np.unique(self.train.labels)
        if len(found) < 2:
            raise ValueError(
                f"{self.train.name}: all {len(self.train)} training images are of one class, "
                f"{self.called(int(found[0]))}; a classifier takes at least two"
            )

    @property
    def in_memory(self) -> bool:
        """Whether both parts are arrays, rather than files that have to be decoded."""
        return isinstance(self.train, ArraySource) and isinstance(self.test, ArraySource)

    def called(self, label: int) -> str:
        """The name of a class, or its number where it has none."""
        return str(label) if self.class_names is None else self.class_names[label]

    def __str__(self) -> str:
        ignored = dict.fromkeys(passed_over(source) for source in (self.train, self.test))
        return "; ".join(
            (
                f"{self.name}: {len(self.train):,} training and {len(self.test):,} test images, "
                f"{self.classes} classes",
                *filter(None, ignored),
            )
        )


def dataset_splits(dataset: ImageDataset) -> LabelledSplits:
    """The training and test images of a data set in memory.

    Raises:
        ValueError: it has no labels, or no images in a part.
    """
    for part in ("train", "test"):
        if not len(getattr(dataset, f"{part}_images")):
            raise ValueError(f"{dataset.name} has no {part} images")
        if getattr(dataset, f"{part}_labels") is None:
            raise ValueError(f"{dataset.name} has no labels for its {part} images")
    return LabelledSplits(
        dataset.name,
        ArraySource.of_dataset(dataset, "train"),
        ArraySource.of_dataset(dataset, "test"),
        dataset.classes,
        dataset.class_names,
        {"split": "of the data set"},
    )


def folder_splits(
    folder: str | Path,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    allow_symlinks: bool = False,
) -> LabelledSplits:
    """The labelled images of a folder.

    A folder that is divided into training and held-out images (`find_parts`) has its split already;
    in each of the two a sub-folder per class (or tar shards with labels, where class numbers have
    to agree), and the same classes in both. Any other folder holds a sub-folder per class and is
    split here: of each class the same share, at least one image, is kept for the test, drawn by
    (seed, class).

    Args:
        folder: as described.
        test_fraction: share of the images of each class that score, in (0, 1), where the folder
            has no split of its own.
        seed: of that split.
        allow_symlinks: as `FolderSource` takes it.

    Raises:
        ValueError: not a folder, images without a class, classes that differ between the parts, a
            part without images, fewer than two classes, a class too small to be split.
        OSError: a folder cannot be listed.
    """
    folder = Path(folder)
    name = printable(str(folder))
    if not folder.is_dir():
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise ValueError(f"{name} {problem}")
    parts = find_parts(folder)
    if parts.held_out is not None:
        train = open_source(parts.train, allow_symlinks=allow_symlinks)
        return _divided(name, train, parts, allow_symlinks)
    if parts.train != folder:
        raise ValueError(
            f"{name} has a folder {printable(parts.train.name)} and none to score on: it takes one "
            f"of {', '.join(HELD_OUT)} beside it"
        )
    whole = open_source(folder, allow_symlinks=allow_symlinks)
    _check_labels(whole)
    learned, scored = stratified(whole.labels, test_fraction, seed, whole.classes)
    return LabelledSplits(
        name,
        subset(whole, learned, f"{name} (training part)"),
        subset(whole, scored, f"{name} (test part)"),
        _class_count(whole),
        tuple(whole.classes) if whole.classes else None,
        {"split": "drawn here", "test_fraction": test_fraction, "split_seed": seed},
    )


def held_out_splits(folder: str | Path, train: Source) -> LabelledSplits | None:
    """The training images of a divided folder and the held-out ones beside them; None where there
    are none.

    Args:
        folder: as `open_source` took it.
        train: what `open_source` gave.

    Raises:
        ValueError, OSError: as `folder_splits`.
    """
    parts = find_parts(folder) if Path(folder).is_dir() else Parts(Path(folder))
    return None if parts.held_out is None else _divided(printable(str(folder)), train, parts)


def _divided(
    name: str, train: Source, parts: Parts, allow_symlinks: bool = False
) -> LabelledSplits:
    test = open_source(parts.held_out, allow_symlinks=allow_symlinks)
    for source in (train, test):
        _check_labels(source)
    _check_same_classes(train, test)
    return LabelledSplits(
        name,
        train,
        test,
        _class_count(train),
        tuple(train.classes) if train.classes else None,
        {"split": f"folders {parts.train.name} and {parts.held_out.name}"},
    )


def stratified(
    labels: np.ndarray, fraction: float, seed: int, class_names: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divides samples so that each class gives the same share to the second part.

    Args:
        labels: (N,) integers.
        fraction: the share, in (0, 1); of a class of n samples the second part gets the nearest
            whole number to fraction * n, at least 1 and at most n - 1.
        seed: which samples; each class draws on its own, so one class does not depend on another.
        class_names: for messages.

    Returns:
        (indices of the first part, indices of the second), each ascending.

    Raises:
        ValueError: a fraction out of its range, a class of one sample.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {fraction}")
    second = []
    for label, members in _by_class(labels):
        if len(members) < 2:
            called = class_names[label] if class_names else label
            raise ValueError(f"class {called} has one image: it takes two to have one in each part")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second.append(_drawn(members, count, seed, label))
    chosen = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def balanced_subset(
    labels: np.ndarray, fraction: float, seed: int, class_names: tuple[str, ...] | None = None
) -> np.ndarray:
    """A class-balanced part of a training set, as semi-supervised protocols learn from.

    From each of the K classes come the nearest whole number to fraction * N / K samples, or all
    where a class has fewer. A fraction of 1 gives every sample.

    Args:
        labels: (N,) integers.
        fraction: in (0, 1].
        seed: which samples; the same seed gives the same ones on every machine.
        class_names: for messages.

    Returns:
        Indices, ascending.

    Raises:
        ValueError: a fraction out of its range, or so small that classes get no sample.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if fraction == 1:
        return np.arange(len(labels))
    groups = list(_by_class(labels))
    count = round(fraction * len(labels) / len(groups))
    if count < 1:
        first = groups[0][0]
        raise ValueError(
            f"fraction {fraction:g} of {len(labels)} images in {len(groups)} classes leaves "
            f"class {class_names[first] if class_names else first} and the others without a "
            f"sample: it must be at least {len(groups) / len(labels):.3g}"
        )
    return np.sort(
        np.concatenate([_drawn(members, count, seed, label) for label, members in groups])
    )


def with_training_images(splits: LabelledSplits, indices: np.ndarray) -> LabelledSplits:
    """The same test images, and only some of the training images.

    Raises:
        ValueError: what remains is of one class, or nothing.
    """
    return replace(splits, train=subset(splits.train, indices))


def _by_class(labels: np.ndarray):
    """(label, numbers of its samples) for each class there is."""
    for label in np.unique(labels).tolist():
        yield label, np.flatnonzero(labels == label)


def _drawn(members: np.ndarray, count: int, seed: int, label: int) -> np.ndarray:
    return np.random.default_rng((seed, label)).permutation(members)[:count]


def _class_count(source: Source) -> int:
    """Of labels without names the largest decides how large a classifier is."""
    if source.classes:
        return len(source.classes)
    count = int(source.labels.max()) + 1
    if count > max(MOST_CLASSES, len(source)):
        raise ValueError(
            f"{source.name}: label {count - 1} of {len(source)} images: classes are numbered from "
            f"0, up to {MOST_CLASSES} or as many as there are images"
        )
    return count


def _check_labels(source: Source, classes: int | None = None) -> None:
    labels = source.labels
    if labels is None:
        raise ValueError(
            f"{source.name} has no labels: an evaluation takes images in one folder per class"
        )
    without = np.flatnonzero(labels < 0)
    if len(without):
        raise ValueError(
            f"{source.name}: {len(without)} of {len(labels)} images have no class, such as "
            f"{source.identity(int(without[0]))}"
        )
    if classes is not None and labels.max() >= classes:
        raise ValueError(f"{source.name}: label {labels.max()} where there are {classes} classes")


def _check_same_classes(train: Source, test: Source) -> None:
    if train.classes is None or test.classes is None:
        return
    for ours, theirs, missing in ((train, test, "test"), (test, train, "training")):
        differing = [name for name in ours.classes if name not in set(theirs.classes)]
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise ValueError(
                f"the classes of the two parts differ: {differing[0]}{more} of {ours.name} "
                f"is not among the {missing} images, {theirs.name}"
            )
    if train.classes != test.classes:
        raise ValueError(f"{train.name} and {test.name} number their classes differently")
