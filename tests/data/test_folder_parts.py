"""Folders that are divided into training and held-out images: every command takes the same part."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import encode, pixels, write_folder
from test_shards import write_shard
from typer.testing import CliRunner

from barlow_fast.cli.app import app
from barlow_fast.data.sources import Parts, find_parts, open_source, passed_over
from barlow_fast.evaluation import folder_splits

IMAGE = encode(pixels(9, 9))


def made(root: Path, *names: str) -> Path:
    return write_folder(root, dict.fromkeys(names, IMAGE))


@pytest.mark.parametrize(
    ("names", "train", "held_out", "others"),
    [
        (("train/a/x.png", "val/a/y.png"), "train", "val", ()),
        (("Train/x.png", "Validation/y.png"), "Train", "Validation", ()),
        (("TRAINING/x.png", "valid/y.png"), "TRAINING", "valid", ()),
        (("train2017/x.jpg", "val2017/y.jpg", "annotations/z.json"), "train2017", "val2017", ()),
        (("training_set/x.png", "test_set/y.png"), "training_set", "test_set", ()),
        (("cats_train/x.png", "cats_val/y.png"), "cats_train", "cats_val", ()),
        (("train/x.png", "test/y.png", "val/z.png"), "train", "val", ("test",)),
        (("train/x.png", "val/y.png", "unlabeled/z.png"), "train", "val", ("unlabeled",)),
        (("train/x.png", "val/readme.txt"), "train", None, ()),
        (("train/0.tar", "val/0.tar"), "train", "val", ()),
        (("images/train/x.png", "images/val/y.png", "labels/train/x.txt"), "images/train",
         "images/val", ()),
        (("a/x.png", "b/y.png"), ".", None, ()),
        (("x.png", "y.png"), ".", None, ()),
        (("only/x.png",), ".", None, ()),
        (("bullet train/x.png", "car/y.png"), ".", None, ()),
        (("trainer/x.png", "tests/y.png"), ".", None, ()),
        (("a/train.png", "a/val.png"), ".", None, ()),
    ],
)  # fmt: skip
def test_what_a_folder_is_divided_into(tmp_path: Path, names, train, held_out, others):
    made(tmp_path, *names)
    assert find_parts(tmp_path) == Parts(
        tmp_path / train,
        None if held_out is None else tmp_path / held_out,
        tuple(tmp_path / other for other in others),
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/x.png", "extra/y.png"), r"train/ beside extra/.*: give .*train to train on it"),
        (("train/x.png", "car/y.png", "bus/z.png"), "bus/, car/.*if train/ is a class, rename it"),
        (("train/x.png", "y.png"), "beside images outside of it"),
        (("val/x.png",), "holds val/ and none to learn from: give the folder"),
        (("test/x.png", "car/y.png"), "holds test/ and none to learn from.*if test/ is a class"),
        (("train/x.png", "training/y.png"), "holds train/, training/: give the one to train on"),
        (("a/train/x.png", "a/test/y.png", "b/train/z.png"), "inside of its folders.*in a/"),
        (("p-train-0.tar", "p-validation-0.tar"), r"several parts.*'.*p-train\*\.tar'"),
        (("train.tar", "val.tar"), r"several parts.*'.*train\*\.tar'"),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path: Path, names, message):
    made(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        find_parts(tmp_path)
    for use in (open_source, folder_splits):
        with pytest.raises(ValueError, match=message):
            use(tmp_path)


def test_links_to_folders_count(tmp_path: Path):
    made(tmp_path / "elsewhere", "x.png")
    for part in ("train", "val"):
        (tmp_path / "root" / part).mkdir(parents=True)
        (tmp_path / "root" / part / "a").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root" / part / "back").symlink_to(tmp_path / "root")
    assert find_parts(tmp_path / "root").held_out == tmp_path / "root/val"


def test_all_commands_take_the_same_part(tmp_path: Path):
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val") for c in "ab" for i in range(3)]
    root = made(tmp_path / "root", *names)
    source, splits = open_source(root), folder_splits(root)
    assert len(source) == 6
    assert source.classes == ["a", "b"]
    assert passed_over(source) == f"not looked at: {root / 'val'}"
    assert passed_over(source, splits.test) == ""
    assert source.fingerprint() == splits.train.fingerprint()
    for arguments in (
        ("check", str(root)),
        ("pack", str(root), str(tmp_path / "packed")),
        ("show", str(root), "--preset", "cifar", "--output", str(tmp_path / "sheet.png")),
    ):
        output = CliRunner().invoke(app, ["data", *arguments]).output
        assert f"{root / 'train'}: 6 images in 2 classes" in output
        assert f"not looked at: {root / 'val'}" in output
    assert len(open_source(tmp_path / "packed")) == 6
    assert len(open_source(root, "val")) == 6


def test_shards_of_one_part_are_a_source(tmp_path: Path):
    for name in ("photos-train-0.tar", "photos-train-1.tar"):
        write_shard(tmp_path / name, {"x.png": IMAGE})
    assert len(open_source(tmp_path)) == 2
