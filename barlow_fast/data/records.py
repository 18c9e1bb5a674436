"""CIFAR and STL-10 from their binary files: records of a fixed size, and nothing that is
unpickled.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html ("binary version": label bytes, then 3072
bytes of a 3 x 32 x 32 image) and https://cs.stanford.edu/~acoates/stl10/ (3 x 96 x 96, columns
before rows; labels from 1 in a file of their own).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import whole_folder
from ..inputs import open_regular
from ..terminal import printable


@dataclass(frozen=True)
class CifarFiles:
    """One of the two data sets, as its authors pack it."""

    name: str
    folder: str  # inside the archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int  # before each image; the last of them is the label
    classes: int
    names: str  # file of the classes' names
    url: str
    sha256: str

    @property
    def record(self) -> int:
        """Bytes of one label and image."""
        return self.label_bytes + 3 * 32 * 32


CIFAR_10 = CifarFiles(
    "CIFAR-10",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    label_bytes=1,
    classes=10,
    names="batches.meta.txt",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR_100 = CifarFiles(
    "CIFAR-100",
    "cifar-100-binary",
    ("train.bin",),
    ("test.bin",),
    label_bytes=2,  # one of 20 coarse classes, one of 100 fine ones
    classes=100,
    names="fine_label_names.txt",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)

STL10_FOLDER = "stl10_binary"
STL10_IMAGE = (3, 96, 96)
STL10_CLASSES = 10

# No file of these data sets is larger: STL-10's unlabelled images have 2.8e9 bytes.
LARGEST_FILE = 2**32
LONGEST_NAMES = 2**16

Part = tuple[Tensor, Tensor]  # images (N, 3, H, W) uint8, labels (N,) int64


def cifar(
    files: CifarFiles, data_dir: Path | None, cache: Path
) -> tuple[Path, Part, Part, tuple[str, ...] | None]:
    """(folder, training part, test part, names of the classes where there are some).

    Args:
        files: which data set.
        data_dir: the folder of its files or the one above; None for `cache`.
        cache: where downloads go.

    Raises:
        ValueError: a file is damaged; the message names it.
        FileNotFoundError: files are missing and cannot be downloaded.
    """
    folder = _folder(files.folder, files.train[0], data_dir, cache)
    if folder is None:
        folder = _download(files, data_dir or cache)
    parts = []
    for names in (files.train, files.test):
        pairs = [_records(folder / name, files) for name in names]
        parts.append(tuple(torch.cat(tensors) for tensors in zip(*pairs, strict=True)))
    return folder, *parts, _names(folder / files.names, files.classes)


def _records(path: Path, files: CifarFiles) -> Part:
    content = _content(path)
    if not content.size or content.size % files.record:
        raise ValueError(
            f"{printable(str(path))}: {content.size} bytes are no whole number of {files.name}'s "
            f"records of {files.record} bytes: the file is cut short or something else"
        )
    records = content.reshape(-1, files.record)
    labels = records[:, files.label_bytes - 1]
    if labels.max() >= files.classes:
        raise ValueError(
            f"{printable(str(path))}: label {labels.max()} where 0 to {files.classes - 1} are "
            "expected"
        )
    images = np.ascontiguousarray(records[:, files.label_bytes :]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def stl10(
    data_dir: Path | None, cache: Path
) -> tuple[Path, Part, Part, Tensor | None, tuple[str, ...] | None]:
    """(folder, training part, test part, unlabelled images where their file is there, names of
    the classes where there are some). Images are mapped copy-on-write: memory is taken as they
    are looked at, and can be given back.

    Raises:
        ValueError: a file is damaged; the message names it.
        FileNotFoundError: files are missing and cannot be downloaded.
    """
    folder = _folder(STL10_FOLDER, "train_X.bin", data_dir, cache)
    if folder is None:
        folder = _download_stl10(data_dir or cache)
    parts = []
    for part in ("train", "test"):
        images = _mapped(folder / f"{part}_X.bin")
        path = folder / f"{part}_y.bin"
        labels = _content(path)
        if len(labels) != len(images):
            raise ValueError(
                f"{printable(str(path))}: {len(labels)} labels for {len(images)} images"
            )
        if not 1 <= labels.min() <= labels.max() <= STL10_CLASSES:
            raise ValueError(
                f"{printable(str(path))}: labels from {labels.min()} to {labels.max()} where 1 to "
                f"{STL10_CLASSES} are expected"
            )
        parts.append((images, torch.from_numpy(labels.astype(np.int64) - 1)))
    unlabelled = folder / "unlabeled_X.bin"
    extra = _mapped(unlabelled) if unlabelled.is_file() else None
    return folder, *parts, extra, _names(folder / "class_names.txt", STL10_CLASSES)


def _mapped(path: Path) -> Tensor:
    record = int(np.prod(STL10_IMAGE))
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size or size % record:
            raise ValueError(
                f"{printable(str(path))}: {size} bytes are no whole number of STL-10's images of "
                f"{record} bytes: the file is cut short or something else"
            )
        # Copy-on-write, since torch has no tensors that cannot be written to.
        columns = np.memmap(file, dtype=np.uint8, mode="c", shape=(size // record, *STL10_IMAGE))
    return torch.from_numpy(columns).transpose(2, 3)


def _content(path: Path) -> np.ndarray:
    """The bytes of a file of one of these data sets."""
    with _opened(path) as file:
        return np.fromfile(file, dtype=np.uint8)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path, LARGEST_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{printable(str(path))} is missing") from error
    except OSError as error:
        raise ValueError(f"{printable(str(path))}: {error.strerror}") from error


def _names(path: Path, count: int) -> tuple[str, ...] | None:
    """Names of the classes, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    with _opened(path) as file:
        lines = file.read(LONGEST_NAMES).decode("utf-8", "replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise ValueError(f"{printable(str(path))}: {len(names)} names for {count} classes")
    return names


def _folder(name: str, file: str, data_dir: Path | None, cache: Path) -> Path | None:
    """The folder with the files, if they are there; None: they may be downloaded.

    Raises:
        ValueError: `data_dir` is a file.
        FileNotFoundError: `data_dir` holds other things.
    """
    root = cache if data_dir is None else Path(data_dir)
    for folder in (root, root / name):
        if (folder / file).is_file():
            return folder
    if data_dir is None:
        return None
    if root.exists() and not root.is_dir():
        raise ValueError(f"{printable(str(root))} is not a folder")
    if root.is_dir() and any(root.iterdir()):
        raise FileNotFoundError(
            f"{printable(str(root))} holds neither {file} nor {name}/{file} (the binary version "
            "of the data set; the one for Python is pickled, and is not read)"
        )
    return None


def _download(files: CifarFiles, root: Path) -> Path:
    """Fetches the archive, compares its checksum and unpacks what is needed."""
    root.mkdir(parents=True, exist_ok=True)
    with whole_folder(root / files.folder) as partial:
        archive = partial / "archive"
        try:
            with urllib.request.urlopen(files.url, timeout=60) as response:  # a constant of ours
                found = _copy(response, archive)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{files.name} could not be downloaded to {printable(str(root))} ({error}). Unpack "
                f"{files.url} yourself and give --data-dir its folder."
            ) from error
        if found != files.sha256:
            raise ValueError(
                f"{files.url} has changed or was damaged on its way: its SHA-256 is {found}, "
                f"not {files.sha256}"
            )
        _unpack(archive, files, partial)
        archive.unlink()
    return root / files.folder


def _copy(response: object, path: Path) -> str:
    """Writes a download to a file; its SHA-256."""
    digest = hashlib.sha256()
    total = 0
    with open(path, "wb") as file:
        while block := response.read(2**20):
            total += len(block)
            if total > LARGEST_FILE:
                raise ValueError("it does not end")
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _unpack(archive: Path, files: CifarFiles, folder: Path) -> None:
    """Takes the data set's own files out of its archive, by name."""
    with tarfile.open(archive, "r:gz") as tar:
        for name in (*files.train, *files.test, files.names):
            source = tar.extractfile(f"{files.folder}/{name}")
            with source, open(folder / name, "wb") as file:
                shutil.copyfileobj(source, file, 2**20)


def _download_stl10(root: Path) -> Path:
    try:
        from torchvision.datasets import STL10

        STL10(str(root), split="train", download=True)
    except (ImportError, RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"STL-10 could not be downloaded to {printable(str(root))} ({error}). Unpack "
            "stl10_binary.tar.gz from https://cs.stanford.edu/~acoates/stl10/ yourself and give "
            "--data-dir its folder."
        ) from error
    return root / STL10_FOLDER
