"""Splits: shares, seeds, folders, and refusals."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import dataset, write_classes
from PIL import Image

from barlow_fast.evaluation import balanced_subset, dataset_splits, folder_splits, stratified
from barlow_fast.evaluation.splits import subset

LABELS = np.repeat([0, 1, 2], [50, 30, 5])


def test_each_class_gives_the_same_share():
    first, second = stratified(LABELS, 0.2, seed=3)
    assert sorted([*first, *second]) == list(range(len(LABELS)))
    assert np.bincount(LABELS[second]).tolist() == [10, 6, 1]


def test_a_split_depends_on_its_seed_alone():
    again = stratified(LABELS, 0.2, seed=3)
    np.testing.assert_array_equal(stratified(LABELS, 0.2, seed=3)[1], again[1])
    assert stratified(LABELS, 0.2, seed=4)[1].tolist() != again[1].tolist()


def test_both_parts_have_every_class_however_small():
    labels = np.array([0, 0, 1, 1])
    for fraction in (0.01, 0.99):
        for part in stratified(labels, fraction, seed=0):
            assert sorted(labels[part]) == [0, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_share_of_nothing_or_all_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        stratified(LABELS, fraction, 0)


def test_a_subset_is_balanced_and_always_the_same():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    chosen = balanced_subset(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10] * 10
    assert chosen.tolist() == balanced_subset(labels, 0.1, seed=0).tolist()
    assert chosen.tolist() != balanced_subset(labels, 0.1, seed=1).tolist()


def test_a_subset_takes_all_of_a_class_that_is_too_small():
    assert np.bincount(LABELS[balanced_subset(LABELS, 0.5, 0)]).tolist() == [14, 14, 5]


def test_the_whole_is_every_sample():
    assert balanced_subset(LABELS, 1, 0).tolist() == list(range(len(LABELS)))


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(0.01, "leaves class dog and the others without"), (0, "in"), (1.5, "in"), (-1, "in")],
)
def test_a_fraction_must_give_each_class_a_sample(fraction: float, message: str):
    with pytest.raises(ValueError, match=message):
        balanced_subset(LABELS, fraction, 0, ("dog", "cat", "cow"))


def test_the_splits_of_a_data_set():
    splits = dataset_splits(dataset(80, 40))
    assert (len(splits.train), len(splits.test), splits.classes) == (80, 40, 4)
    assert splits.in_memory


WHOLE = dataset()
ONE_CLASS = "all 80 training images are of one class, 0"
NO_TEST = {"test_images": WHOLE.test_images[:0], "test_labels": WHOLE.test_labels[:0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "patterns has no labels for its train images"),
        ({"test_labels": None}, "patterns has no labels for its test images"),
        ({"train_labels": torch.zeros(80, dtype=torch.int64)}, ONE_CLASS),
        (NO_TEST, "patterns has no test images"),
    ],
    ids=["train labels", "test labels", "one class", "no test images"],
)
def test_data_sets_that_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataset_splits(replace(WHOLE, **changes))


@pytest.mark.parametrize("scored", ["val", "test", "validation"])
def test_a_folder_with_a_split(tmp_path: Path, scored: str):
    write_classes(tmp_path / "train", {"a": 3, "b": 2})
    write_classes(tmp_path / scored, {"a": 1, "b": 2})
    splits = folder_splits(tmp_path)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert splits.class_names == ("a", "b")
    assert splits.notes == {"split": f"folders train and {scored}"}
    assert not splits.in_memory


def test_val_comes_before_test(tmp_path: Path):
    for part, count in (("train", 2), ("val", 3), ("test", 4)):
        write_classes(tmp_path / part, {"a": count, "b": count})
    assert len(folder_splits(tmp_path).test) == 6


def test_a_folder_of_classes_is_split(tmp_path: Path):
    write_classes(tmp_path, {"a": 10, "b": 20})
    splits = folder_splits(tmp_path, test_fraction=0.3, seed=5)
    assert np.bincount(splits.train.labels).tolist() == [7, 14]
    assert np.bincount(splits.test.labels).tolist() == [3, 6]
    names = [{part.identity(i) for i in range(len(part))} for part in (splits.train, splits.test)]
    assert len(names[0] | names[1]) == 30
    again = folder_splits(tmp_path, test_fraction=0.3, seed=5)
    assert again.test.fingerprint() == splits.test.fingerprint()
    other = folder_splits(tmp_path, test_fraction=0.3, seed=6)
    assert other.test.fingerprint() != splits.test.fingerprint()


MORE = "c and 1 more of .*val is not among the training"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"train": {"a": 1, "b": 1}}, "none to score on"),
        ({"val": {"a": 1, "b": 1}, "more": {"a": 1}}, "none to learn from"),
        ({"train": {"a": 1, "b": 1}, "val": {"a": 1}}, "b of .*train is not among the test"),
        ({"train": {"a": 1, "b": 1}, "val": dict.fromkeys("abcd", 1)}, MORE),
        ({"train": {"a": 2}, "val": {"a": 1}}, "of one class, a"),
        ({"a": {".": 3}}, "of one class, a"),
        ({"a": {".": 3}, "b": {".": 1}}, "class b has one image"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, folders: dict, message: str):
    for name, classes in folders.items():
        for inner, count in classes.items():
            (tmp_path / name / inner).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", (9, 9)).save(tmp_path / name / inner / f"{number}.png")
    with pytest.raises(ValueError, match=message):
        folder_splits(tmp_path)


def test_images_without_a_class_are_refused(tmp_path: Path):
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="has no labels"):
        folder_splits(tmp_path)
    write_classes(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"1 of 5 images have no class, such as .*0\.png"):
        folder_splits(tmp_path)


def test_a_folder_that_is_none(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        folder_splits(tmp_path / "absent")


def test_a_subset_is_a_source_of_its_own(tmp_path: Path):
    whole = folder_splits(write_classes(tmp_path, {"a": 5, "b": 5}), test_fraction=0.5).train
    indices = np.array([3, 1])
    part = subset(whole, indices)
    assert len(part) == 2
    assert part.labels.tolist() == whole.labels[indices].tolist()
    assert [part.label(0), part.label(1)] == part.labels.tolist()
    assert part.identity(0) == whole.identity(3)
    assert part.encoded(1) == whole.encoded(1)
    np.testing.assert_array_equal(np.asarray(part.image(0)), np.asarray(whole.image(3)))
    assert part.sizes(np.array([0])).tolist() == [[12, 15]]
    assert part.fingerprint() != subset(whole, indices[::-1]).fingerprint()
    with pytest.raises(IndexError, match="none of number 2"):
        part.image(2)
    with pytest.raises(ValueError, match="holds no images"):
        subset(whole, indices[:0])
    with pytest.raises(IndexError, match="not all"):
        subset(whole, np.array([99]))


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_a_label_of_a_shard_decides_no_allocation(tmp_path: Path, parts: tuple[str, ...]):
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")

    def write(largest: int) -> Path:
        for part in parts:
            folder = tmp_path / str(largest) / part
            folder.mkdir(parents=True)
            with tarfile.open(folder / "x.tar", "w") as archive:
                for number in range(8):
                    label = b"%d" % (largest * (number % 2))
                    for name, content in (("png", image.getvalue()), ("cls", label)):
                        info = tarfile.TarInfo(f"{number}.{name}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
        return tmp_path / str(largest)

    assert folder_splits(write(999)).classes == 1000
    with pytest.raises(ValueError, match=r"label 2000000000 of 8 images: .* up to 65536"):
        folder_splits(write(2_000_000_000))
