"""Several views of an image, and small ones: by every loader, from one decoding, to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from photographs import colouring, photographs

from barlow_fast.data import PRESETS, ViewLoader, Views, draw, windows
from barlow_fast.data.multicrop import BOUNDARY_AREA, SMALLEST_AREA, of_count, with_small
from barlow_fast.data.sources import ArraySource, FolderSource

TWO = colouring(48)
FOUR = of_count(TWO, 4)
MANY = with_small(FOUR, 3, 20)

needs_dali = pytest.mark.skipif(find_spec("nvidia.dali") is None, reason="needs NVIDIA DALI")
LOADERS = [
    pytest.param({"loader": "arrays"}, id="arrays"),
    pytest.param({"loader": "pil", "workers": 0}, id="pil"),
    pytest.param({"loader": "pil", "workers": 2}, id="threads"),
    pytest.param({"loader": "dali", "workers": 2}, id="dali", marks=needs_dali),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FolderSource:
    """14 photographs."""
    return FolderSource(photographs(tmp_path_factory.mktemp("many") / "a", 14))


@pytest.fixture(scope="module")
def arrays() -> ArraySource:
    generator = np.random.default_rng(0)
    return ArraySource(generator.integers(0, 256, (14, 64, 72, 3), dtype=np.uint8), None)


def opened(views: Views, files, arrays, settings) -> ViewLoader:
    source = arrays if settings["loader"] == "arrays" else files
    return ViewLoader(source, views, 4, seed=7, **settings)


@pytest.mark.parametrize("settings", LOADERS)
def test_views_keep_their_bits_whatever_comes_after_them(files, arrays, settings):
    large = replace(MANY, views=MANY.views[:2])
    for fewer, more in ((TWO, FOUR), (FOUR, of_count(TWO, 5)), (large, MANY)):
        with (
            opened(fewer, files, arrays, settings) as one,
            opened(more, files, arrays, settings) as two,
        ):
            for ours, theirs in zip(one, two, strict=True):
                assert torch.equal(ours.index, theirs.index)
                assert len(theirs.views) == len(more.views)
                pairs = zip(ours.views, theirs.views, strict=False)
                assert all(torch.equal(a, b) for a, b in pairs)
                # Drawn from one specification, and not the same.
                assert not torch.equal(theirs.views[0], theirs.views[2])


@pytest.mark.parametrize("settings", LOADERS)
def test_small_views_are_smaller_and_of_the_same_images(files, arrays, settings):
    with opened(MANY, files, arrays, settings) as loader:
        batch = next(iter(loader))
    assert [tuple(view.shape) for view in batch.views] == [(4, 3, 48, 48)] * 4 + [
        (4, 3, 20, 20)
    ] * 3
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in batch.views)


def test_every_loader_shows_the_same(arrays):
    """To the bit where Pillow's filter is computed; DALI's differs by levels."""
    batches = {}
    for name, workers in (("arrays", None), ("pil", 0), ("pil", 2)):
        with ViewLoader(arrays, MANY, 14, seed=7, loader=name, workers=workers) as loader:
            batches[name, workers] = next(iter(loader)).views
    expected = batches.pop(("arrays", None))
    for views in batches.values():
        assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))


@needs_dali
def test_dali_shows_the_same_within_levels(files):
    views = []
    for name in ("pil", "dali"):
        with ViewLoader(files, MANY, 14, seed=7, loader=name, workers=1) as loader:
            views.append(next(iter(loader)).views)
    for ours, theirs in zip(*views, strict=True):
        assert (ours - theirs).abs().mean() <= 1.0 / 255 / min(TWO.std)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_once_for_all_views(files, monkeypatch, workers):
    read: list[int] = []
    pixels = FolderSource.pixels

    def counted(self, index, *arguments, **options):
        read.append(index)
        return pixels(self, index, *arguments, **options)

    monkeypatch.setattr(FolderSource, "pixels", counted)
    with ViewLoader(files, MANY, 7, seed=7, loader="pil", workers=workers) as loader:
        seen = [index for batch in loader for index in batch.index.tolist()]
    assert sorted(read) == sorted(seen) == list(range(14))


@pytest.mark.parametrize("settings", LOADERS)
def test_a_resumed_epoch_of_many_views_is_the_same_to_the_bit(files, arrays, settings):
    with opened(MANY, files, arrays, settings) as loader:
        expected = list(loader)
    with opened(MANY, files, arrays, settings) as loader:
        seen = [next(iter(loader))]
        state = json.loads(json.dumps(loader.state_dict()))
    with opened(MANY, files, arrays, settings) as loader:
        loader.load_state_dict(state)
        seen += list(loader)
    for ours, theirs in zip(seen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.views, theirs.views, strict=True))
    for other in (TWO, FOUR, with_small(FOUR, 3, 21), with_small(FOUR, 2, 20)):
        with (
            opened(other, files, arrays, settings) as loader,
            pytest.raises(ValueError, match="fingerprint of the views"),
        ):
            loader.load_state_dict(state)


def test_small_views_show_small_parts_and_large_ones_do_not():
    samples = np.arange(500)
    for number, view in enumerate(MANY.views):
        drawn = draw(view, 3, 0, samples, number)
        area = np.prod(windows(drawn, view, 1000, 1000)[:, 2:], axis=1) / 1e6
        low, high = (BOUNDARY_AREA, 1.0) if number < 4 else (SMALLEST_AREA, BOUNDARY_AREA)
        assert low - 2e-3 <= area.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < area.max() <= high + 2e-3


def test_recipes_take_turns():
    a, b = TWO.views
    assert a != b
    assert FOUR.views == (a, b, a, b)
    assert of_count(TWO, 3).views == (a, b, a)
    assert of_count(TWO, 2) is TWO
    kept = {"flip", "brightness", "hue", "blur", "solarize", "grayscale", "crop_ratio"}
    for large, small in zip((a, b, a), MANY.views[4:], strict=True):
        assert all(getattr(large, name) == getattr(small, name) for name in kept)
        assert (small.crop_area, small.shape) == ((SMALLEST_AREA, BOUNDARY_AREA), (20, 20))


def test_sizes_and_areas_that_are_not_stated():
    imagenet, digits = PRESETS["imagenet"], PRESETS["digits"]
    assert with_small(imagenet, 6).views[-1].shape == (96, 96)
    # Images of digits are 8 x 8 and never cropped as far as to the boundary.
    small = with_small(digits, 1, shape=(8, 8))
    assert small.views[:2] == digits.views
    assert small.views[2].shape == (3, 3)
    # Views that show small parts only stay as they are.
    narrow = replace(imagenet, views=(replace(imagenet.views[0], crop_area=(0.02, 0.1)),) * 2)
    assert with_small(narrow, 1).views[:2] == narrow.views


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_count(TWO, 1), r"at least 2 \(a loss compares two\), got 1"),
        (lambda: of_count(FOUR, 3), r"at least 4 \('.*' specifies 4\), got 3"),
        (lambda: with_small(TWO, 0), r"number of small views must be at least 1, got 0"),
        (lambda: with_small(TWO, 2, 48), r"48 x 48 pixels must be smaller.*48 x 48"),
        (lambda: with_small(TWO, 2, 64), r"64 x 64 pixels must be smaller.*48 x 48"),
        (lambda: with_small(PRESETS["digits"], 2, 4), r"known size, and 'digits' states none"),
    ],
)
def test_what_is_no_set_of_views(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
