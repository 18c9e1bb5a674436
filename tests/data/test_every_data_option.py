"""Every option of loaders, views, packs and sheets is seen to have its effect.

The tables are compared with the signatures: an option without a case fails.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from options import Cases, assert_covered, record_calls
from pictures import encode, pixels, write_folder

from barlow_fast import data
from barlow_fast.data import (
    PRESETS,
    ImageDataset,
    Position,
    Shard,
    ViewLoader,
    Views,
    ViewSpecification,
    batches,
    batches_per_epoch,
    draw,
    load,
    loader,
    order,
    parallel,
    render,
    show,
    windows,
)
from barlow_fast.data import check as check_module
from barlow_fast.data import pack as pack_module
from barlow_fast.data.check import bad_images
from barlow_fast.data.faults import BadImage, BadImageError, BadImages
from barlow_fast.data.pack import pack
from barlow_fast.data.show import sheet
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource, open_source
from barlow_fast.evaluation.splits import SubsetSource

CROP = ViewSpecification(crop_area=(0.3, 0.7), crop_ratio=(0.75, 4 / 3), size=6)
TWO = Views("two", (CROP, replace(CROP, size=5)), (0.4,), (0.2,))

TABLE = Cases()
case, operands = TABLE.case, TABLE.operands


def array(count: int = 10, **options: Any) -> ArraySource:
    images = np.stack([pixels(8, 8, 1, seed) for seed in range(count)])
    return ArraySource(images, np.arange(count) % 3, **options)


@pytest.fixture
def files(tmp_path: Path) -> FolderSource:
    """Five pictures in two classes."""
    content = {f"{'ab'[n % 2]}/{n}.png": encode(pixels(12, 16, 3, n)) for n in range(5)}
    return FolderSource(write_folder(tmp_path / "files", content))


# Orders.

operands(order)
operands(batches_per_epoch)


@case(order, "seed", "epoch", "count")
def _():
    drawn = [order(*numbers).tolist() for numbers in ((0, 0, 20), (1, 0, 20), (0, 1, 20))]
    assert all(sorted(numbers) == list(range(20)) for numbers in drawn)
    assert len({tuple(numbers) for numbers in drawn}) == 3
    assert sorted(order(0, 0, 7).tolist()) == list(range(7))
    for wrong in ((-1, 0, 3), (2**64, 0, 3), (0, -1, 3), (0, 2**32, 3), (0, 0, -1), (0, 0, 2**32)):
        with pytest.raises(ValueError, match=r"must be in \[0, "):
            order(*wrong)
    order(2**64 - 1, 2**32 - 1, 3)


@case(batches_per_epoch, "count", "batch_size", "ranks", "drop_last")
def _():
    assert batches_per_epoch(12, 4) == 3
    assert batches_per_epoch(13, 4) == 3
    assert batches_per_epoch(13, 4, drop_last=False) == 4
    assert batches_per_epoch(12, 4, drop_last=False) == 3
    assert batches_per_epoch(13, 2, 3) == 2
    assert batches_per_epoch(13, 2, 3, drop_last=False) == 3
    assert batches_per_epoch(0, 1, 1) == 0
    for wrong, name in (((-1, 1, 1), "count"), ((1, 0, 1), "batch_size"), ((1, 1, 0), "ranks")):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            batches_per_epoch(*wrong)


@case(batches, "seed", "epoch", "count", "batch_size", "shard", "drop_last", "start")
def _():
    whole = order(3, 2, 22).tolist()
    cut = [part.tolist() for part in batches(3, 2, 22, 5)]
    assert cut == [whole[:5], whole[5:10], whole[10:15], whole[15:20]]
    rest = [part.tolist() for part in batches(3, 2, 22, 5, drop_last=False)]
    assert rest == [*cut, whole[20:]]
    second = [part.tolist() for part in batches(3, 2, 22, 3, Shard(1, 3), start=1)]
    assert second == [whole[12:15]]
    # A remainder over ranks: four samples on three of them.
    ends = [list(batches(3, 2, 22, 3, Shard(r, 3), False))[-1].tolist() for r in range(3)]
    assert ends == [whole[18:19], whole[19:20], whole[20:22]]
    assert list(batches(3, 2, 22, 5, start=4)) == []
    for wrong in ({"start": 5}, {"start": -1}, {"shard": Shard(3, 3)}, {"shard": Shard(-1, 3)}):
        with pytest.raises(ValueError, match=r"must be in \[0, "):
            batches(3, 2, 22, 5, **wrong)


@case(Position, "epoch", "batch")
def _():
    assert (Position().epoch, Position().batch) == (0, 0)
    Position(2**32 - 1, 0)
    for wrong in ((-1, 0), (2**32, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"epoch|batch"):
            Position(*wrong)


@case(Shard, "rank", "ranks")
def _():
    parts = [next(iter(batches(0, 0, 8, 2, Shard(rank, 2)))).tolist() for rank in (0, 1)]
    assert parts == [order(0, 0, 8)[:2].tolist(), order(0, 0, 8)[2:4].tolist()]


# The loader.

operands(ViewLoader, "source", "views")


def first(**options: Any) -> data.Batch:
    with ViewLoader(array(), TWO, options.pop("batch_size", 4), **options) as batches:
        return next(iter(batches))


@case(ViewLoader, "batch_size", "seed", "rank", "ranks")
def _():
    assert [tuple(view.shape) for view in first().views] == [(4, 1, 6, 6), (4, 1, 5, 5)]
    for options, expected in (
        ({"batch_size": 3}, order(0, 0, 10)[:3]),
        ({"seed": 9}, order(9, 0, 10)[:4]),
        ({"batch_size": 2, "rank": 1, "ranks": 3}, order(0, 0, 10)[2:4]),
    ):
        batch = first(**options)
        assert batch.index.tolist() == expected.tolist()
        assert batch.label.tolist() == (expected % 3).tolist()
        for number, specification in enumerate(TWO.views):
            parameters = draw(specification, options.get("seed", 0), 0, expected, number)
            images = array().images[expected].movedim(3, 1)
            views = render(images, parameters, specification, 0.4, 0.2)
            torch.testing.assert_close(batch.views[number], views, rtol=0, atol=0.021)


@case(ViewLoader, "drop_last", "dtype")
def _():
    for drop_last, sizes in ((True, [4, 4]), (False, [4, 4, 2])):
        with ViewLoader(array(), TWO, 4, drop_last=drop_last) as batches:
            assert [len(batch.index) for batch in batches] == sizes
    plain = first().views[0]
    assert plain.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        view = first(dtype=dtype).views[0]
        assert view.dtype == dtype
        torch.testing.assert_close(view.float(), plain, rtol=0.01, atol=0.01)
    # An empty remainder has the dtype and sizes of a full one.
    with ViewLoader(
        array(9), TWO, 2, rank=0, ranks=4, drop_last=False, dtype=torch.bfloat16
    ) as batches:
        empty = [*batches][-1]
    assert [tuple(view.shape) for view in empty.views] == [(0, 1, 6, 6), (0, 1, 5, 5)]
    assert empty.views[0].dtype == torch.bfloat16


class Received(Exception):
    """A batch was requested."""


class Rendering:
    """Stands in for a renderer and keeps what is passed to it, and what was submitted."""

    passed: dict[str, Any]
    submitted: list[int]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        Rendering.passed = {"arguments": arguments[2:], **options}
        Rendering.submitted = []

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        Rendering.submitted.append(len(samples))

    def receive(self) -> None:
        raise Received

    def close(self) -> None:
        pass


@pytest.fixture
def rendering(monkeypatch) -> type[Rendering]:
    for name in ("ArrayRenderer", "ThreadRenderer"):
        monkeypatch.setattr(loader, name, type(name, (Rendering,), {}))
    monkeypatch.setattr(loader.dali, "DaliRenderer", type("DaliRenderer", (Rendering,), {}))
    monkeypatch.setattr(loader.dali, "why_unusable", lambda device: None)
    return Rendering


def made(source: Any, **options: Any) -> tuple[str, dict[str, Any]]:
    """(Kind of renderer, what is passed to it)."""
    views = Views("three", (CROP,), (0.4,) * 3, (0.2,) * 3)
    with ViewLoader(source, views, 2, **options) as batches:
        return type(batches._renderer).__name__, Rendering.passed


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lets this process use `count` cores."""
    monkeypatch.setattr(
        parallel.os, "sched_getaffinity", lambda _: set(range(count)), raising=False
    )


@case(ViewLoader, "loader", "workers")
def _(rendering, files, monkeypatch):
    cores(monkeypatch, 5)
    for options, kind, expected in (
        ({}, "ThreadRenderer", {"workers": 5}),
        ({"workers": 3}, "ThreadRenderer", {"workers": 3}),
        ({"workers": 0}, "ThreadRenderer", {"workers": 0}),
        ({"loader": "pil", "workers": 1}, "ThreadRenderer", {"workers": 1}),
        ({"loader": "dali"}, "DaliRenderer", {"threads": 5, "device": "cpu"}),
        ({"loader": "dali", "workers": 3}, "DaliRenderer", {"threads": 3, "device": "cpu"}),
        ({"loader": "dali", "workers": 0}, "DaliRenderer", {"threads": 1, "device": "cpu"}),
    ):
        found, passed = made(files, **options)
        assert found == kind
        del passed["arguments"]
        if kind == "ThreadRenderer":
            finish = passed.pop("finish")
            assert finish is None or finish.dtype == torch.float32
            expected = {"timeout": 1800.0, "pinned": False, **expected}
        assert passed == {"seed": 0, "prefetch": 2, **expected}
    cores(monkeypatch, 99)
    assert made(files)[1]["workers"] == parallel.MOST_THREADS
    assert made(files, workers=99)[1]["workers"] == 99
    assert made(array())[0] == "ArrayRenderer"
    assert made(array(), loader="pil", workers=0)[0] == "ThreadRenderer"
    with pytest.raises(ValueError, match="workers must be at least 0"):
        made(files, workers=-1)
    with pytest.raises(ValueError, match="loader must be one of"):
        made(files, loader="jpeg")


@case(ViewLoader, "prefetch")
def _(rendering, files):
    views = Views("three", (CROP,), (0.4,) * 3, (0.2,) * 3)
    for prefetch in (1, 2):
        with ViewLoader(files, views, 2, prefetch=prefetch) as batches:
            assert Rendering.passed["prefetch"] == prefetch
            with pytest.raises(Received):
                next(iter(batches))
        assert Rendering.submitted == [2] * prefetch
    with pytest.raises(ValueError, match="prefetch must be at least 1"):
        ViewLoader(files, views, 2, prefetch=0)


@case(ViewLoader, "timeout")
def _(rendering, files):
    for seconds in (5.5, 0):
        assert made(files, timeout=seconds)[1]["timeout"] == seconds
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="timeout must be at least 0 and finite"):
            made(files, timeout=wrong)


@case(ViewLoader, "device")
def _(rendering):
    # The photometric part has no kernels there, or the batch would come.
    with contextlib.suppress(ValueError, Received):
        first(device="meta")
    assert Rendering.passed["device"] == torch.device("meta")
    assert made(array())[1]["device"] == torch.device("cpu")


@case(ViewLoader, "on_bad_image")
def _(tmp_path):
    content = {f"a/{n}.png": encode(pixels(12, 16, 3, n)) for n in range(4)}
    source = FolderSource(write_folder(tmp_path / "bad", {**content, "a/4.png": b"none"}))
    views = Views("three", (CROP,), (0.4,) * 3, (0.2,) * 3)
    with ViewLoader(source, views, 5, workers=0, on_bad_image="skip") as batches:
        assert sorted(next(iter(batches)).index.tolist()) == [0, 1, 2, 3]
        assert [bad.index for bad in batches.bad_images] == [4]
    with ViewLoader(source, views, 5, workers=0) as batches, pytest.raises(BadImageError):
        next(iter(batches))


@pytest.mark.parametrize(
    ("ranks_here", "share"), [("1", 6), ("2", 3), ("4", 1), ("9", 1), ("0", 6), ("none", 6)]
)
def test_ranks_of_a_machine_share_its_cores(monkeypatch, ranks_here: str, share: int):
    cores(monkeypatch, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks_here)
    assert parallel.cores_of_rank() == share
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert parallel.cores_of_rank() == 6


# Views.

SAMPLES = np.arange(600)


def parameters(seed: int = 0, **settings: Any) -> data.ViewParameters:
    return draw(ViewSpecification(**settings), seed, 0, SAMPLES, 0)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """In its range, filling it, its mean in the middle."""
    assert low <= values.min() < low + 0.05 * (high - low)
    assert high >= values.max() > high - 0.05 * (high - low)
    assert values.mean() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))


# name: (settings, what of the parameters, their range)
RANGES: dict[str, tuple[dict[str, Any], Callable[[data.ViewParameters], np.ndarray], Any]] = {
    "crop_area": (
        {"crop_area": (0.2, 0.6)},
        lambda p: p.height.astype(float) * p.width,
        (0.2, 0.6),
    ),
    "crop_ratio": (
        {"crop_ratio": (0.5, 2.0), "crop_area": (0.2, 0.2)},
        lambda p: np.log(p.width / p.height),
        (-math.log(2), math.log(2)),
    ),
    "rotation": ({"rotation": 30}, lambda p: np.rad2deg(p.rotation), (-30, 30)),
    "shear": ({"shear": 20}, lambda p: np.rad2deg(np.arctan(p.shear)), (-20, 20)),
    "brightness": ({"brightness": 0.4}, lambda p: p.brightness, (0.6, 1.4)),
    "contrast": ({"contrast": 0.3}, lambda p: p.contrast, (0.7, 1.3)),
    "saturation": ({"saturation": 0.2}, lambda p: p.saturation, (0.8, 1.2)),
    "hue": ({"hue": 0.1}, lambda p: p.hue, (-0.1, 0.1)),
    "blur_sigma": ({"blur": 1.0, "blur_sigma": (1, 3)}, lambda p: p.blur_sigma, (1, 3)),
    "erase_area": (
        {"erase": 1.0, "erase_area": (0.1, 0.3)},
        lambda p: p.erase_side**2,
        (0.1, 0.3),
    ),
}
# name: (settings besides it, whether a sample has it)
PROBABILITIES: dict[str, tuple[dict[str, Any], Callable[[data.ViewParameters], np.ndarray]]] = {
    "flip": ({}, lambda p: p.flip),
    "blur": ({}, lambda p: p.blur_sigma > 0),
    "solarize": ({}, lambda p: p.solarize),
    "erase": ({}, lambda p: p.erase_side > 0),
    "grayscale": ({}, lambda p: p.grayscale),
    "jitter": ({"brightness": 0.4, "hue": 0.1}, lambda p: p.order >= 0),
}


@case(ViewSpecification, *RANGES)
def _():
    for name, (settings, values, (low, high)) in RANGES.items():
        found = values(parameters(**settings))
        assert_uniform(found, low, high)
        without = {key: value for key, value in settings.items() if key != name}
        if name != "crop_ratio":
            assert not np.allclose(found, values(parameters(**without)))


@case(ViewSpecification, *PROBABILITIES)
def _():
    for name, (settings, has) in PROBABILITIES.items():
        for probability in (0.0, 0.25, 1.0):
            share = has(parameters(**settings, **{name: probability})).mean()
            # Four standard deviations of a binomial.
            spread = 4 * math.sqrt(probability * (1 - probability) / len(SAMPLES))
            assert share == pytest.approx(probability, abs=spread + 1e-12), name
    half = parameters(jitter=0.5, brightness=0.4, hue=0.1)
    kept = half.order < 0
    assert (half.brightness[kept] == 1).all()
    assert (half.hue[kept] == 0).all()


@case(ViewSpecification, "random_order", "solarize_threshold", "size", "interpolation")
def _():
    assert set(parameters(brightness=0.4).order) == {0}
    assert set(parameters(brightness=0.4, random_order=True).order) == set(range(24))
    assert set(parameters(solarize=1.0, solarize_threshold=99).solarize_threshold) == {99}
    images = torch.from_numpy(np.stack([pixels(8, 8, 1, seed) for seed in range(4)])).movedim(3, 1)
    found = {}
    for interpolation in ("bicubic", "bilinear"):
        specification = replace(CROP, interpolation=interpolation, size=(5, 7))
        drawn = draw(specification, 0, 0, np.arange(4), 0)
        found[interpolation] = render(images, drawn, specification)
        assert found[interpolation].shape == (4, 1, 5, 7)
    assert not torch.equal(found["bicubic"], found["bilinear"])


operands(draw, "specification")
operands(windows, "parameters", "specification")
operands(render, "images", "parameters", "specification")


@case(draw, "seed", "epoch", "samples", "view")
def _():
    plain = {"seed": 0, "epoch": 0, "samples": np.arange(5), "view": 0}
    drawn = [draw(CROP, **plain).tries]
    for name, value in (("seed", 1), ("epoch", 1), ("samples", np.arange(5) + 9), ("view", 1)):
        drawn.append(draw(CROP, **{**plain, name: value}).tries)
    assert len({found.tobytes() for found in drawn}) == 5


@case(windows, "heights", "widths")
def _():
    drawn = draw(CROP, 0, 0, np.arange(50), 0)
    found = windows(drawn, CROP, 40, np.full(50, 90))
    areas = found[:, 2].astype(float) * found[:, 3] / (40 * 90)
    assert 0.28 < areas.min() < areas.max() < 0.72
    assert (found[:, 0] + found[:, 2] <= 40).all()
    assert (found[:, 1] + found[:, 3] <= 90).all()
    assert (found[:, 1] + found[:, 3]).max() > 60
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="no pixels"):
            windows(drawn, CROP, *wrong)


@case(render, "mean", "std", "dtype")
def _():
    images = torch.from_numpy(np.stack([pixels(8, 8, 3, seed) for seed in range(4)])).movedim(3, 1)
    drawn = draw(CROP, 0, 0, np.arange(4), 0)
    plain = render(images, drawn, CROP)
    assert 0 <= plain.min() < plain.max() <= 1
    moved = render(images, drawn, CROP, 0.3, 0.25)
    torch.testing.assert_close(moved, (plain - 0.3) / 0.25)
    moved = render(images, drawn, CROP, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 0.5), (0.3, 0.25))):
        torch.testing.assert_close(moved[:, channel], (plain[:, channel] - mean) / std)
    assert render(images, drawn, CROP, dtype=torch.bfloat16).dtype == torch.bfloat16


@case(Views, "name", "views", "mean", "std", "reduced_decoding")
def _():
    assert Views.from_yaml(TWO.to_yaml()) == TWO
    assert Views.from_yaml(TWO.to_yaml()).name == "two"
    fingerprints = {
        views.fingerprint()
        for views in (
            TWO,
            replace(TWO, views=TWO.views[:1]),
            replace(TWO, mean=(0.3,)),
            replace(TWO, std=(0.3,)),
            replace(TWO, reduced_decoding=True),
        )
    }
    assert len(fingerprints) == 5
    reduced = replace(TWO, reduced_decoding=True)
    assert Views.from_yaml(reduced.to_yaml()) == reduced
    with pytest.raises(ValueError, match="reduced_decoding must be true or false, got 1"):
        replace(TWO, reduced_decoding=1)
    assert replace(TWO, name="other").fingerprint() == TWO.fingerprint()
    plain = first().views[0]
    with ViewLoader(array(), replace(TWO, mean=(0.1,), std=(0.4,)), 4) as batches:
        moved = next(iter(batches)).views[0]
    torch.testing.assert_close(moved, (plain * 0.2 + 0.4 - 0.1) / 0.4)


# Sources.

operands(open_source, "spec")
operands(load, "name")
operands(FolderSource, "root")
operands(ShardSource, "shards")
operands(ArraySource, "images")


@case(ArraySource, "labels", "name", "classes")
def _():
    source = array(name="mine", classes=["x", "y", "z"])
    assert source.labels.tolist() == [n % 3 for n in range(10)]
    assert source.label(4) == 1
    assert source.identity(3) == "mine[3]"
    assert source.classes == ["x", "y", "z"]
    assert ArraySource(source.images).labels is None
    assert ArraySource(source.images).label(0) == -1
    with pytest.raises(ValueError, match="label 2 where 2 classes"):
        array(classes=["x", "y"])


def small_set(**more: Any) -> ImageDataset:
    images = torch.from_numpy(np.stack([pixels(8, 8, 1, n) for n in range(9)])).movedim(3, 1)
    labels = torch.arange(9) % 3
    parts = (images[:4], labels[:4], images[4:6], labels[4:6])
    return ImageDataset("small", "here", *parts, classes=3, **more)


DATASET = ("name", "source", "train_images", "train_labels", "test_images", "test_labels")


@case(ImageDataset, *DATASET, "classes", "unlabelled_images", "class_names")
def _():
    one = small_set(unlabelled_images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert [len(ArraySource.of_dataset(one, split)) for split in one.splits] == [4, 2, 3]
    assert ArraySource.of_dataset(one).labels.tolist() == [0, 1, 2, 0]
    assert ArraySource.of_dataset(one, "test").labels.tolist() == [1, 2]
    assert ArraySource.of_dataset(one, "unlabelled").labels is None
    assert ArraySource.of_dataset(one, "test").name == "small test"
    assert str(one).endswith("3 classes (here)")
    with pytest.raises(ValueError, match="no split 'unlabelled'"):
        ArraySource.of_dataset(small_set(), "unlabelled")
    named = small_set(class_names=("ape", "bee", "cat"))
    assert ArraySource.of_dataset(named).classes == ["ape", "bee", "cat"]
    with pytest.raises(ValueError, match="2 class names for 3"):
        small_set(class_names=("ape", "bee"))


@case(load, "data_dir")
@case(open_source, "split", "data_dir")
def _(monkeypatch, files, tmp_path):
    passed = []
    monkeypatch.setitem(
        data.DATASETS, "fashion-mnist", lambda folder: passed.append(folder) or small_set()
    )
    assert len(open_source("fashion-mnist", "test", data_dir=tmp_path)) == 2
    assert len(open_source("fashion-mnist")) == 4
    load("fashion-mnist", tmp_path)
    assert passed == [tmp_path, None, tmp_path]
    assert len(open_source(files.root)) == 5
    parts = tmp_path / "parts"
    write_folder(parts, {"val/a/0.png": encode(pixels()), "train/a/1.png": encode(pixels())})
    assert open_source(parts, "val").identity(0).endswith("val/a/0.png")
    with pytest.raises(ValueError, match="belongs to a named data set"):
        open_source(files.root, data_dir=tmp_path)


@case(FolderSource, "allow_symlinks", "max_pixels", "progress")
@case(ShardSource, "max_pixels", "progress")
@case(open_source, "allow_symlinks", "max_pixels", "progress")
def _(files, tmp_path):
    shards = tmp_path / "shards"
    pack(files, shards, workers=0)
    for open_one, place in (
        (open_source, files.root),
        (FolderSource, files.root),
        (open_source, shards),
        (open_source, str(shards / "shard-000000.tar")),
        (ShardSource, shards),
    ):
        passed: list[int] = []
        source = open_one(place, max_pixels=12 * 16 - 1, progress=passed.append)
        assert passed
        assert passed[-1] == 5
        with pytest.raises(BadImageError):
            source.image(0)
        open_one(place, max_pixels=12 * 16).image(0)
    linked = tmp_path / "linked"
    write_folder(linked, {"a/0.png": encode(pixels())})
    (linked / "b").symlink_to(files.root / "b")
    for open_one in (open_source, FolderSource):
        assert len(open_one(linked, allow_symlinks=True)) == 3
        with pytest.raises(ValueError, match="link"):
            open_one(linked)


operands(SubsetSource, "source", "indices")


@case(SubsetSource, "name")
def _():
    assert SubsetSource(array(name="whole"), np.array([3, 1])).name == "whole"
    part = SubsetSource(array(name="whole"), np.array([3, 1]), "part")
    assert part.name == "part"
    assert [part.label(0), part.label(1)] == [0, 1]


# Checks, packs, sheets.

operands(bad_images, "source")
operands(pack, "source", "target")
operands(sheet, "source", "views")
operands(BadImages)


@case(bad_images, "workers", "progress")
def _(files, monkeypatch):
    calls = record_calls(
        monkeypatch, check_module, "in_order", lambda source, task, workers: map(task, range(5))
    )
    passed: list[int] = []
    for workers in (None, 3):
        assert list(bad_images(files, workers, passed.append)) == []
    assert [call["workers"] for call in calls] == [None, 3]
    assert passed == [1, 2, 3, 4, 5] * 2


@case(pack, "size", "max_side", "quality", "shard_bytes", "on_bad_image", "workers", "progress")
def _(files, tmp_path, monkeypatch):
    passed: list[int] = []
    plain = pack(files, tmp_path / "plain", workers=0, progress=passed.append)
    assert (plain.images, plain.resized, plain.left_out, plain.shards) == (5, 0, 0, 1)
    assert passed == [1, 2, 3, 4, 5]
    resized = pack(files, tmp_path / "resized", size=6, workers=0)
    assert resized.resized == 5
    assert ShardSource(tmp_path / "resized").image(0).size == (8, 6)
    assert pack(files, tmp_path / "as wide", size=12, workers=0).resized == 0
    assert pack(files, tmp_path / "longer", max_side=8, workers=0).resized == 5
    assert ShardSource(tmp_path / "longer").image(0).size == (8, 6)
    assert pack(files, tmp_path / "as long", max_side=16, workers=0).resized == 0
    poor = pack(files, tmp_path / "poor", size=6, quality=1, workers=0)
    contents = [
        sum(len(ShardSource(tmp_path / name).encoded(n)) for n in range(5))
        for name in ("resized", "poor")
    ]
    assert contents[1] < contents[0]
    assert poor.images == 5
    assert pack(files, tmp_path / "small", shard_bytes=1, workers=0).shards == 5
    (Path(files.root) / "a" / "0.png").write_bytes(b"none")
    with pytest.raises(BadImageError):
        pack(files, tmp_path / "bad", workers=0)
    assert pack(files, tmp_path / "bad", workers=0, on_bad_image="skip").left_out == 1
    calls = record_calls(
        monkeypatch, pack_module, "in_order", lambda source, task, workers: map(task, range(1, 5))
    )
    for number, workers in enumerate((None, 3)):
        pack(files, tmp_path / f"workers {number}", workers=workers)
    assert [call["workers"] for call in calls] == [None, 3]


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("size", (1, None), (0, -1)),
        ("max_side", (1, None), (0, -1)),
        ("quality", (1, 100), (0, 101)),
        ("shard_bytes", (1,), (0, -1)),
        ("on_bad_image", ("error", "skip", "strict"), ("", "ignore")),
    ],
)
def test_limits_of_a_pack(files, tmp_path, name: str, accepted: tuple, refused: tuple):
    for number, value in enumerate(accepted):
        pack(files, tmp_path / f"{number}", workers=0, **{name: value})
    for value in refused:
        with pytest.raises(ValueError, match=name):
            pack(files, tmp_path / "refused", workers=0, **{name: value})


@case(sheet, "count", "seed", "epoch")
def _(monkeypatch):
    views = replace(PRESETS["digits"])
    asked = record_calls(monkeypatch, show, "_rendered")
    drawn = record_calls(monkeypatch, show, "draw")
    for options in ({}, {"count": 3}, {"seed": 4}, {"epoch": 5}):
        sheet(array(), views, **options)
        seed, epoch = options.get("seed", 0), options.get("epoch", 0)
        expected = order(seed, epoch, 10)[: options.get("count", 8)]
        assert asked[-1]["samples"].tolist() == expected.tolist()
        assert (asked[-1]["seed"], asked[-1]["epoch"]) == (seed, epoch)
        assert {(passed["seed"], passed["epoch"]) for passed in drawn} == {(seed, epoch)}
        drawn.clear()
    for count in (0, show.MOST + 1):
        with pytest.raises(ValueError, match="count must be in"):
            sheet(array(), views, count)
    sheet(array(), views, show.MOST)


@case(BadImages, "policy", "limit")
def _():
    bad = [BadImage(number, f"image {number}", "none") for number in range(4)]
    with pytest.raises(BadImageError):
        BadImages().add(bad[0])
    few = BadImages("skip", 2)
    for image in (*bad, *bad):
        few.add(image)
    assert few.images == bad[:2]
    assert (len(few), few.encounters) == (2, 8)
    suspect = replace(bad[3], suspect=True)
    for policy, left_out in (("error", False), ("skip", False), ("strict", True)):
        record = BadImages(policy, 2)
        assert record.add(suspect) is left_out
        assert (record.images, record.suspects) == ([], [suspect])
        assert record.encounters == left_out
    assert record.add(bad[0])


# The tables, against the signatures.


@pytest.mark.parametrize("shows", TABLE.shown())
def test_every_option_has_its_effect(shows, request):
    wanted = inspect.signature(shows).parameters
    shows(**{name: request.getfixturevalue(name) for name in wanted})


NO_OPTIONS = {"DATASETS", "PRESETS", "Batch", "ViewParameters"}
BESIDES = (pack, bad_images, sheet, open_source, FolderSource, ShardSource, ArraySource, BadImages)


@pytest.mark.parametrize(
    "entry",
    [*(getattr(data, name) for name in sorted(set(data.__all__) - NO_OPTIONS)), *BESIDES],
    ids=lambda entry: entry.__name__,
)
def test_every_public_function_has_all_its_cases(entry):
    assert_covered(entry, TABLE.table.get(entry, ()), TABLE.exempt.get(entry))
