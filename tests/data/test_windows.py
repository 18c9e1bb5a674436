"""Crop windows: torchvision's rule, number by number and in distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from barlow_fast.data import PRESETS, ViewParameters, ViewSpecification, draw, windows
from barlow_fast.data.windows import WindowOfEach

USUAL = ViewSpecification(crop_area=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))
# Windows that rarely fit, so that later attempts and the central window are seen.
STUBBORN = ViewSpecification(crop_area=(0.5, 1.0), crop_ratio=(0.5, 3.0))
IMAGES = {"square": (64, 64), "photograph": (375, 500), "strip": (20, 150), "tower": (300, 31)}


def by_the_book(
    parameters: ViewParameters, specification: ViewSpecification, height: int, width: int
) -> list[tuple[int, int, int, int]]:
    """The rule of RandomResizedCrop's documentation, one sample and one attempt at a time."""
    (low, high), ratios = specification.crop_area, specification.crop_ratio
    found = []
    for tries, (down, across) in zip(parameters.tries, parameters.place, strict=True):
        for u_area, u_ratio in tries.tolist():
            area = height * width * (low + (high - low) * u_area)
            span = math.log(ratios[1]) - math.log(ratios[0])
            ratio = math.exp(math.log(ratios[0]) + span * u_ratio)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = math.floor(float(down) * (height - h + 1))
                left = math.floor(float(across) * (width - w + 1))
                break
        else:
            w, h = width, height
            if width / height < ratios[0]:
                h = round(width / ratios[0])
            elif width / height > ratios[1]:
                w = round(height * ratios[1])
            top, left = (height - h) // 2, (width - w) // 2
        found.append((top, left, h, w))
    return found


@pytest.mark.parametrize("specification", [USUAL, STUBBORN], ids=["usual", "stubborn"])
def test_windows_follow_the_rule_number_by_number(specification):
    generator = np.random.default_rng(0)
    sizes = [*IMAGES.values(), (1, 1), (1, 40), (40, 1), (2, 3)]
    sizes += generator.integers(1, 600, (12, 2)).tolist()
    centred = 0
    for number, (height, width) in enumerate(sizes):
        p = draw(specification, 5, number, np.arange(200), 0)
        ours = windows(p, specification, height, width)
        np.testing.assert_array_equal(ours, by_the_book(p, specification, height, width))
        first = draw(specification, 5, number, np.arange(200), 0).tries[:, :1]
        # Whether more than the first attempt was looked at.
        alone = ViewParameters(**{**vars(p), "tries": first})
        centred += (windows(alone, specification, height, width) != ours).any(1).sum()
    assert centred > 200


@pytest.mark.parametrize(
    "specification",
    [USUAL, STUBBORN, ViewSpecification(flip=0.5), *PRESETS["imagenet"].views],
    ids=["usual", "stubborn", "whole", "imagenet a", "imagenet b"],
)
def test_windows_of_images_one_by_one_are_those_of_all_at_once(specification):
    heights, widths = np.random.default_rng(6).integers(1, 700, (2, 20_000))
    heights[:2000] = np.random.default_rng(7).integers(1, 6, 2000)
    p = draw(specification, 8, 0, np.arange(20_000), 0)
    each = WindowOfEach(p, specification)
    sizes = zip(heights.tolist(), widths.tolist(), strict=True)
    found = [each.find(row, *size) for row, size in enumerate(sizes)]
    np.testing.assert_array_equal(found, windows(p, specification, heights, widths))


def test_each_image_has_its_own_size():
    p = draw(USUAL, 1, 2, np.arange(50), 0)
    heights, widths = np.random.default_rng(1).integers(1, 300, (2, 50))
    ours = windows(p, USUAL, heights, widths)
    assert ours.dtype == np.int32
    alone = [windows(p[i : i + 1], USUAL, int(heights[i]), int(widths[i]))[0] for i in range(50)]
    np.testing.assert_array_equal(ours, alone)
    np.testing.assert_array_equal(windows(p[::-1], USUAL, heights[::-1], widths[::-1]), ours[::-1])


@pytest.mark.parametrize("specification", [USUAL, STUBBORN], ids=["usual", "stubborn"])
def test_windows_lie_in_their_image(specification):
    p = draw(specification, 0, 0, np.arange(20_000), 1)
    heights, widths = np.random.default_rng(2).integers(1, 80, (2, 20_000))
    top, left, height, width = windows(p, specification, heights, widths).T.astype(int)
    assert min(top.min(), left.min()) == 0
    assert min(height.min(), width.min()) == 1
    assert (top + height - heights).max() == 0
    assert (left + width - widths).max() == 0


@pytest.mark.parametrize("image", list(IMAGES))
@pytest.mark.parametrize(
    "specification",
    [USUAL, pytest.param(STUBBORN, marks=pytest.mark.slow)],
    ids=["usual", "stubborn"],
)
def test_windows_are_distributed_as_torchvisions(specification, image):
    transforms = pytest.importorskip("torchvision.transforms")
    height, width = IMAGES[image]
    ours = windows(draw(specification, 3, 0, np.arange(100_000), 0), specification, height, width)
    picture = torch.empty(3, height, width)
    scale, ratio = list(specification.crop_area), list(specification.crop_ratio)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(10_000)]
    )
    torch.set_rng_state(state)
    for name, (a, b) in {
        "top": (ours[:, 0], theirs[:, 0]),
        "left": (ours[:, 1], theirs[:, 1]),
        "height": (ours[:, 2], theirs[:, 2]),
        "width": (ours[:, 3], theirs[:, 3]),
        "area": (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        "ratio": (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
    }.items():
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name


def test_areas_ratios_and_places_are_uniform():
    # Small windows of a large image always fit, and rounding is small against their sides.
    small = ViewSpecification(crop_area=(0.01, 0.2), crop_ratio=(0.5, 2.0))
    side = 100_000
    p = draw(small, 0, 0, np.arange(100_000), 0)
    top, left, height, width = windows(p, small, side, side).T.astype(float)
    ratio = np.log(width / height) / math.log(2)
    for name, values, low, high in (
        ("area", height * width / side**2, 0.01, 0.2),
        ("ratio", ratio, -1, 1),
        ("top", top / (side - height), 0, 1),
        ("left", left / (side - width), 0, 1),
    ):
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3, name


def test_a_view_without_a_crop_is_the_image():
    whole = ViewSpecification(flip=0.5)
    p = draw(whole, 0, 0, np.arange(10), 0)
    np.testing.assert_array_equal(windows(p, whole, 30, 50), [[0, 0, 30, 50]] * 10)
    assert windows(p[:0], whole, 30, 50).shape == (0, 4)


def test_sides_never_round_to_nothing():
    thin = ViewSpecification(crop_area=(0.9, 1.0), crop_ratio=(8.0, 9.0))
    p = draw(thin, 0, 0, np.arange(10), 0)
    np.testing.assert_array_equal(windows(p, thin, 50, 3)[:, 2:], [[1, 3]] * 10)


def test_what_has_no_window_is_refused():
    digits = PRESETS["digits"].views[0]
    with pytest.raises(ValueError, match="turned"):
        windows(draw(digits, 0, 0, np.arange(2), 0), digits, 8, 8)
    with pytest.raises(ValueError, match="turned"):
        WindowOfEach(draw(digits, 0, 0, np.arange(2), 0), digits)
    with pytest.raises(ValueError, match="does not crop"):
        windows(draw(ViewSpecification(), 0, 0, np.arange(2), 0), USUAL, 8, 8)
    with pytest.raises(ValueError, match="does not crop"):
        WindowOfEach(draw(ViewSpecification(), 0, 0, np.arange(2), 0), USUAL)
    with pytest.raises(ValueError, match="no pixels"):
        windows(draw(USUAL, 0, 0, np.arange(2), 0), USUAL, np.array([4, 0]), 8)
