"""What is drawn follows the specification, over a hundred thousand draws.

Draws are pure, so a test either always passes or always fails: a p-value below the threshold is a
finding, not a flake.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from test_views import EVERYTHING as EVERYTHING_DRAWN

from barlow_fast.data import PRESETS, ViewSpecification, draw
from barlow_fast.kernels.photometry import ORDERS

COUNT = 120_000
SMALLEST_P = 1e-3

EVERYTHING = replace(EVERYTHING_DRAWN, blur_sigma=(0.1, 2.0), grayscale=0.25)


@pytest.fixture(scope="module")
def drawn():
    return draw(EVERYTHING, 12, 34, np.arange(COUNT), 1)


@pytest.fixture(scope="module")
def values(drawn) -> dict[str, tuple[np.ndarray, float, float]]:
    """name -> (values, low, high) of what must be uniform."""
    p = drawn
    jittered = p.order >= 0
    return {
        # No window of these areas and ratios is longer than the image, so nothing is cut.
        "area": (p.height * p.width, 0.2, 0.7),
        "ratio": (np.log(p.width / p.height), np.log(0.75), np.log(4 / 3)),
        "top": (p.top / (1 - p.height), 0, 1),
        "left": (p.left / (1 - p.width), 0, 1),
        "rotation": (np.rad2deg(p.rotation), -30, 30),
        "shear": (np.rad2deg(np.arctan(p.shear)), -20, 20),
        "brightness": (p.brightness[jittered], 0.6, 1.4),
        "contrast": (p.contrast[jittered], 0.7, 1.3),
        "saturation": (p.saturation[jittered], 0.8, 1.2),
        "hue": (p.hue[jittered], -0.1, 0.1),
        "blur_sigma": (p.blur_sigma[p.blur_sigma > 0], 0.1, 2.0),
        "erase_area": (p.erase_side[p.erase_side > 0] ** 2, 0.1, 0.2),
        "erase_top": (p.erase_top / (1 - p.erase_side), 0, 1),
        "erase_left": (p.erase_left / (1 - p.erase_side), 0, 1),
    }


UNIFORM = (
    *("area", "ratio", "top", "left", "rotation", "shear", "brightness", "contrast"),
    *("saturation", "hue", "blur_sigma", "erase_area", "erase_top", "erase_left"),
)


@pytest.mark.parametrize("name", UNIFORM)
def test_what_is_uniform(values, name):
    sample, low, high = values[name]
    assert len(sample) > COUNT / 4
    assert stats.kstest(sample, "uniform", (low, high - low)).pvalue > SMALLEST_P


@pytest.mark.parametrize("position", range(10))
def test_every_attempt_at_a_window_is_uniform(position):
    cropping = ViewSpecification(crop_area=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))
    p = draw(cropping, 5, 0, np.arange(COUNT), 0)
    assert p.tries.shape == (COUNT, 10, 2)
    for number in p.tries[:, position].T:
        assert stats.kstest(number, "uniform").pvalue > SMALLEST_P
    if position:
        others = np.corrcoef(p.tries[:, : position + 1].reshape(COUNT, -1).T)
        assert np.abs(others - np.eye(len(others))).max() < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize(
    ("name", "probability"),
    [
        ("flip", 0.5),
        ("blur", 0.4),
        ("solarize", 0.2),
        ("erase", 0.3),
        ("jitter", 0.8),
        ("grayscale", 0.25),
    ],
)
def test_what_happens_as_often_as_said(drawn, name, probability):
    happened = {
        "flip": drawn.flip,
        "blur": drawn.blur_sigma > 0,
        "solarize": drawn.solarize,
        "erase": drawn.erase_side > 0,
        "jitter": drawn.order >= 0,
        "grayscale": drawn.grayscale,
    }[name]
    assert stats.binomtest(int(happened.sum()), COUNT, probability).pvalue > SMALLEST_P


def test_every_order_of_the_jitter_is_as_likely(drawn):
    counts = np.bincount(drawn.order[drawn.order >= 0], minlength=len(ORDERS))
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_what_is_not_jittered_stays_as_it_is(drawn):
    rest = drawn[drawn.order < 0]
    assert len(rest) > COUNT / 10
    for factor in (rest.brightness, rest.contrast, rest.saturation):
        assert (factor == 1).all()
    assert (rest.hue == 0).all()


def test_draws_are_independent_of_each_other(drawn):
    p = drawn[drawn.order >= 0]
    columns = [
        *(p.brightness, p.contrast, p.saturation, p.hue, p.order, p.grayscale, p.flip, p.solarize),
        *(p.rotation, p.shear, p.height * p.width, p.width / p.height, p.blur_sigma, p.erase_side),
    ]
    correlation = np.corrcoef(np.stack([np.asarray(column, float) for column in columns]))
    assert np.abs(correlation - np.eye(len(columns))).max() < 5 / np.sqrt(len(p))


def test_views_epochs_and_seeds_are_independent():
    view = PRESETS["imagenet"].views[0]
    sample = {"specification": view, "seed": 1, "epoch": 2, "samples": np.arange(COUNT), "view": 0}
    names = ("brightness", "hue", "top", "blur_sigma", "order")
    a = draw(**sample)
    for change in ("seed", "epoch", "samples", "view"):
        b = draw(**{**sample, change: sample[change] + 1})
        for name in names:
            r = np.corrcoef(getattr(a, name), getattr(b, name))[0, 1]
            assert abs(r) < 5 / np.sqrt(COUNT), (change, name)


def test_the_recipe_of_imagenet_is_the_papers():
    first, second = PRESETS["imagenet"].views
    a, b = (draw(v, 0, 0, np.arange(COUNT), n) for n, v in enumerate((first, second)))
    assert (a.blur_sigma > 0).all()
    assert not a.solarize.any()
    assert stats.kstest(a.blur_sigma, "uniform", (0.1, 1.9)).pvalue > SMALLEST_P
    for happened, probability in (
        (b.blur_sigma > 0, 0.1),
        (b.solarize, 0.2),
        (b.order >= 0, 0.8),
        (a.order >= 0, 0.8),
        (a.grayscale, 0.2),
        (b.flip, 0.5),
    ):
        assert stats.binomtest(int(happened.sum()), COUNT, probability).pvalue > SMALLEST_P
    jittered = a[a.order >= 0]
    for values, low, high in (
        (jittered.brightness, 0.6, 1.4),
        (jittered.contrast, 0.6, 1.4),
        (jittered.saturation, 0.8, 1.2),
        (jittered.hue, -0.1, 0.1),
    ):
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > SMALLEST_P
    assert (b.solarize_threshold == 128).all()
