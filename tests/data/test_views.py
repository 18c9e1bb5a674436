"""Views are pure functions, and follow their specification."""

from __future__ import annotations

import math
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from barlow_fast.data import PRESETS, ViewParameters, ViewSpecification, draw, order, render
from barlow_fast.data.philox import philox, uniform

EVERYTHING = ViewSpecification(
    crop_area=(0.2, 0.7),
    crop_ratio=(0.75, 4 / 3),
    rotation=30,
    shear=20,
    flip=0.5,
    brightness=0.4,
    contrast=0.3,
    blur=0.4,
    blur_sigma=(0.5, 2.0),
    solarize=0.2,
    erase=0.3,
    erase_area=(0.1, 0.2),
)


def assert_same(a: ViewParameters, b: ViewParameters) -> None:
    for field in fields(ViewParameters):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def random_images(count: int, size: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)


# The known answers that the authors of Philox publish with their code, for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            0xFFFFFFFFFFFFFFFF,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    assert tuple(philox(counter, key)) == answer


def test_philox_broadcasts_its_counters():
    words = philox((np.arange(5)[:, None], 7, np.arange(3), 2), 11)
    assert words.shape == (4, 5, 3)
    np.testing.assert_array_equal(words[:, 4, 1], philox((4, 7, 1, 2), 11))


def test_uniform_never_reaches_its_ends():
    values = uniform(np.array([0, 0xFFFFFFFF], dtype=np.uint64))
    assert values.dtype == np.float32
    assert 0 < values[0] < values[1] < 1


def test_a_view_does_not_depend_on_its_batch():
    samples = np.arange(1000)
    whole = draw(EVERYTHING, 3, 5, samples, 1)
    shuffled = np.random.default_rng(0).permutation(samples)
    assert_same(draw(EVERYTHING, 3, 5, shuffled, 1), whole[shuffled])
    for sample in (0, 7, 999):
        assert_same(draw(EVERYTHING, 3, 5, np.array([sample]), 1), whole[sample : sample + 1])


@pytest.mark.parametrize("change", ["seed", "epoch", "samples", "view"])
def test_every_argument_changes_the_view(change):
    arguments = {"seed": 3, "epoch": 5, "samples": np.arange(100), "view": 0}
    a = draw(EVERYTHING, **arguments)
    arguments[change] = arguments[change] + 1
    b = draw(EVERYTHING, **arguments)
    for field in ("top", "left", "height", "rotation", "brightness", "contrast"):
        assert (getattr(a, field) == getattr(b, field)).mean() < 0.02, field
    correlation = np.corrcoef(a.brightness, b.brightness)[0, 1]
    assert abs(correlation) < 0.4


def test_large_numbers_are_all_told_apart():
    a = draw(EVERYTHING, 2**64 - 1, 2**32 - 1, np.array([2**32 - 1]), 2**31)
    b = draw(EVERYTHING, 2**63, 2**32 - 1, np.array([2**32 - 1]), 2**31)
    assert a.brightness[0] != b.brightness[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, [0], 0), "seed"),
        ((0, 2**32, [0], 0), "epoch"),
        ((0, 0, [-1], 0), "samples"),
        ((0, 0, [2**32], 0), "samples"),
        ((0, 0, [0], 2**32 - 1), "view"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(EVERYTHING, *arguments)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Range, mean and variance of a uniform draw, within five standard errors."""
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    width = high - low
    error = width / math.sqrt(12 * len(values))
    assert abs(values.mean() - (low + high) / 2) < 5 * error
    assert abs(values.std() - width / math.sqrt(12)) < 5 * error


def test_draws_follow_the_specification():
    p = draw(EVERYTHING, 0, 0, np.arange(20_000), 0)
    assert_uniform(p.brightness, 0.6, 1.4)
    assert_uniform(p.contrast, 0.7, 1.3)
    assert_uniform(np.rad2deg(p.rotation), -30, 30)
    assert_uniform(np.rad2deg(np.arctan(p.shear)), -20, 20)
    # No window of these areas and ratios is longer than the image, so nothing is cut: the area is
    # the draw.
    assert_uniform(p.height * p.width, 0.2, 0.7)
    assert_uniform(np.log(p.width / p.height), math.log(0.75), math.log(4 / 3))
    assert_uniform(p.top / (1 - p.height), 0, 1)
    assert_uniform(p.left / (1 - p.width), 0, 1)
    assert_uniform(p.blur_sigma[p.blur_sigma > 0], 0.5, 2.0)
    assert_uniform(p.erase_side[p.erase_side > 0] ** 2, 0.1, 0.2)
    for happened, probability in (
        (p.flip, 0.5),
        (p.blur_sigma > 0, 0.4),
        (p.solarize, 0.2),
        (p.erase_side > 0, 0.3),
    ):
        error = math.sqrt(probability * (1 - probability) / len(p))
        assert abs(happened.mean() - probability) < 5 * error


def test_draws_are_independent_of_each_other():
    p = draw(EVERYTHING, 0, 0, np.arange(20_000), 0)
    columns = [p.brightness, p.contrast, p.rotation, p.shear, p.height * p.width, p.flip * 1.0]
    correlation = np.corrcoef(np.stack(columns))
    assert np.abs(correlation - np.eye(len(columns))).max() < 5 / math.sqrt(20_000)


def test_a_long_window_is_cut_to_the_image_unless_it_zooms_out():
    inside = draw(ViewSpecification((1.0, 1.0), (0.5, 2.0)), 0, 0, np.arange(200), 0)
    assert max(inside.height.max(), inside.width.max()) == 1
    outside = draw(ViewSpecification((1.44, 1.44)), 0, 0, np.arange(200), 0)
    np.testing.assert_allclose(outside.height, 1.2, rtol=1e-6)
    assert outside.top.max() <= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"crop_area": (0.5, 0.2)},
        {"crop_ratio": (0.0, 1.0)},
        {"brightness": -0.1},
        {"shear": 90},
    ],
)
def test_an_impossible_specification_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViewSpecification(**wrong)


def test_digits_are_never_mirrored():
    assert all(view.flip == 0 for view in PRESETS["digits"].views)
    assert all(view.flip == 0.5 for view in PRESETS["fashion-mnist"].views)


def test_two_views_of_a_batch_are_drawn_quickly():
    samples = np.arange(256)
    best = math.inf
    for epoch in range(20):
        start = time.perf_counter()
        for view in (0, 1):
            draw(EVERYTHING, 0, epoch, samples, view)
        best = min(best, time.perf_counter() - start)
    # Meant to be below 1 ms; a machine that is busy or slow gets room, a loop over samples does
    # not fit.
    assert best < 5e-3


# ---- order


def test_order_is_a_pure_permutation():
    a = order(1, 2, 1000)
    assert a.dtype == np.int64
    np.testing.assert_array_equal(np.sort(a), np.arange(1000))
    np.testing.assert_array_equal(a, order(1, 2, 1000))
    assert (a == order(1, 3, 1000)).mean() < 0.02
    assert (a == order(2, 2, 1000)).mean() < 0.02


def test_order_puts_every_sample_everywhere():
    positions = np.stack([np.argsort(order(0, epoch, 50)) for epoch in range(2000)])
    error = math.sqrt(50**2 / 12 / 2000)
    assert np.abs(positions.mean(0) - 24.5).max() < 5 * error


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 65])
def test_order_of_few(count):
    np.testing.assert_array_equal(np.sort(order(0, 0, count)), np.arange(count))


# ---- rendering


def test_the_default_specification_changes_nothing():
    images = random_images(4)
    views = render(images, draw(ViewSpecification(), 0, 0, np.arange(4), 0))
    torch.testing.assert_close(views, images / 255, atol=1e-6, rtol=0)


def test_a_rendered_view_does_not_depend_on_its_batch():
    images = random_images(64)
    p = draw(EVERYTHING, 0, 0, np.arange(64), 0)
    whole = render(images, p, 0.3, 0.4)
    parts = [render(images[i : i + 16], p[i : i + 16], 0.3, 0.4) for i in range(0, 64, 16)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-6, rtol=0)
    torch.testing.assert_close(render(images[9:10], p[9:10], 0.3, 0.4), whole[9:10])


def test_mean_and_deviation_are_taken_out_last():
    images = random_images(8)
    p = draw(EVERYTHING, 0, 0, np.arange(8), 0)
    torch.testing.assert_close(render(images, p, 0.25, 0.5), (render(images, p) - 0.25) / 0.5)


def only(**values: float | bool) -> ViewParameters:
    """Parameters of one view that changes nothing but `values`."""
    neutral = draw(ViewSpecification(), 0, 0, np.arange(1), 0)
    changed = {
        name: np.array([value], dtype=getattr(neutral, name).dtype)
        for name, value in values.items()
    }
    return ViewParameters(**{**vars(neutral), **changed})


def test_flip_mirrors():
    images = random_images(1)
    torch.testing.assert_close(
        render(images, only(flip=True)), (images / 255).flip(-1), atol=1e-6, rtol=0
    )


def test_a_quarter_turn_turns_anticlockwise():
    images = random_images(1)
    view = render(images, only(rotation=math.pi / 2))
    torch.testing.assert_close(view, (images / 255).rot90(1, (-2, -1)), atol=1e-5, rtol=0)


def test_shear_moves_rows_sideways():
    images = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    images[..., 4] = 255
    view = render(images, only(shear=1.0))[0, 0]
    # A vertical stroke becomes a diagonal one, in the direction that the sign says.
    assert view.fliplr().diagonal().min() > 0.99 or view.diagonal().min() > 0.99
    assert view.sum() == pytest.approx(9, abs=0.01)


def test_crop_enlarges_its_window():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:, :4] = 255
    view = render(images, only(top=0.5, left=0.0, height=0.5, width=0.5))
    # The border of the window blends with what lies outside it.
    assert view[..., 1:-1, 1:-1].min() == 1
    torch.testing.assert_close(
        render(images, only(top=0.0, left=0.5, height=0.5, width=0.5))[..., 1:-1, 1:-1].max(),
        torch.tensor(0.0),
    )


def test_rotation_keeps_angles_in_images_that_are_not_square():
    images = torch.zeros(1, 1, 8, 16, dtype=torch.uint8)
    images[..., 3:5, 6:10] = 255
    view = render(images, only(rotation=math.pi / 2))[0, 0]
    expected = torch.zeros(8, 16)
    expected[2:6, 7:9] = 1
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_contrast_is_about_the_mean_and_brightness_about_black():
    images = (random_images(1).int() // 4 + 96).to(torch.uint8)
    values = images / 255
    contrasted = render(images, only(contrast=1.2))
    torch.testing.assert_close(contrasted.mean(), values.mean())
    torch.testing.assert_close(contrasted.std(), values.std() * 1.2)
    torch.testing.assert_close(render(images, only(brightness=0.5)), values * 0.5)
    assert render(images, only(brightness=2.0)).max() == 1


def test_blur_is_gaussian_and_keeps_flat_areas():
    flat = torch.full((1, 1, 12, 12), 51, dtype=torch.uint8)
    torch.testing.assert_close(render(flat, only(blur_sigma=2.0)), flat / 255)
    point = torch.zeros(1, 1, 15, 15, dtype=torch.uint8)
    point[..., 7, 7] = 255
    blurred = render(point, only(blur_sigma=1.0))[0, 0]
    offsets = torch.arange(15) - 7.0
    profile = torch.exp(-0.5 * offsets.square())
    profile /= profile.sum()
    torch.testing.assert_close(blurred[3:12, 3:12], torch.outer(profile, profile)[3:12, 3:12])


def test_solarize_inverts_the_bright_half():
    images = random_images(1)
    values = images / 255
    expected = torch.where(values >= 0.5, 1 - values, values)
    torch.testing.assert_close(render(images, only(solarize=True)), expected, atol=1e-6, rtol=0)


def test_erase_blackens_its_square_alone():
    images = torch.full((1, 1, 10, 10), 255, dtype=torch.uint8)
    view = render(images, only(erase_top=0.2, erase_left=0.5, erase_side=0.3))[0, 0]
    expected = torch.ones(10, 10)
    expected[2:5, 5:8] = 0
    torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


def test_render_refuses_what_it_does_not_know():
    p = draw(ViewSpecification(), 0, 0, np.arange(2), 0)
    with pytest.raises(ValueError, match="uint8"):
        render(torch.rand(2, 1, 8, 8), p)
    with pytest.raises(ValueError, match="3 images"):
        render(random_images(3), p)
