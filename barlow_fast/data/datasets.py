"""Data sets that fit in memory, as uint8 tensors with labels for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..inputs import needed_for
from .idx import read_idx
from .records import CIFAR_10, CIFAR_100, CifarFiles, cifar, stl10

# Where Debian's package `dataset-fashion-mnist` puts its files.
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Where downloads go when no folder is given.
CACHE = Path.home() / ".cache" / "barlow_fast"

FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# scikit-learn keeps the order of the test part of the original collection, written by 13 people
# one after another. Cutting it without shuffling leaves mostly unseen hands in the test part:
# harder than a shuffled split (nearest neighbours on pixels reach 96 % instead of 98.6 %), and
# closer to what a representation is for.
DIGITS_TRAIN = 1197


@dataclass(frozen=True, repr=False)
class ImageDataset:
    """Images in memory, or mapped from files. Labels never reach the training; they score the
    features, and may be missing."""

    name: str
    source: str  # where the images came from, for the log
    train_images: Tensor  # (N, C, H, W) uint8
    train_labels: Tensor | None  # (N,) int64
    test_images: Tensor
    test_labels: Tensor | None
    classes: int
    unlabelled_images: Tensor | None = None  # a third split, of images without labels
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test", "unlabelled"):
            images = getattr(self, f"{part}_images")
            labels = getattr(self, f"{part}_labels", None)
            if images is None:
                continue
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise ValueError(
                    f"{part}_images must be (N, C, H, W) uint8, "
                    f"got {tuple(images.shape)} {images.dtype}"
                )
            if labels is not None and labels.shape != images.shape[:1]:
                raise ValueError(f"{len(images)} {part} images but {len(labels)} labels")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.classes} classes")

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts that there are, of 'train', 'test' and 'unlabelled'."""
        return ("train", "test") + (() if self.unlabelled_images is None else ("unlabelled",))

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.train_images.shape[-2:])

    def normalisation(self) -> tuple[float, float]:
        """(mean, standard deviation) of the training images, where white is 1."""
        values = self.train_images.to(torch.float32) / 255
        return values.mean().item(), values.std().item()

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"ImageDataset({self.name!r}, {len(self.train_images)} training and "
            f"{len(self.test_images)} test images, {self.channels} x {height} x {width}, "
            f"{self.classes} classes)"
        )

    def __str__(self) -> str:
        height, width = self.image_size
        return (
            f"{self.name}: {len(self.train_images)} training and {len(self.test_images)} test "
            f"images of {height} x {width} pixels, {self.classes} classes ({self.source})"
        )


def load(name: str, data_dir: Path | None = None) -> ImageDataset:
    """A data set by name.

    Args:
        name: one of `DATASETS`.
        data_dir: folder with the data set's files, or where to download them; None for the usual
            places.

    Raises:
        ValueError: an unknown name, a folder given to an embedded data set, damaged files (the
            message names the file).
        FileNotFoundError: files missing where they should be, and no way to get them.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name](data_dir)


def load_digits(data_dir: Path | None = None) -> ImageDataset:
    """scikit-learn's handwritten digits, 1797 images of 8 x 8 pixels that come with the package."""
    if data_dir is not None:
        raise ValueError("the digits come with scikit-learn: they take no data directory")
    with needed_for("the data set digits"):
        from sklearn.datasets import load_digits as load_from_sklearn

    bunch = load_from_sklearn()
    # 17 levels of gray, 0 to 16, stretched over a byte.
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return ImageDataset(
        "digits",
        "comes with scikit-learn",
        images[:DIGITS_TRAIN],
        labels[:DIGITS_TRAIN],
        images[DIGITS_TRAIN:],
        labels[DIGITS_TRAIN:],
        classes=10,
    )


def load_fashion_mnist(data_dir: Path | None = None) -> ImageDataset:
    """Fashion-MNIST, 70 000 images of 28 x 28 pixels, from `data_dir`, Debian's package or
    torchvision's download."""
    folder = _fashion_mnist_folder(data_dir)
    parts = {part: _read_pair(folder, *files) for part, files in FASHION_MNIST_FILES.items()}
    (train_images, train_labels), (test_images, test_labels) = parts["train"], parts["test"]
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{folder}: training images are {tuple(train_images.shape[2:])} pixels, "
            f"test images {tuple(test_images.shape[2:])}"
        )
    return ImageDataset(
        "fashion-mnist",
        f"from {folder}",
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes=10,
    )


def _fashion_mnist_folder(data_dir: Path | None) -> Path:
    """The folder that holds the four files; downloads them when there is none."""
    if data_dir is not None:
        data_dir = Path(data_dir)
        # torchvision nests its downloads in FashionMNIST/raw: accept its root as well.
        for folder in (data_dir, data_dir / "FashionMNIST" / "raw"):
            if _find(folder, FASHION_MNIST_FILES["train"][0]) is not None:
                return folder
        if data_dir.exists() and not data_dir.is_dir():
            raise ValueError(f"{data_dir} is not a folder")
        if data_dir.is_dir() and any(data_dir.iterdir()):
            names = ", ".join(f"{n}[.gz]" for pair in FASHION_MNIST_FILES.values() for n in pair)
            raise FileNotFoundError(f"{data_dir} does not hold Fashion-MNIST; it needs {names}")
    elif _find(SYSTEM_FASHION_MNIST, FASHION_MNIST_FILES["train"][0]) is not None:
        return SYSTEM_FASHION_MNIST
    return _download(data_dir or CACHE)


def _download(root: Path) -> Path:
    with needed_for("the download of Fashion-MNIST"):
        from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST could not be downloaded to {root} ({error}). Install Debian's package "
            "dataset-fashion-mnist, or give --data-dir a folder with its four files."
        ) from error
    return root / "FashionMNIST" / "raw"


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _read_pair(folder: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    paths = []
    for name in (images_name, labels_name):
        path = _find(folder, name)
        if path is None:
            raise FileNotFoundError(f"{folder} lacks {name}.gz")
        paths.append(path)
    images, labels = read_idx(paths[0], dimensions=3), read_idx(paths[1], dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{paths[1]}: {len(labels)} labels for {len(images)} images of {paths[0]}")
    if not images.size:
        raise ValueError(f"{paths[0]}: holds no images")
    if labels.max() > 9:
        raise ValueError(f"{paths[1]}: label {labels.max()} where 0 to 9 are expected")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).to(torch.int64)


def load_cifar10(data_dir: Path | None = None) -> ImageDataset:
    """CIFAR-10, 60 000 colour images of 32 x 32 pixels in 10 classes, from the binary version's
    files in `data_dir`, or downloaded."""
    return _from_cifar("cifar10", CIFAR_10, data_dir)


def load_cifar100(data_dir: Path | None = None) -> ImageDataset:
    """CIFAR-100, the same with 100 classes; the labels are the fine ones."""
    return _from_cifar("cifar100", CIFAR_100, data_dir)


def _from_cifar(name: str, layout: CifarFiles, data_dir: Path | None) -> ImageDataset:
    folder, train, test, names = cifar(layout, data_dir, CACHE)
    return ImageDataset(
        name, f"from {folder}", *train, *test, classes=layout.classes, class_names=names
    )


def load_stl10(data_dir: Path | None = None) -> ImageDataset:
    """STL-10, colour images of 96 x 96 pixels: 5000 and 8000 labelled ones in 10 classes, and
    100 000 without labels, from the binary files in `data_dir` or torchvision's download. The
    images are mapped from their files (3 GB), not read."""
    folder, train, test, unlabelled, names = stl10(data_dir, CACHE)
    return ImageDataset(
        "stl10",
        f"from {folder}",
        *train,
        *test,
        classes=10,
        unlabelled_images=unlabelled,
        class_names=names,
    )


DATASETS: dict[str, Callable[[Path | None], ImageDataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "stl10": load_stl10,
}
