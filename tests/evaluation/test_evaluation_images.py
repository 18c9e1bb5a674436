"""Images that an evaluation passes to an encoder, against torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import dataset, write_classes
from PIL import Image

from barlow_fast.data.faults import BadImageError
from barlow_fast.data.sources import ArraySource, FolderSource
from barlow_fast.evaluation import ImageFormat, Reading, dataset_splits
from barlow_fast.evaluation.images import CentreCrop, check_fits, pictures, training_crops


def picture(folder: Path, height: int, width: int) -> FolderSource:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (folder / "a").mkdir()
    Image.fromarray(pixels).save(folder / "a" / "0.png")
    return FolderSource(folder)


@pytest.mark.parametrize(
    ("height", "width"), [(300, 500), (431, 317), (256, 256), (90, 200), (260, 333)]
)
def test_photographs_are_cut_as_torchvision_cuts_them(tmp_path: Path, height: int, width: int):
    transforms = pytest.importorskip("torchvision.transforms")
    source = picture(tmp_path, height, width)
    ours = CentreCrop(source, (112, 112), 3)(0).pixels
    theirs = transforms.CenterCrop(112)(transforms.Resize(128)(source.image(0)))
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_small_pictures_keep_their_borders(tmp_path: Path):
    source = picture(tmp_path, 32, 32)
    np.testing.assert_array_equal(
        CentreCrop(source, (32, 32), 3)(0).pixels, np.asarray(source.image(0))
    )


def test_files_are_turned_to_gray_for_an_encoder_of_one_channel(tmp_path: Path):
    source = picture(tmp_path, 20, 20)
    gray = CentreCrop(source, (20, 20), 1)(0).pixels
    np.testing.assert_array_equal(gray[..., 0], np.asarray(source.image(0).convert("L")))


def test_the_order_is_the_sources_and_chunks_do_not_matter(tmp_path: Path):
    source = FolderSource(write_classes(tmp_path, {"a": 4, "b": 3}))
    form = ImageFormat(12, 3)
    for chunk in (1, 3, 100):
        parts = list(pictures(source, form, Reading(chunk=chunk)))
        assert len(parts[0].labels) == min(chunk, 7)
        images = torch.cat([part.images for part in parts])
        assert torch.cat([part.labels for part in parts]).tolist() == source.labels.tolist()
        for index in range(7):
            expected = CentreCrop(source, (12, 12), 3)(index).pixels
            np.testing.assert_array_equal(images[index].permute(1, 2, 0).numpy(), expected)


def test_bad_images_are_left_out_and_counted_or_refused(tmp_path: Path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "001.png").write_bytes(b"no picture")
    source = FolderSource(tmp_path)
    reading = Reading(chunk=2, on_bad_image="skip")
    labels = torch.cat([part.labels for part in pictures(source, ImageFormat(12), reading)])
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert [image.identity for image in reading.bad.images] == [str(tmp_path / "a" / "001.png")]
    with pytest.raises(BadImageError, match=r"001\.png"):
        list(pictures(source, ImageFormat(12), Reading()))


def test_a_source_of_bad_images_alone_is_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(BadImageError, match="no image can be read"):
        list(pictures(FolderSource(tmp_path), ImageFormat(8), Reading(on_bad_image="skip")))


def test_images_in_memory_stay_as_they_are():
    splits = dataset_splits(dataset())
    parts = pictures(splits.train, ImageFormat(8, 1), Reading(chunk=7))
    assert torch.equal(
        torch.cat([part.images for part in parts]), splits.train.images.permute(0, 3, 1, 2)
    )


def test_images_in_memory_are_resized_as_pillow_does_and_gray_is_repeated():
    source = dataset_splits(dataset()).test
    (part,) = pictures(source, ImageFormat(20, 3), Reading())
    assert part.images.shape == (40, 3, 20, 20)
    expected = source.image(5).resize((20, 20), Image.Resampling.BILINEAR)
    for channel in part.images[5]:
        np.testing.assert_array_equal(channel.numpy(), np.asarray(expected))


def test_normalisation_is_by_channel():
    form = ImageFormat(2, 3, (0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    expected = torch.tensor([0.0, 1.0, -3.2]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(form.normalised(images), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"size": 0}, "size must be"),
        ({"channels": 3, "mean": (0.1, 0.2)}, "mean has 2 numbers"),
        ({"std": 0.0}, "std must be above 0"),
    ],
)
def test_a_format_that_cannot_be(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ImageFormat(**arguments)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (ImageFormat(8, 3), "images of 1 channels, the encoder takes 3"),
        (ImageFormat(9, 1), "8 x 8 pixels, the encoder was trained on 9 x 9"),
    ],
)
def test_images_that_do_not_fit_are_refused_unless_adapted(form: ImageFormat, message: str):
    source = dataset_splits(dataset()).train
    with pytest.raises(ValueError, match=message):
        check_fits(source, form)
    check_fits(source, form, adapt=True)


def test_files_need_a_size(tmp_path: Path):
    with pytest.raises(ValueError, match="input size is unknown"):
        check_fits(FolderSource(write_classes(tmp_path, {"a": 1})), ImageFormat(None, 3))


def test_training_crops_are_seeded_and_every_image_comes_once():
    source = dataset_splits(dataset()).train
    form = ImageFormat(8, 1, 0.5, 0.25)

    def epoch(seed: int):
        with training_crops(source, form, Reading(), 32, seed) as loader:
            batches = list(loader)
        assert [len(batch.label) for batch in batches] == [32, 32, 16]
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(80))
        labels = torch.cat([batch.label for batch in batches])
        assert labels.tolist() == source.labels[index.numpy()].tolist()
        return torch.cat([batch.views[0] for batch in batches])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def test_a_last_batch_of_one_image_is_left_out():
    source = ArraySource(np.zeros((9, 8, 8, 1), np.uint8), [0] * 9)
    with training_crops(source, ImageFormat(8, 1), Reading(), 4, 0) as loader:
        assert [len(batch.label) for batch in loader] == [4, 4]
