"""Data sets: what they hold, and what happens when their files are wrong."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from barlow_fast.data import datasets, load
from barlow_fast.data.datasets import FASHION_MNIST_FILES, SYSTEM_FASHION_MNIST
from barlow_fast.data.idx import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx_round_trip(tmp_path: Path, images: np.ndarray, compress):
    path = tmp_path / "images"
    path.write_bytes(compress(idx_bytes(images)))
    read = read_idx(path, dimensions=3)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, images)


def damaged(images: np.ndarray) -> dict[str, tuple[bytes, str]]:
    """name -> (the file's bytes, what the error says)."""
    good = idx_bytes(images)
    packed = gzip.compress(good)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    return {
        "empty": (b"", "nothing"),
        "text": (b"<html>not found</html>", "not an IDX file"),
        "float type code": (bytes((0, 0, 0x0D, 3)) + good[4:], "not an IDX file"),
        "labels for images": (idx_bytes(images[:, 0, 0]), "3 dimension"),
        "header cut": (good[:10], "inside its header"),
        "values cut": (good[:-1], "cut short"),
        "bytes left over": (good + b"\0", "left over"),
        "huge sizes": (bytes((0, 0, 8, 3)) + struct.pack(">3I", *[2**32 - 1] * 3), "at most"),
        "gzip cut": (packed[:-9], "cut short"),
        "gzip of nothing": (packed[:2], "cut short"),
        "gzip damaged": (bytes(flipped), "gzip|cut short|IDX|left over"),
        "gzip checksum": (packed[:-8] + b"\0\0\0\0" + packed[-4:], "damaged"),
    }


@pytest.mark.parametrize("name", list(damaged(np.zeros((5, 4, 3), np.uint8))))
def test_a_damaged_idx_file_is_named(tmp_path: Path, images: np.ndarray, name: str):
    content, message = damaged(images)[name]
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def test_a_small_file_does_not_unpack_to_gigabytes(tmp_path: Path):
    path = tmp_path / "images.gz"
    header = struct.pack(">I3I", 0x803, 1000, 1024, 1024)
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(40):
            file.write(bytes(2**20))
    # The header decides, before anything is unpacked.
    with pytest.raises(ValueError, match="requests 1048576000 bytes"):
        read_idx(path, dimensions=3)
    path.write_bytes(header)
    with pytest.raises(ValueError, match="requests 1048576000 bytes"):
        read_idx(path, dimensions=3)
    labels = np.zeros(60_000, np.uint8)
    path.write_bytes(gzip.compress(idx_bytes(labels)))
    assert read_idx(path, dimensions=1).size == 60_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "images")
    with pytest.raises(OSError, match="not a regular file"):
        read_idx(tmp_path / "images", dimensions=3)


def test_sizes_beyond_the_limit_are_refused_before_reading(tmp_path: Path, images: np.ndarray):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(images))
    with pytest.raises(ValueError, match="at most 59"):
        read_idx(path, dimensions=3, limit=59)
    assert read_idx(path, dimensions=3, limit=60).size == 60


def test_digits_come_whole_and_in_order():
    digits = load("digits")
    assert digits.train_images.shape == (1197, 1, 8, 8)
    assert digits.test_images.shape == (600, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    assert digits.train_labels[:10].tolist() == list(range(10))
    assert set(digits.test_labels.tolist()) == set(range(10))
    mean, std = digits.normalisation()
    assert mean == pytest.approx(digits.train_images.double().mean().item() / 255, rel=1e-5)
    assert std == pytest.approx(digits.train_images.double().std().item() / 255, rel=1e-5)


def test_unknown_names_and_useless_folders_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown data set 'cifar'.*digits.*fashion-mnist"):
        load("cifar")
    with pytest.raises(ValueError, match="no data directory"):
        load("digits", tmp_path)


def write_fashion_mnist(folder: Path, train: int = 12, test: int = 6) -> None:
    """A small data set in the format of the real one."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        arrays = (
            rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            rng.integers(0, 10, count, dtype=np.uint8),
        )
        for name, array in zip(FASHION_MNIST_FILES[part], arrays, strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


@pytest.mark.parametrize("nested", ["", "FashionMNIST/raw"])
def test_fashion_mnist_from_a_folder(tmp_path: Path, nested: str):
    write_fashion_mnist(tmp_path / nested)
    data = load("fashion-mnist", tmp_path)
    assert data.train_images.shape == (12, 1, 28, 28)
    assert data.test_labels.shape == (6,)
    assert str(tmp_path) in str(data)


def test_a_folder_with_other_things_is_not_downloaded_into(tmp_path: Path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load("fashion-mnist", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a folder"):
        load("fashion-mnist", tmp_path / "file")


def test_missing_and_mismatched_parts_are_named(tmp_path: Path):
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(5, np.uint8))))
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        load("fashion-mnist", tmp_path)
    labels.write_bytes(gzip.compress(idx_bytes(np.full(6, 10, np.uint8))))
    with pytest.raises(ValueError, match="label 10"):
        load("fashion-mnist", tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        load("fashion-mnist", tmp_path)


def test_a_failed_download_says_what_else_can_be_done(tmp_path: Path, monkeypatch):
    torchvision_datasets = pytest.importorskip("torchvision.datasets")

    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision_datasets, "FashionMNIST", fail)
    monkeypatch.setattr(datasets, "SYSTEM_FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no network.*dataset-fashion-mnist.*--data-dir"):
        load("fashion-mnist", tmp_path / "new")


@pytest.mark.skipif(
    not SYSTEM_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_from_the_system():
    data = load("fashion-mnist")
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10
    assert data.normalisation() == pytest.approx((0.2860, 0.3530), abs=1e-4)


def test_a_download_is_requested(tmp_path: Path, monkeypatch):
    asked = []
    torchvision_datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(
        torchvision_datasets, "FashionMNIST", lambda *a, **options: asked.append((a, options))
    )
    datasets._download(tmp_path)
    assert asked == [((str(tmp_path),), {"download": True})]
