"""Crops of images in memory: Pillow's, to the bit, for any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import MEAN, STD, cropping, photograph
from PIL import Image
from torch.nn import functional

from barlow_fast.data import PRESETS, ViewParameters, Views, ViewSpecification, draw, windows
from barlow_fast.data.rendering import arrays, native_crop
from barlow_fast.data.rendering.arrays import ArrayRenderer, crop, crops_of, warp, with_channels
from barlow_fast.data.sources import ArraySource

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PILLOW = int(Image.__version__.split(".")[0])


def resized(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """As Pillow 13 resizes, by any Pillow: which pass comes first is forced by resizing one
    direction at a time."""
    (height, width), resampling = size, FILTERS[interpolation]
    shrink = image.height - height
    if shrink > 0 and shrink > 2 * (image.width - width):
        return image.resize((image.width, height), resampling).resize((width, height), resampling)
    return image.resize((width, image.height), resampling).resize((width, height), resampling)


def by_pillow(
    images: np.ndarray, places: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
    crops = []
    for pixels, (top, left, height, width) in zip(images, places.tolist(), strict=True):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image = image.crop((left, top, left + width, top + height))
        view = resized(image, size, interpolation)
        if PILLOW >= 13:
            assert view.tobytes() == image.resize(size[::-1], FILTERS[interpolation]).tobytes()
        crops.append(np.asarray(view).reshape(*size, -1))
    return np.stack(crops)


@pytest.fixture(params=["native", "products"])
def cropped_by(request, monkeypatch):
    """What crops: the native kernels, or torch as on other devices."""
    if request.param == "products":
        monkeypatch.setattr(arrays, "native_crop", lambda: None)
    elif native_crop() is None:
        pytest.skip("no native kernels here")
    return request.param


uses_both = pytest.mark.usefixtures("cropped_by")


def random_places(generator, count: int, height: int, width: int) -> np.ndarray:
    """Windows of any size and place, the smallest and the largest among them."""
    tall, wide = generator.integers(1, height + 1, count), generator.integers(1, width + 1, count)
    tall[0], wide[0], tall[-1], wide[-1] = 1, 1, height, width
    top = (generator.random(count) * (height - tall + 1)).astype(int)
    left = (generator.random(count) * (width - wide + 1)).astype(int)
    return np.stack((top, left, tall, wide), 1)


@uses_both
@pytest.mark.parametrize("interpolation", list(FILTERS))
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((32, 32, 3), (32, 32)),
        ((28, 28, 1), (28, 28)),
        ((8, 8, 1), (20, 13)),
        ((96, 96, 3), (64, 48)),
        ((50, 71, 1), (32, 32)),
        ((64, 7, 3), (9, 31)),
        ((3, 120, 3), (5, 20)),
        ((1, 1, 3), (4, 4)),
        ((224, 224, 3), (224, 224)),
    ],
    ids=str,
)
def test_noise_is_resized_as_pillow_does(shape, size, interpolation):
    generator = np.random.default_rng(0)
    count = 8 if shape[0] > 200 else 60
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    places = random_places(generator, count, *shape[:2])
    ours = crop(torch.from_numpy(images), places, size, interpolation)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    np.testing.assert_array_equal(ours, by_pillow(images, places, size, interpolation))


@uses_both
@pytest.mark.parametrize("interpolation", list(FILTERS))
def test_photographs_are_cropped_as_pillow_does(interpolation):
    images = [photograph(n).resize((160, 120), Image.Resampling.LANCZOS) for n in range(3)]
    images = np.stack([np.asarray(image) for image in images for _ in range(10)])
    view = cropping((48, 64), interpolation=interpolation)
    places = windows(draw(view, 0, 0, np.arange(30), 0), view, 120, 160)
    ours = crop(torch.from_numpy(images), places, (48, 64), interpolation)
    np.testing.assert_array_equal(ours, by_pillow(images, places, (48, 64), interpolation))


def test_far_more_than_thirty_two_taps_stay_within_a_level(cropped_by):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (6, 300, 400, 3), dtype=np.uint8)
    images[1], images[2] = 255, 0
    places = np.array([[0, 0, 300, 400]] * 6)
    for interpolation in FILTERS:
        ours = crop(torch.from_numpy(images), places, (6, 5), interpolation).numpy().astype(int)
        theirs = by_pillow(images, places, (6, 5), interpolation)
        assert np.abs(ours - theirs).max() <= (1 if cropped_by == "products" else 0)
        assert (ours[1] == 255).all()
        assert (ours[2] == 0).all()


@settings(deadline=None)  # other processes may hold the cores
@given(
    sides=st.tuples(*[st.integers(1, 40)] * 4),
    interpolation=st.sampled_from(list(FILTERS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_is_resized_as_pillow_does(sides, interpolation, seed):
    height, width, *size = sides
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    places = random_places(generator, 4, height, width)
    theirs = by_pillow(images, places, tuple(size), interpolation)
    for crop_by in (crop, arrays.crop_by_products):
        ours = crop_by(torch.from_numpy(images), places, tuple(size), interpolation)
        np.testing.assert_array_equal(ours, theirs)


@uses_both
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kept", [0, 2**40], ids=["made for each batch", "kept"])
def test_crops_have_the_same_bits_in_any_batch(threads, kept, monkeypatch):
    generator = np.random.default_rng(2)
    images = torch.from_numpy(generator.integers(0, 256, (100, 40, 30, 3), dtype=np.uint8))
    places = random_places(generator, 100, 40, 30)
    whole = crop(images, places, (24, 36), "bicubic")
    monkeypatch.setattr(arrays, "KEPT_BYTES", kept)
    monkeypatch.setattr(arrays, "PART_BYTES", 2**16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (slice(0, 1), slice(1, 2), slice(2, 37), slice(37, 100)):
            part = crop(images[rows], places[rows], (24, 36), "bicubic")
            assert torch.equal(part, whole[rows])
    finally:
        torch.set_num_threads(before)
    planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(crop(planes, places, (24, 36), "bicubic"), whole)


@uses_both
def test_pixels_are_exact_under_autocast():
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    generator = np.random.default_rng(3)
    places = random_places(generator, 5, 16, 16)
    turned = draw(PRESETS["digits"].views[0], 0, 0, np.arange(5), 0)
    plain = crop(images, places, (16, 16), "bicubic"), warp(images, turned, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        cast = crop(images, places, (16, 16), "bicubic"), warp(images, turned, (16, 16))
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


# ---- warps


def by_affine_grid(images: torch.Tensor, p: ViewParameters, size: tuple[int, int]) -> torch.Tensor:
    """Levels as float64, by torch's own affine map: scale, shear and turn about the centre."""
    height, width = images.shape[1:3]
    theta = []
    for n in range(len(p)):
        turn, shear = float(p.rotation[n]), float(p.shear[n])
        half = np.diag([width / 2, height / 2])
        window = np.diag([p.width[n], p.height[n]]).astype(float)
        rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = np.linalg.inv(half) @ rotate @ np.array([[1, shear], [0, 1]]) @ half @ window
        centre = 2 * np.array([p.left[n] + p.width[n] / 2, p.top[n] + p.height[n] / 2]) - 1
        theta.append(np.concatenate((linear, centre[:, None]), 1))
    planes = images.permute(0, 3, 1, 2).double()
    shape = [len(p), planes.shape[1], *size]
    grid = functional.affine_grid(torch.from_numpy(np.stack(theta)), shape, align_corners=False)
    return functional.grid_sample(planes, grid, align_corners=False).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 20, 3)])
@pytest.mark.parametrize("size", [None, (9, 17)])
def test_a_warp_is_an_affine_map_rounded_to_levels(shape, size):
    view = replace(PRESETS["digits"].views[0], rotation=90.0, shear=30.0, size=size)
    images = torch.randint(0, 256, (60, *shape), dtype=torch.uint8)
    p = draw(view, 0, 0, np.arange(60), 0)
    ours = crops_of(images, p, view)
    assert ours.shape == (60, *(size or shape[:2]), shape[2])
    expected = by_affine_grid(images, p, size or shape[:2])
    assert (ours.double() - expected).abs().max() < 0.5 + 1e-2
    # Black from beyond the border is among it, and not all there is.
    assert 0 < (ours == 0).float().mean() < 0.9


# ---- one view, and the renderer


@uses_both
def test_views_without_a_crop_are_the_image_at_their_size():
    images = torch.randint(0, 256, (3, 10, 14, 3), dtype=torch.uint8)
    p = draw(ViewSpecification(), 0, 0, np.arange(3), 0)
    assert torch.equal(crops_of(images, p, ViewSpecification()), images)
    smaller = crops_of(images, p, ViewSpecification(size=7))
    places = np.array([[0, 0, 10, 14]] * 3)
    np.testing.assert_array_equal(smaller, by_pillow(images.numpy(), places, (7, 7), "bicubic"))


def test_what_is_no_image_is_refused():
    p = draw(ViewSpecification(), 0, 0, np.arange(2), 0)
    for images in (torch.rand(2, 8, 8, 1), torch.zeros(2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            crops_of(images, p, ViewSpecification())
    with pytest.raises(ValueError, match="3 images"):
        crops_of(torch.zeros(3, 8, 8, 1, dtype=torch.uint8), p, ViewSpecification())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_channels_are_converted_as_pillow_does(mode):
    images = np.random.default_rng(4).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
    if mode == "RGB":
        images = images[..., :1]
    pictures = [Image.fromarray(image if mode == "L" else image[..., 0]) for image in images]
    expected = np.stack([np.asarray(picture.convert(mode)) for picture in pictures])
    ours = with_channels(torch.from_numpy(images), len(mode))
    np.testing.assert_array_equal(ours, expected.reshape(5, 9, 9, len(mode)))
    assert with_channels(ours, len(mode)) is ours


VIEWS = Views("crops", (cropping(24), cropping((20, 28), interpolation="bilinear")), MEAN, STD)


def test_the_renderer_gives_batches_in_turn():
    images = np.random.default_rng(5).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    renderer = ArrayRenderer(ArraySource(images), VIEWS, seed=3, prefetch=2)
    batches = [np.array([4, 9, 2]), np.array([29]), np.empty(0, np.int64)]
    renderer.submit(0, batches[0])
    renderer.submit(1, batches[1])
    with pytest.raises(RuntimeError, match="2 batches are under way"):
        renderer.submit(0, batches[0])
    received = [renderer.receive()]
    renderer.submit(1, batches[2])
    received += [renderer.receive(), renderer.receive()]
    with pytest.raises(RuntimeError, match="no batch"):
        renderer.receive()
    for crops, samples, epoch in zip(received, batches, (0, 1, 1), strict=True):
        assert crops.bad == []
        np.testing.assert_array_equal(crops.samples, samples)
        for number, (view, pixels) in enumerate(zip(VIEWS.views, crops.crops, strict=True)):
            assert pixels.shape == (len(samples), *view.shape, 3)
            if len(samples):
                places = windows(draw(view, 3, epoch, samples, number), view, 32, 32)
                expected = by_pillow(images[samples], places, view.shape, view.interpolation)
                np.testing.assert_array_equal(pixels, expected)
    renderer.submit(0, batches[0])
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError):
        renderer.receive()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.submit(0, batches[0])


def test_pictures_of_one_channel_for_views_of_three():
    images = np.random.default_rng(6).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    renderer = ArrayRenderer(ArraySource(images), VIEWS)
    renderer.submit(0, np.arange(4))
    for pixels in renderer.receive().crops:
        assert pixels.shape[-1] == 3
        assert torch.equal(pixels[..., 0], pixels[..., 2])
        assert pixels.float().std() > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_the_same_crops():
    images = torch.randint(0, 256, (64, 40, 30, 3), dtype=torch.uint8)
    places = random_places(np.random.default_rng(7), 64, 40, 30)
    for interpolation in FILTERS:
        ours = crop(images.cuda(), places, (24, 36), interpolation)
        assert torch.equal(ours.cpu(), crop(images, places, (24, 36), interpolation))
