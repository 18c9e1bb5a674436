"""Training fed by the loader: from files, with bad ones among them, resumed in mid-epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import pretrain
from runs import StopAt, assert_same
from sources import write_images

from barlow_fast.data import PRESETS, Views, ViewSpecification
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.sources import FolderSource, open_source
from barlow_fast.evaluation import (
    AVERAGE_POOL,
    ImageFormat,
    Reading,
    features_of_source,
    knn_accuracy,
)
from barlow_fast.evaluation.splits import held_out_splits, subset
from barlow_fast.training import Feeding, Trainer, TrainingInterrupted, configure, load_checkpoint
from barlow_fast.training.feeding import choose_views

SMALL = ["--epochs", "2", "--batch-size", "8", "--projector", "16-32", "--loader", "pil"]
SMALL += ["--workers", "0"]

VIEW = ViewSpecification(crop_area=(0.3, 1.0), flip=0.5, size=32)
VIEWS = Views("small", (VIEW, VIEW), (0.5,) * 3, (0.25,) * 3)
IN_PROCESS = Feeding(loader="pil", workers=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 JPEG files."""
    return write_images(tmp_path / "images", 20, 48, "jpg")


@pytest.fixture
def views(tmp_path) -> Path:
    pytest.importorskip("yaml")
    file = tmp_path / "small.yaml"
    file.write_text(VIEWS.to_yaml())
    return file


@pytest.fixture
def config(views):
    return configure(
        "files", views=str(views), epochs=2, batch_size=8, encoder_widths=(8, 16),
        projector=(16, 32), warmup_epochs=1,
    )  # fmt: skip


def spoil(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:100])
    return file


def test_files_train_and_nothing_is_scored(folder, config):
    with Trainer(config, FolderSource(folder), feeding=IN_PROCESS) as trainer:
        assert not trainer.scores
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.run()
    assert trainer.steps_per_epoch == 2
    assert [record["knn"] for record in trainer.history] == [None, None]
    assert trainer.before["raw"] is None
    assert trainer.before["correlation"].shape == (32, 32)
    after = list(trainer.model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_on_files_resumes_with_the_same_bits(folder, config, tmp_path, stop):
    """In the middle of an epoch and between two, with other workers than before."""
    path = tmp_path / "checkpoint.pt"
    source = FolderSource(folder)
    with Trainer(config, source, feeding=IN_PROCESS) as whole:
        whole.run()
    hooks = [StopAt(stop)]
    with (
        Trainer(config, source, "cpu", path, hooks, IN_PROCESS) as stopped,
        pytest.raises(TrainingInterrupted),
    ):
        stopped.run()
    state = load_checkpoint(path)
    assert (state["loader"]["epoch"], state["loader"]["batch"]) == divmod(stop, 2)
    with Trainer(config, source, "cpu", path, (), Feeding("pil", 1 if stop == 1 else 0)) as resumed:
        resumed.resume(path)
        resumed.run()
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_checkpoint_of_other_files_or_views_is_refused(folder, config):
    with Trainer(config, FolderSource(folder), feeding=IN_PROCESS) as trainer:
        state = trainer.state_dict()
    changes = {
        "images": (folder / "19.jpg").unlink,
        "views": lambda: Path(config.views).write_text(replace(VIEWS, std=(0.3,) * 3).to_yaml()),
    }
    for name, change in changes.items():
        change()
        with (
            Trainer(config, FolderSource(folder), feeding=IN_PROCESS) as other,
            pytest.raises(ValueError, match=rf"other images or views.*{name}"),
        ):
            other.load_state_dict(state)


def test_a_bad_image_is_skipped_or_an_error(folder, config):
    bad = spoil(folder / "07.jpg")
    source = FolderSource(folder)
    # 20 images, 16 of which are in an epoch: one of the two has this one at the latest.
    config = replace(config, epochs=6)
    with Trainer(config, source, feeding=replace(IN_PROCESS, on_bad_image="skip")) as trainer:
        trainer.run()
        assert [image.identity for image in trainer.loader.bad_images] == [str(bad)]
        assert np.isfinite(trainer.history[-1]["loss"])
    with (
        Trainer(config, source, feeding=IN_PROCESS) as trainer,
        pytest.raises(BadImageError, match=r"07\.jpg"),
    ):
        trainer.run()


@pytest.fixture
def divided(folder) -> Path:
    """train/ and val/ of two classes, and test/ with others; a damaged image in the first two."""
    root = folder.parent / "root"
    for number, file in enumerate(sorted(folder.iterdir()) * 2):
        inner = root / ("train/a", "train/b", "val/a", "val/b")[number % 4]
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{number}.jpg").write_bytes(file.read_bytes())
    for name in ("train/a/0.jpg", "val/b/3.jpg"):
        spoil(root / name)
    return root


def test_a_divided_folder_is_scored_on_its_held_out_images(divided, config):
    source = open_source(divided)
    splits = held_out_splits(divided, source)
    config = replace(config, epochs=1, neighbour_images=15, neighbours=1, precision="fp32")
    feeding = replace(IN_PROCESS, on_bad_image="skip")
    with Trainer(config, source, feeding=feeding, splits=splits) as trainer:
        trainer.run()
    (record,) = trainer.history
    form = ImageFormat(32, 3, VIEWS.mean, VIEWS.std)
    evenly = np.linspace(0, 19, 15).round().astype(int)
    reading = Reading(on_bad_image="skip", workers=0)
    (train, labels), (test, truth) = (
        features_of_source(trainer.model.encoder, subset(part, evenly), form, reading)
        for part in (splits.train, splits.test)
    )
    assert len(labels) == 14
    expected = knn_accuracy(train[AVERAGE_POOL], labels, test[AVERAGE_POOL], truth, k=1)
    assert record["knn"] == expected
    assert trainer.before["before"] is not None
    assert trainer.before["raw"] is None


def test_each_bad_image_is_reported_once_in_a_run(divided, config, caplog):
    """However many epochs and scores meet it, in training and in held-out images."""
    source = open_source(divided)
    splits = held_out_splits(divided, source)
    feeding = replace(IN_PROCESS, on_bad_image="skip")
    config = replace(config, epochs=3, evaluate_every=1)
    with Trainer(config, source, feeding=feeding, splits=splits) as trainer:
        trainer.run()
        trainer.correlation()
    left_out = sorted(line for line in caplog.messages if "left out" in line)
    assert [line.split(": ")[1] for line in left_out] == [
        str(divided / name) for name in ("train/a/0.jpg", "val/b/3.jpg")
    ]
    assert len(trainer.loader.bad_images) == 2
    caplog.clear()
    with (
        Trainer(config, source, feeding=IN_PROCESS, splits=splits) as trainer,
        pytest.raises(BadImageError, match=r"root/(train/a/0|val/b/3)\.jpg"),
    ):
        trainer.run()
    assert not [line for line in caplog.messages if "left out" in line]


@pytest.mark.usefixtures("undrawn")
def test_the_command_says_which_part_it_trains_and_scores_on(divided, views, tmp_path):
    given = ("--data", divided, "--views", views, *SMALL, "--on-bad-image", "skip")
    for more in (["--dry-run"], ["--out", tmp_path / "out"]):
        result = pretrain(*given, *more)
        assert f"{divided}/train" in result.output
        assert f"k-NN      scores 20 images of {divided}/val by 20 of training" in result.output
    assert "skipped   2 images" in result.output
    assert "after training\n" in result.output
    for file in (divided / "val").rglob("*.jpg"):
        file.rename(divided / "val" / file.name)
    result = pretrain(*given, "--dry-run")
    assert f"k-NN      is skipped: {divided}/val has no labels" in result.output
    (divided / "val").rename(divided / "extra")
    result = pretrain(*given, "--dry-run", code=2)
    assert f"train/ beside extra/, which may be classes or another part: give {divided}/train" in (
        result.output
    )


def test_the_command_trains_on_files(folder, views, tmp_path):
    out = tmp_path / "out"
    result = pretrain("--data", folder, "--views", views, *SMALL, "--out", out)
    for part in ("20 training images", "views     small, by pil (requested)", "is skipped"):
        assert part in result.output, part
    assert "random weights" not in result.output
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    # The checkpoint knows where files and views are.
    pretrain("--resume", out / "checkpoint.pt")


@pytest.mark.usefixtures("undrawn")
def test_the_command_names_a_bad_image(folder, views, tmp_path):
    spoil(folder / "07.jpg")
    arguments = ["--data", folder, "--views", views, *SMALL, "--epochs", "6"]
    result = pretrain(*arguments, "--out", tmp_path / "a", code=1)
    assert "07.jpg" in result.stderr
    assert "--on-bad-image skip" in result.stderr
    result = pretrain(*arguments, "--on-bad-image", "skip", "--out", tmp_path / "b")
    assert "skipped   1 images" in result.output


def test_data_sets_have_views_of_their_own(small_digits):
    def chosen(name: str, channels: int) -> Views:
        images = small_digits.train_images.expand(-1, channels, -1, -1)
        return choose_views("", replace(small_digits, name=name, train_images=images))

    assert chosen("cifar10", 3) is PRESETS["cifar"]
    assert chosen("digits", 1) is PRESETS["digits"]
    assert {view.size for view in chosen("stl10", 3).views} == {96}
