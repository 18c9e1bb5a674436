"""What an interactive session shows: one line that names an object and its sizes."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch

import barlow_fast

data = pytest.importorskip("barlow_fast.data", reason="the extra 'train' is not installed")
from barlow_fast.data.pack import pack  # noqa: E402
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource  # noqa: E402
from barlow_fast.evaluation.splits import SubsetSource  # noqa: E402


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, object]:
    image = pytest.importorskip("PIL.Image")
    training = pytest.importorskip("barlow_fast.training")
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(path)
    digits = data.ImageDataset(
        "tiny", "here", torch.zeros(8, 1, 8, 8, dtype=torch.uint8), None,
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, 10,
    )  # fmt: skip
    config = training.configure(
        "digits",
        loss="barlow-twins",
        views="digits",
        batch_size=4,
        projector=(8, 8),
        encoder_widths=(4, 4),
    )
    shards = tmp_path_factory.mktemp("shards")
    pack(FolderSource(folder), shards)
    return {
        "ImageDataset": digits,
        "ArraySource": ArraySource.of_dataset(digits),
        "FolderSource": FolderSource(folder),
        "ShardSource": ShardSource(shards),
        "SubsetSource": SubsetSource(FolderSource(folder), np.arange(2)),
        "ViewLoader": data.ViewLoader(ArraySource.of_dataset(digits), data.PRESETS["digits"], 4),
        "Trainer": training.Trainer(config, digits),
    }


SHOWN = {
    "ImageDataset": "'tiny', 8 training and 4 test images, 1 x 8 x 8, 10 classes",
    "ArraySource": "'tiny train', 8 images, no classes",
    "FolderSource": "4 images, 2 classes",
    "ShardSource": "4 images, 2 classes",
    "SubsetSource": "2 images, 2 classes",
    "ViewLoader": "batch_size=4, loader='arrays', device='cpu', rank 0 of 1, epoch 0, batch 0 of 2",
    "Trainer": "encoder='small', step 0 of 200, device='cpu', rank 0 of 1, checkpoint_path=None",
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_object_shows_its_name_and_sizes_in_one_line(objects, name):
    text = repr(objects[name])
    assert text.startswith(f"{name}(")
    assert SHOWN[name] in text
    assert "\n" not in text
    assert " at 0x" not in text


def test_dir_lists_the_public_names_and_no_others():
    assert dir(barlow_fast) == sorted(barlow_fast.__all__)
    assert {"patch", "unpatch"} <= set(dir(barlow_fast))
    assert not set(dir(barlow_fast)) & set(typing.__all__)
