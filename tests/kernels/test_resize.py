"""`crop_resize`: every kernel set that offers it against Pillow, to the bit, on every instruction
set. Without Pillow the native set is held against plain torch."""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from contract import using
from torch import Tensor

from barlow_fast.kernels import aten, resizing, why_unusable
from barlow_fast.kernels import cpu as cpu_kernels

try:
    from PIL import Image
except ModuleNotFoundError:
    Image = None

PROBLEM = why_unusable("cpu", torch.device("cpu"))
native = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
channels = pytest.mark.parametrize("channels", [1, 3])
interpolations = pytest.mark.parametrize("interpolation", list(resizing.FILTERS))
POISON = 77


@pytest.fixture(params=["aten", *cpu_kernels.INSTRUCTION_SETS[1:]])
def kernels(request):
    """Plain torch, and the native set on each instruction set that this CPU has."""
    if request.param == "aten":
        if Image is None:
            pytest.skip("Pillow is not installed")
        yield aten
    else:
        with using(request.param) as native_kernels:
            yield native_kernels


class Case(NamedTuple):
    """An image, its window and the size that it is brought to."""

    image: Tensor
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    interpolation: str


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Bytes, half of them black or white: sums beyond a byte are among what they give."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 256, shape, generator=generator)
    extreme = torch.where(level < 128, 0, 255)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, extreme, level).byte()


def by_pillow(case: Case) -> Tensor:
    """As Pillow 13 resizes, by any Pillow: which pass comes first is forced by resizing one
    direction at a time."""
    top, left, height, width = case.window
    pixels = case.image.squeeze(2) if case.image.shape[2] == 1 else case.image
    image = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    image = image.crop((left, top, left + width, top + height))
    sizes = [(width, case.size[0]), case.size[::-1]]
    if not resizing.columns_first(height, width, case.size):
        sizes[0] = (case.size[1], height)
    result, resampling = image, getattr(Image.Resampling, case.interpolation.upper())
    for size in sizes:
        result = result.resize(size, resampling)
    if int(Image.__version__.split(".")[0]) >= 13:
        direct = image.resize(case.size[::-1], resampling)
        assert result.tobytes() == direct.tobytes()
    return torch.from_numpy(np.array(result)).view(*case.size, -1)


def resized(kernels: ModuleType, case: Case) -> Tensor:
    """The set's result; nothing beside the rows that it is given may change."""
    height, width = case.size
    around = torch.full((height + 2, width + 5, case.image.shape[2]), POISON, dtype=torch.uint8)
    kernels.crop_resize(case.image, case.window, case.interpolation, around[1:-1, 2 : 2 + width])
    got = around[1:-1, 2 : 2 + width].clone()
    around[1:-1, 2 : 2 + width] = POISON
    assert bool((around == POISON).all())
    return got


def wanted(case: Case) -> Tensor:
    return by_pillow(case) if Image else resized(aten, case)


def check(kernels: ModuleType, case: Case) -> None:
    got, want = resized(kernels, case), wanted(case)
    assert torch.equal(got, want), (case[1:], case.image.shape, int((got != want).sum()))


def drawn(generator: np.random.Generator, most: int = 160) -> Case:
    """Any window of an image of any size and strides, to any size."""
    height, width, *size = (int(2 ** generator.uniform(0, np.log2(most))) for _ in range(4))
    channels = int(generator.choice((1, 3)))
    whole = noise((height + 2, width + 3, channels), int(generator.integers(2**31)))
    # The image ends where its memory does, or before.
    image = whole if generator.random() < 0.5 else whole[1:-1, 2:-1]
    tall, wide = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
    if generator.random() < 0.2:
        tall, wide = image.shape[:2]
    top = int(generator.integers(0, image.shape[0] - tall + 1))
    left = int(generator.integers(0, image.shape[1] - wide + 1))
    if generator.random() < 0.1:
        size[0] = tall
    if generator.random() < 0.1:
        size[1] = wide
    interpolation = str(generator.choice(list(resizing.FILTERS)))
    return Case(image, (top, left, tall, wide), tuple(size), interpolation)


@channels
@interpolations
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((371, 466), (224, 224)),
        ((500, 375), (224, 224)),  # across rows first
        ((60, 90), (224, 224)),
        ((32, 32), (32, 32)),
        ((28, 28), (32, 20)),
        ((33, 57), (33, 57)),
        ((33, 57), (33, 20)),
        ((33, 57), (70, 57)),
        ((1, 1), (5, 7)),
        ((1, 300), (4, 3)),
        ((300, 1), (3, 4)),
        ((700, 900), (7, 9)),
        ((701, 3), (7, 300)),
        ((3, 701), (300, 7)),
    ],
    ids=str,
)
def test_windows_are_pillows(kernels, shape, size, channels, interpolation):
    image = noise((shape[0] + 3, shape[1] + 5, channels))
    for top, left in ((0, 0), (2, 1), (3, 5)):
        check(kernels, Case(image, (top, left, *shape), size, interpolation))


@channels
@interpolations
def test_every_width_of_a_result(kernels, channels, interpolation):
    """Vectors that are whole and vectors that are not, in both passes."""
    image = noise((23, 41, channels))
    for side in range(1, 80):
        check(kernels, Case(image, (1, 2, 19, 37), (side, 80 - side), interpolation))


@channels
@interpolations
def test_flat_images_stay_flat(kernels, channels, interpolation):
    """Weights sum to one but for their own rounding."""
    for level in (0, 1, 127, 254, 255):
        image = torch.full((90, 80, channels), level, dtype=torch.uint8)
        for size in ((224, 224), (7, 5), (90, 33)):
            check(kernels, Case(image, (0, 0, 90, 80), size, interpolation))


def test_any_window(kernels):
    generator = np.random.default_rng(0)
    for _ in range(300):
        check(kernels, drawn(generator))


@native
@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", cpu_kernels.INSTRUCTION_SETS[1:])
def test_twenty_thousand_windows(instruction_set):
    generator = np.random.default_rng(int(os.environ.get("FUZZ_SEED", "1")))
    with using(instruction_set) as kernels:
        for number in range(20_000):
            check(kernels, drawn(generator, most=1000 if number % 50 == 0 else 128))


@native
@pytest.mark.slow
def test_a_photograph_of_twelve_megapixels():
    image = noise((3000, 4000, 3))
    for name in cpu_kernels.INSTRUCTION_SETS[1:]:
        with using(name) as kernels:
            for window in ((0, 0, 3000, 4000), (11, 1500, 2987, 1001)):
                check(kernels, Case(image, window, (224, 224), "bicubic"))


@native
@channels
def test_plain_torch_is_the_oracle(channels):
    generator = np.random.default_rng(2)
    for _ in range(100):
        case = drawn(generator)
        assert torch.equal(resized(cpu_kernels, case), resized(aten, case))


@channels
def test_a_batch_is_its_images_one_by_one(kernels, channels):
    generator = np.random.default_rng(3)
    images = noise((9, 31, 45, channels))[:, 1:, 4:]
    windows, want = [], []
    for image in images:
        tall, wide = int(generator.integers(1, 31)), int(generator.integers(1, 42))
        window = (30 - tall, int(generator.integers(0, 42 - wide)), tall, wide)
        windows += window
        want.append(wanted(Case(image, window, (12, 17), "bicubic")))
    out = torch.full((9, 14, 20, channels), POISON, dtype=torch.uint8)
    kernels.crop_resize(images, windows, "bicubic", out[:, 1:-1, 1:18])
    assert torch.equal(out[:, 1:-1, 1:18], torch.stack(want))
    kernels.crop_resize(images[:0], [], "bicubic", out[:0])


@native
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(threads):
    images, windows = noise((40, 32, 32, 3)), [1, 2, 29, 17] * 40
    want = torch.stack([wanted(Case(i, tuple(windows[:4]), (32, 32), "bicubic")) for i in images])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = torch.empty_like(want)
        cpu_kernels.crop_resize(images, windows, "bicubic", out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, want)


@native
def test_the_interpreters_lock_is_released():
    """Another thread gets its turn during a call. Between calls it cannot: the interval after which
    a thread must give up the lock is set to an hour."""
    image, out = noise((600, 800, 3)), torch.empty(400, 600, 3, dtype=torch.uint8)
    ready, ran = threading.Event(), []

    def run() -> None:
        ready.wait()
        ran.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        ready.set()
        # Many calls: the system need not give the other thread a core at once.
        for _ in range(3000):
            cpu_kernels.crop_resize(image, (0, 0, 600, 800), "bicubic", out)
            if ran:
                break
        during = bool(ran)
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert during


IMAGE = noise((20, 30, 3))
OUT = torch.zeros(8, 9, 3, dtype=torch.uint8)


@native
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": IMAGE.float()}, r"image must be a uint8 CPU tensor of \(H, W, 1 or 3\)"),
        ({"image": IMAGE[..., 0]}, r"image must be .*, got Byte \(20, 30\)"),
        ({"image": IMAGE[..., :2]}, r"image must be .*, got Byte \(20, 30, 2\)"),
        ({"image": IMAGE[:0]}, r"sides of 1 to 16777216, got Byte \(0, 30, 3\)"),
        ({"image": IMAGE.to("meta")}, "image|meta|Meta"),
        ({"image": IMAGE.mT.contiguous().mT}, "the pixels of a row of image must be contiguous"),
        ({"image": IMAGE[:, ::2]}, "the pixels of a row of image must be contiguous"),
        ({"out": OUT[..., :1].contiguous()}, "as many images and channels as image"),
        ({"out": OUT[None]}, r"out must be a uint8 CPU tensor of \(H, W, 1 or 3\)"),
        ({"out": OUT[:, :0]}, "out must be"),
        ({"out": OUT[:1].expand(8, 9, 3)}, "out is written and overlaps itself"),
        ({"out": IMAGE[:8, :9]}, "out is written and overlaps image"),
        ({"window": (0, 0, 20)}, r"window must be 4 numbers .*, got 3"),
        ({"window": (0, 0, 21, 30)}, r"the 20 x 30 pixels of its image, got \(0, 0, 21, 30\)"),
        ({"window": (1, 0, 20, 30)}, "window .* must lie within"),
        ({"window": (0, -1, 20, 30)}, "window .* must lie within"),
        ({"window": (0, 0, 0, 30)}, "window .* must lie within"),
        ({"window": (0, 2**63 - 1, 5, 2**63 - 1)}, "window .* must lie within"),
        ({"interpolation": "lanczos"}, "interpolation must be one of .*, got 'lanczos'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changed, words):
    valid = {
        "image": IMAGE, "window": (0, 0, 20, 30), "interpolation": "bicubic", "out": OUT.clone(),
    }  # fmt: skip
    cpu_kernels.crop_resize(**valid)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=words):
        cpu_kernels.crop_resize(**valid | changed)


@native
def test_freed_memory_is_refused():
    image = IMAGE.clone()
    image.untyped_storage().resize_(17)
    with pytest.raises(RuntimeError, match="the storage of image has been freed"):
        cpu_kernels.crop_resize(image, (0, 0, 20, 30), "bicubic", OUT.clone())
