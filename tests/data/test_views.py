"""Views are pure functions, and follow their specification."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from barlow_fast.data import PRESETS, ViewParameters, ViewSpecification, draw, render
from barlow_fast.data.philox import philox, uniform
from barlow_fast.data.rendering.arrays import crops_of
from barlow_fast.data.views import DRAWS
from barlow_fast.kernels import photometry
from barlow_fast.kernels.photometry import ORDERS, PARAMETERS, Parameter

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
    jitter=0.8,
    saturation=0.2,
    hue=0.1,
    random_order=True,
    grayscale=0.2,
)
# The same without what needs a warp.
CROPPED = replace(EVERYTHING, rotation=0, shear=0)


def assert_same(a: ViewParameters, b: ViewParameters) -> None:
    for field in fields(ViewParameters):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


def random_images(count: int, size: int = 12, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


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


SPECIFICATIONS = {
    "everything": EVERYTHING,
    "cropped": CROPPED,
    "nothing": ViewSpecification(),
    **{f"{name} {n}": view for name, p in PRESETS.items() for n, view in enumerate(p.views)},
}


@pytest.mark.parametrize("name", list(SPECIFICATIONS))
def test_a_view_does_not_depend_on_its_batch(name):
    specification = SPECIFICATIONS[name]
    samples = np.arange(1000)
    whole = draw(specification, 3, 5, samples, 1)
    for field in fields(ViewParameters):
        assert getattr(whole, field.name).shape[:1] == (1000,), field.name
    shuffled = np.random.default_rng(0).permutation(samples)
    assert_same(draw(specification, 3, 5, shuffled, 1), whole[shuffled])
    for sample in (0, 7, 999):
        assert_same(draw(specification, 3, 5, np.array([sample]), 1), whole[sample : sample + 1])
    assert len(draw(specification, 3, 5, samples[:0], 1)) == 0


def test_what_is_not_drawn_changes_nothing_else():
    """Numbers that a specification has no use for are left out of the generator's work; the others
    must not notice."""
    whole, part = (draw(s, 1, 2, np.arange(500), 0) for s in (EVERYTHING, CROPPED))
    unchanged = {f.name for f in fields(ViewParameters)} - {"rotation", "shear", "tries"}
    for name in unchanged:
        np.testing.assert_array_equal(getattr(whole, name), getattr(part, name), name)
    for change in ({"hue": 0.0}, {"grayscale": 0.0}, {"jitter": 1.0}, {"random_order": False}):
        other = draw(replace(CROPPED, **change), 1, 2, np.arange(500), 0)
        np.testing.assert_array_equal(other.tries, part.tries)
        both = (other.order >= 0) & (part.order >= 0)
        np.testing.assert_array_equal(other.brightness[both], part.brightness[both])
        np.testing.assert_array_equal(other.saturation[both], part.saturation[both])


def test_draws_are_appended():
    # A number that moves changes every view of every seed.
    assert DRAWS[:21] == (
        *("crop_area", "crop_ratio", "crop_top", "crop_left", "rotation", "shear", "flip"),
        *("brightness", "contrast", "blur", "blur_sigma", "solarize", "erase", "erase_area"),
        *("erase_top", "erase_left", "jitter", "saturation", "hue", "jitter_order", "grayscale"),
    )
    assert DRAWS[21:23] == ("crop_area_2", "crop_ratio_2")
    assert DRAWS[37:39] == ("crop_area_10", "crop_ratio_10")
    assert len(set(DRAWS)) == len(DRAWS)


# Taken from the first version of `draw`. Hashes are of what has the same bits on every machine;
# exponentials and tangents differ by vector library, so values stand for those.
EXACT = (
    *("flip", "brightness", "contrast", "blur_sigma", "solarize"),
    *("erase_top", "erase_left", "erase_side"),
)
PINNED = {
    "digits": (
        "2f0392dac8537ba637eb0791b85224c7262fc28d805aba8d72b734071635319b",
        {
            "top": [-0.0378581, -0.04803434, 0.02466064],
            "left": [0.02186236, 0.06572399, -0.002536899],
            "height": [1.095445, 1.095445, 0.9406511],
            "width": [0.9492588, 0.9077426, 1.008965],
            "rotation": [-0.07165533, -0.2433988, -0.2068945],
            "shear": [-0.1699344, -0.2425916, 0.02117625],
        },
    ),
    "fashion-mnist": (
        "ef6528231b9bd18b5856cfbf3d1c776dce6eccdc9dfdcce2a83726b99dbe651a",
        {
            "top": [0.006140618, 0.0, 0.07810908],
            "left": [0.06803177, 0.1354468, 0.03650813],
            "height": [0.9845187, 1.0, 0.8120208],
            "width": [0.8421025, 0.809872, 0.8709927],
            "rotation": [0.0, 0.0, 0.0],
            "shear": [0.0, 0.0, 0.0],
        },
    ),
}


# What a preset had when its values were pinned: draws must not change, ranges may.
PINNED_RANGES = {
    "digits": {},
    "fashion-mnist": {"crop_area": (0.3, 1.0), "brightness": 0.4, "contrast": 0.4},
}


@pytest.mark.parametrize("name", list(PINNED))
def test_old_seeds_show_their_old_views(name):
    digest, values = PINNED[name]
    ours = hashlib.sha256()
    views = [replace(view, **PINNED_RANGES[name]) for view in PRESETS[name].views]
    for view, specification in enumerate(views):
        for seed, epoch in ((0, 0), (7, 3), (2**64 - 1, 2**32 - 1)):
            p = draw(specification, seed, epoch, np.arange(0, 60_000, 7), view)
            for field in EXACT:
                ours.update(np.ascontiguousarray(getattr(p, field)).tobytes())
    assert ours.hexdigest() == digest
    p = draw(views[1], 7, 3, np.array([0, 7, 59_999]), 1)
    for field, expected in values.items():
        np.testing.assert_allclose(getattr(p, field), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("change", ["seed", "epoch", "samples", "view"])
def test_every_argument_changes_the_view(change):
    arguments = {"seed": 3, "epoch": 5, "samples": np.arange(100), "view": 0}
    specification = replace(EVERYTHING, jitter=1.0)
    a = draw(specification, **arguments)
    arguments[change] = arguments[change] + 1
    b = draw(specification, **arguments)
    for field in ("top", "left", "height", "rotation", "brightness", "contrast"):
        assert (getattr(a, field) == getattr(b, field)).mean() < 0.02, field
    correlation = np.corrcoef(a.brightness, b.brightness)[0, 1]
    assert abs(correlation) < 0.4


def test_large_numbers_are_all_distinguished():
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
        {"saturation": 1.1},
        {"hue": 0.6},
        {"jitter": -0.1},
        {"grayscale": 2},
        {"blur_sigma": (0.1, 9.0)},
        {"erase_area": (0.5, 1.5)},
        {"solarize_threshold": 256},
        {"solarize_threshold": 0.5},
        {"size": 0},
        {"size": (32, 0)},
        {"size": (32, 32, 3)},
        {"size": True},
        {"size": 32.0},
        {"interpolation": "nearest"},
        {"random_order": 1},
        {"flip": "often"},
        {"flip": True},
        {"crop_area": 0.5},
        {"flip": math.nan},
        {"crop_area": (0.1, math.inf)},
    ],
)
def test_an_impossible_specification_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViewSpecification(**wrong)


@pytest.mark.parametrize(
    "borders",
    [
        {"flip": 0.0, "solarize_threshold": 0},
        {"flip": 1.0, "solarize_threshold": 255},
        {"erase_area": (0.1, 1.0), "hue": 0.5, "saturation": 1.0},
        {"blur_sigma": (0.1, 8.0), "brightness": 0.0},
    ],
)
def test_the_ends_of_a_range_belong_to_it(borders):
    specification = ViewSpecification(**borders)
    assert {name: getattr(specification, name) for name in borders} == borders


def test_two_views_of_a_batch_are_drawn_quickly():
    samples = np.arange(256)
    views = PRESETS["imagenet"].views
    seconds = []
    for epoch in range(60):
        start = time.process_time()
        for number, view in enumerate(views):
            draw(view, 0, epoch, samples, number)
        seconds.append(time.process_time() - start)
    # Half a millisecond, of processor time because others may hold the cores; a loop over samples
    # does not fit into three.
    assert statistics.median(seconds) < 3e-3


# ---- rows of the photometric kernels


def test_rows_say_what_was_drawn():
    p = draw(EVERYTHING, 4, 5, np.arange(500), 0)
    rows = p.photometric_rows(20, 30)
    assert rows.shape == (500, PARAMETERS)
    assert rows.dtype == np.float32
    for column, values in (
        (Parameter.FLIP, p.flip),
        (Parameter.ORDER, p.order),
        (Parameter.BRIGHTNESS, p.brightness),
        (Parameter.CONTRAST, p.contrast),
        (Parameter.SATURATION, p.saturation),
        (Parameter.HUE, p.hue),
        (Parameter.GRAY, p.grayscale),
        (Parameter.BLUR_SIGMA, p.blur_sigma),
        (Parameter.SOLARIZE, np.where(p.solarize, 128, 256)),
    ):
        np.testing.assert_array_equal(rows[:, column], values, column.name)
    assert set(rows[:, Parameter.ORDER]) == {-1, *range(len(ORDERS))}
    low = replace(EVERYTHING, solarize=1.0, solarize_threshold=7)
    low = draw(low, 4, 5, np.arange(10), 0).photometric_rows(20, 30)
    assert (low[:, Parameter.SOLARIZE] == 7).all()


def test_erased_squares_cover_the_pixels_whose_centres_they_hold():
    height, width = 20, 30
    p = draw(replace(EVERYTHING, erase=0.5), 4, 5, np.arange(500), 0)
    rows = p.photometric_rows(height, width)
    seen = set()
    for number, row in enumerate(rows):
        top, left, side = p.erase_top[number], p.erase_left[number], p.erase_side[number]
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        inside_y, inside_x = (y >= top) & (y < top + side), (x >= left) & (x < left + side)
        expected = np.outer(inside_y, inside_x)
        t, le, b, r = row[Parameter.ERASE_TOP :].astype(int)
        got = np.zeros((height, width), bool)
        got[t:b, le:r] = True
        np.testing.assert_array_equal(got, expected)
        assert 0 <= t <= b <= height
        assert 0 <= le <= r <= width
        seen.add(bool(side))
    assert seen == {True, False}


def test_without_jitter_no_order_is_drawn():
    p = draw(ViewSpecification(flip=0.5), 0, 0, np.arange(50), 0)
    rows = p.photometric_rows(8, 8)
    assert (rows[:, Parameter.ORDER] == -1).all()
    fixed = draw(ViewSpecification(hue=0.1), 0, 0, np.arange(50), 0).photometric_rows(8, 8)
    assert {ORDERS[int(n)] for n in fixed[:, Parameter.ORDER]} == {(0, 1, 2, 3)}


# ---- rendering

# Requests a warp; what is shown is what `only` says.
WARP = ViewSpecification(rotation=1)
WHOLE = ViewSpecification()


def test_the_default_specification_changes_nothing():
    images = random_images(4)
    views = render(images, draw(WHOLE, 0, 0, np.arange(4), 0), WHOLE)
    torch.testing.assert_close(views, images / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(SPECIFICATIONS))
def test_a_rendered_view_does_not_depend_on_its_batch(name):
    specification = replace(SPECIFICATIONS[name], size=14)
    channels = 1 if name.startswith(("digits", "fashion")) else 3
    images = random_images(40, channels=channels)
    p = draw(specification, 0, 0, np.arange(40), 0)
    whole = render(images, p, specification, 0.3, 0.4)
    assert whole.shape == (40, channels, 14, 14)
    for rows in (slice(0, 16), slice(16, 17), slice(17, 40)):
        assert torch.equal(render(images[rows], p[rows], specification, 0.3, 0.4), whole[rows])


def test_a_view_is_a_crop_and_its_photometric_part():
    images = random_images(16, channels=3)
    p = draw(CROPPED, 0, 0, np.arange(16), 0)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    view = render(images, p, CROPPED, mean, std, torch.float32)
    crops = crops_of(images.permute(0, 2, 3, 1), p, CROPPED)
    rows = torch.from_numpy(p.photometric_rows(12, 12))
    expected = photometry.photometric(
        crops, rows, torch.tensor(mean), torch.tensor(std), torch.float32
    )
    torch.testing.assert_close(view, expected, atol=2e-5, rtol=0)
    assert view.is_contiguous(memory_format=torch.channels_last)
    half = render(images, p, CROPPED, mean, std, torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_mean_and_deviation_are_taken_out_last():
    images = random_images(8)
    p = draw(EVERYTHING, 0, 0, np.arange(8), 0)
    torch.testing.assert_close(
        render(images, p, EVERYTHING, 0.25, 0.5), (render(images, p, EVERYTHING) - 0.25) / 0.5
    )


def only(**values: float | bool) -> ViewParameters:
    """Parameters of one view that changes nothing but `values`."""
    neutral = draw(WHOLE, 0, 0, np.arange(1), 0)
    changed = {
        name: np.array([value], dtype=getattr(neutral, name).dtype)
        for name, value in values.items()
    }
    return ViewParameters(**{**vars(neutral), **changed})


# Half a level, and what float32 adds.
LEVEL = 0.5 / 255 + 1e-5


def test_flip_mirrors():
    images = random_images(1)
    for specification in (WHOLE, WARP):
        torch.testing.assert_close(
            render(images, only(flip=True), specification),
            (images / 255).flip(-1),
            atol=LEVEL,
            rtol=0,
        )


def test_a_quarter_turn_turns_anticlockwise():
    images = random_images(1)
    view = render(images, only(rotation=math.pi / 2), WARP)
    torch.testing.assert_close(view, (images / 255).rot90(1, (-2, -1)), atol=LEVEL, rtol=0)


def test_shear_moves_rows_sideways():
    images = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    images[..., 4] = 255
    view = render(images, only(shear=1.0), WARP)[0, 0]
    # A vertical stroke becomes a diagonal one, in the direction that the sign says.
    assert view.fliplr().diagonal().min() > 0.99 or view.diagonal().min() > 0.99
    assert view.sum() == pytest.approx(9, abs=0.1)


def test_a_warped_window_is_enlarged():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:, :4] = 255
    view = render(images, only(top=0.5, left=0.0, height=0.5, width=0.5), WARP)
    # The border of the window blends with what lies outside it.
    assert view[..., 1:-1, 1:-1].min() == 1
    view = render(images, only(top=0.0, left=0.5, height=0.5, width=0.5), WARP)
    assert view[..., 1:-1, 1:-1].max() == 0


def test_what_lies_outside_is_black():
    images = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    view = render(images, only(top=-0.5, left=-0.5, height=2.0, width=2.0), WARP)[0, 0]
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1
    torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


def test_rotation_keeps_angles_in_images_that_are_not_square():
    images = torch.zeros(1, 1, 8, 16, dtype=torch.uint8)
    images[..., 3:5, 6:10] = 255
    view = render(images, only(rotation=math.pi / 2), WARP)[0, 0]
    expected = torch.zeros(8, 16)
    expected[2:6, 7:9] = 1
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_erase_blackens_its_square_alone():
    images = torch.full((1, 1, 10, 10), 255, dtype=torch.uint8)
    view = render(images, only(erase_top=0.2, erase_left=0.5, erase_side=0.3), WHOLE)[0, 0]
    expected = torch.ones(10, 10)
    expected[2:5, 5:8] = 0
    torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


def test_render_refuses_what_it_does_not_know():
    p = draw(WHOLE, 0, 0, np.arange(2), 0)
    with pytest.raises(ValueError, match="uint8"):
        render(torch.rand(2, 1, 8, 8), p, WHOLE)
    with pytest.raises(ValueError, match="3 images"):
        render(random_images(3), p, WHOLE)
