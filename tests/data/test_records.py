"""CIFAR and STL-10 from small files in the formats of the real ones."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sources import assert_is_a_source

from barlow_fast.data import datasets, load, records
from barlow_fast.data.records import CIFAR_10, CIFAR_100, CifarFiles
from barlow_fast.data.sources import ArraySource, open_source

NAMED = {"cifar10": CIFAR_10, "cifar100": CIFAR_100}


def cifar_images(count: int, seed: int) -> np.ndarray:
    """(N, 3, 32, 32) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_cifar(folder: Path, files: CifarFiles, per_file: int = 3) -> dict[str, np.ndarray]:
    """Small files; the images of each, and labels that run through the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, name in enumerate((*files.train, *files.test)):
        images = cifar_images(per_file, seed)
        labels = (np.arange(per_file) + seed) % files.classes
        coarse = np.full((per_file, files.label_bytes - 1), 255, np.uint8)
        record = (coarse, labels[:, None].astype(np.uint8), images.reshape(per_file, -1))
        (folder / name).write_bytes(np.concatenate(record, 1).tobytes())
        written[name] = images
    names = "".join(f"class {i}\n" for i in range(files.classes))
    (folder / files.names).write_text(names + "\n")
    return written


@pytest.mark.parametrize("name", list(NAMED))
@pytest.mark.parametrize("nested", [True, False])
def test_cifar_from_a_folder(tmp_path: Path, name: str, nested: bool):
    files = NAMED[name]
    written = write_cifar(tmp_path / files.folder if nested else tmp_path, files)
    data = load(name, tmp_path)
    expected = np.concatenate([written[n] for n in files.train])
    assert data.train_images.dtype == torch.uint8
    np.testing.assert_array_equal(data.train_images.numpy(), expected)
    np.testing.assert_array_equal(data.test_images.numpy(), written[files.test[0]])
    assert data.train_labels[:3].tolist() == [0, 1, 2]
    assert data.test_labels[0] == len(files.train)
    assert data.classes == files.classes
    assert data.class_names[3] == "class 3"
    assert data.image_size == (32, 32)


def test_cifar_as_a_source(tmp_path: Path):
    written = write_cifar(tmp_path, CIFAR_10)
    source = open_source("cifar10", "test", data_dir=tmp_path)
    assert_is_a_source(source)
    image = written["test_batch.bin"][1].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(source.image(1)), image)
    assert source.classes[source.label(1)] == "class 6"


def test_files_of_another_size_are_refused(tmp_path: Path):
    write_cifar(tmp_path, CIFAR_10)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"x", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path}: {len(content)} bytes.*3073"):
            load("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        load("cifar10", tmp_path)


def test_a_label_out_of_range_is_refused(tmp_path: Path):
    write_cifar(tmp_path, CIFAR_10)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=rf"{path}: label 10 where 0 to 9"):
        load("cifar10", tmp_path)


def test_names_of_classes_are_counted_and_may_be_missing(tmp_path: Path):
    write_cifar(tmp_path, CIFAR_10)
    (tmp_path / CIFAR_10.names).write_text("airplane\n")
    with pytest.raises(ValueError, match="1 names for 10 classes"):
        load("cifar10", tmp_path)
    (tmp_path / CIFAR_10.names).unlink()
    assert load("cifar10", tmp_path).class_names is None


def test_the_pickled_version_is_not_read(tmp_path: Path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin.*pickled"):
        load("cifar10", tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="not a folder"):
        load("cifar10", file)


@pytest.fixture
def archive(tmp_path: Path) -> CifarFiles:
    """CIFAR-10 in small, packed as it is packed, at a URL that needs no network."""
    write_cifar(tmp_path / "made" / CIFAR_10.folder, CIFAR_10)
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "made" / CIFAR_10.folder, CIFAR_10.folder)
        outside = tarfile.TarInfo("../outside")
        tar.addfile(outside, io.BytesIO())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(CIFAR_10, url=path.as_uri(), sha256=digest)


def test_a_download_is_unpacked_and_then_used(tmp_path: Path, archive, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR_10", archive)
    target = tmp_path / "new" / "folder"
    data = load("cifar10", target)
    assert len(data.train_images) == 15
    assert [p.name for p in target.iterdir()] == [CIFAR_10.folder]
    assert not (tmp_path / "new" / "outside").exists()
    monkeypatch.setattr(datasets, "CIFAR_10", replace(archive, url="file:///nowhere"))
    assert torch.equal(load("cifar10", target).train_images, data.train_images)


def test_a_download_with_another_checksum_is_refused(tmp_path: Path, archive, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR_10", replace(archive, sha256="0" * 64))
    target = tmp_path / "new"
    with pytest.raises(ValueError, match=rf"SHA-256 is {archive.sha256}, not 0000"):
        load("cifar10", target)
    assert list(target.iterdir()) == []


def test_a_failed_download_says_what_else_can_be_done(tmp_path: Path, archive, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR_10", replace(archive, url="file:///nowhere/x.tar.gz"))
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 could not .*--data-dir"):
        load("cifar10", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# ---- STL-10


def write_stl10(folder: Path, unlabelled: bool = True) -> dict[str, np.ndarray]:
    """Small files; (N, H, W, 3) images of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for split, count in (("train", 4), ("test", 3), ("unlabeled", 5)):
        if split == "unlabeled" and not unlabelled:
            continue
        images = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        # Channel, then column, then row.
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(10 - i for i in range(count)))
        written[split] = images
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    return written


@pytest.mark.parametrize("nested", ["", "stl10_binary"])
def test_stl10_from_a_folder(tmp_path: Path, nested: str):
    written = write_stl10(tmp_path / nested)
    data = load("stl10", tmp_path)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), written["train"])
    np.testing.assert_array_equal(data.unlabelled_images.permute(0, 2, 3, 1), written["unlabeled"])
    assert data.train_labels.tolist() == [9, 8, 7, 6]
    assert data.splits == ("train", "test", "unlabelled")
    assert data.class_names == tuple("abcdefghij")
    source = open_source("stl10", "unlabelled", data_dir=tmp_path)
    assert_is_a_source(source)
    assert source.labels is None
    np.testing.assert_array_equal(np.asarray(source.image(4)), written["unlabeled"][4])


def test_stl10_without_its_largest_file(tmp_path: Path):
    write_stl10(tmp_path, unlabelled=False)
    data = load("stl10", tmp_path)
    assert data.unlabelled_images is None
    with pytest.raises(ValueError, match="no split 'unlabelled'"):
        ArraySource.of_dataset(data, "unlabelled")


def test_images_of_stl10_are_mapped_and_their_file_is_never_written(tmp_path: Path):
    write_stl10(tmp_path)
    before = (tmp_path / "unlabeled_X.bin").read_bytes()
    load("stl10", tmp_path).unlabelled_images.zero_()
    assert (tmp_path / "unlabeled_X.bin").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train_X.bin", b"", "0 bytes are no whole number"),
        ("test_X.bin", bytes(27647), "27647 bytes are no whole number"),
        ("unlabeled_X.bin", bytes(100), "100 bytes are no whole number"),
        ("train_y.bin", bytes(3), "3 labels for 4 images"),
        ("train_y.bin", bytes(4), "labels from 0 to 0"),
        ("test_y.bin", bytes([1, 2, 11]), "labels from 1 to 11"),
        ("class_names.txt", b"a\nb", "2 names for 10"),
    ],
)
def test_damaged_files_of_stl10_are_named(tmp_path: Path, file: str, content: bytes, words: str):
    write_stl10(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load("stl10", tmp_path)
    assert str(tmp_path / file) in str(caught.value)


def test_a_failed_download_of_stl10_says_what_else_can_be_done(tmp_path: Path, monkeypatch):
    torchvision_datasets = pytest.importorskip("torchvision.datasets")

    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision_datasets, "STL10", fail)
    with pytest.raises(FileNotFoundError, match=r"no network.*--data-dir"):
        load("stl10", tmp_path / "new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    with pytest.raises(FileNotFoundError, match=r"neither train_X\.bin nor stl10_binary"):
        load("stl10", tmp_path / "other")


def test_a_file_larger_than_the_data_set_is_not_read(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, CIFAR_10)
    monkeypatch.setattr(records, "LARGEST_FILE", 3073)
    with pytest.raises(ValueError, match="9219 bytes, more than the 3073 that it may have"):
        load("cifar10", tmp_path)


def test_labels_of_a_data_set_are_optional():
    digits = load("digits")
    bare = replace(digits, train_labels=None, test_labels=None)
    assert ArraySource.of_dataset(bare).labels is None
    with pytest.raises(ValueError, match="3 class names for 10 classes"):
        replace(digits, class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="unlabelled_images must be"):
        replace(digits, unlabelled_images=torch.zeros(3))
