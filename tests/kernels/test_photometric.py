"""`photometric`: plain torch against torchvision and PIL on photographs, every kernel set that
takes CPU tensors against plain torch, on every instruction set."""

from __future__ import annotations

import numpy as np
import photometric_contract as contract
import pytest
import torch
from contract import native, using

from barlow_fast.kernels import aten, photometry
from barlow_fast.kernels import cpu as cpu_kernels
from barlow_fast.kernels.photometry import ORDERS, Parameter, blur_radius, blur_weights

CPU = torch.device("cpu")
channels = pytest.mark.parametrize("channels", [1, 3])


@pytest.fixture(params=["aten", *cpu_kernels.INSTRUCTION_SETS[1:]])
def kernels(request):
    """Plain torch, and the native set on each instruction set that this CPU has."""
    if request.param == "aten":
        yield aten
    else:
        with using(request.param) as native_kernels:
            yield native_kernels


# ---- every set against plain torch --------------------------------------------------------------


@pytest.mark.parametrize("size", contract.SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", contract.DTYPES, ids=str)
@channels
@pytest.mark.usefixtures("poisoned")
def test_everything_at_once(kernels, size, channels, dtype):
    contract.check_everything_at_once(kernels, size, channels, dtype, CPU)


@pytest.mark.parametrize("check", contract.BY_CHANNELS)
@channels
@pytest.mark.usefixtures("poisoned")
def test_contract(kernels, channels, check):
    contract.BY_CHANNELS[check](kernels, channels, CPU)


def test_any_layout_and_type(kernels):
    contract.check_any_layout_and_type(kernels, CPU)


@native
@pytest.mark.usefixtures("poisoned")
def test_outputs_that_are_written_past_the_caches():
    """From a mebibyte on; rows that begin at vectors' borders and rows that do not."""
    for size in ((224, 224), (225, 223)):
        for dtype in contract.DTYPES:
            images, parameters = contract.crops(4, size, 3), contract.drawn(4, size, seed=3)
            contract.check(cpu_kernels, images, parameters, CPU, dtype)


@native
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    images, parameters = contract.crops(30, (17, 40), 3), contract.drawn(30, (17, 40))
    want = contract.photometric(cpu_kernels, images, parameters, CPU)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(contract.photometric(cpu_kernels, images, parameters, CPU), want)
    finally:
        torch.set_num_threads(before)


@native
def test_outputs_are_not_written_again_while_somebody_holds_them():
    images, parameters = contract.crops(4, (96, 96), 3), contract.drawn(4, (96, 96))
    first = contract.photometric(cpu_kernels, images, parameters, CPU)
    row, copy = first[1], first.clone()
    del first
    for _ in range(3):
        contract.photometric(cpu_kernels, 255 - images, parameters, CPU)
    assert torch.equal(row, copy[1])


# ---- what is refused ----------------------------------------------------------------------------


@native
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (Parameter.ORDER, 24, "order must be a whole number from -1 to 23, got 24"),
        (Parameter.ORDER, -2, "order must be"),
        (Parameter.ORDER, 1.5, "order must be"),
        (Parameter.ORDER, float("nan"), "order must be"),
        (Parameter.BLUR_SIGMA, 8.01, "sigma must be 0 to 8, got 8.01"),
        (Parameter.BLUR_SIGMA, -0.1, "sigma must be"),
        (Parameter.BLUR_SIGMA, float("nan"), "sigma must be"),
        (Parameter.BRIGHTNESS, float("nan"), "must be finite"),
        (Parameter.CONTRAST, float("inf"), "must be finite"),
        (Parameter.HUE, 0.51, "hue must be"),
        (Parameter.HUE, float("nan"), "hue must be"),
        (Parameter.FLIP, float("nan"), "may be NaN"),
        (Parameter.SOLARIZE, float("nan"), "may be NaN"),
        (Parameter.ERASE_RIGHT, float("nan"), "may be NaN"),
    ],
)
def test_parameters_out_of_range_are_refused_with_their_row(column, value, message):
    parameters = contract.plain(5)
    parameters[:, Parameter.ORDER] = 7
    parameters[3, column] = value
    with pytest.raises(RuntimeError, match=rf"row 3 of parameters: .*{message}"):
        contract.photometric(cpu_kernels, contract.crops(5, (4, 4), 3), parameters, CPU)


@native
@pytest.mark.parametrize(
    ("columns", "value"),
    [
        (slice(Parameter.BRIGHTNESS, Parameter.HUE + 1), float("nan")),
        (Parameter.SOLARIZE, float("inf")),
    ],
    ids=["factors without jitter", "an infinite threshold"],
)
def test_parameters_that_change_nothing(columns, value):
    parameters, images = contract.plain(1), contract.crops(1, (4, 4), 3)
    want = contract.photometric(cpu_kernels, images, parameters, CPU)
    parameters[:, columns] = value
    assert torch.equal(contract.photometric(cpu_kernels, images, parameters, CPU), want)


@native
def test_arguments_that_do_not_fit_are_refused():
    contract.check_refusals(cpu_kernels, "the CPU")
    images, parameters = contract.crops(2, (4, 5), 3), contract.plain(2)
    mean, std = contract.statistics(3)
    out = torch.empty(2, 4, 5, 3)
    with pytest.raises(RuntimeError, match=r"parameters must .* of \(2, 13\)"):
        torch.ops.barlow_fast_cpu.photometric(images, parameters[:1], mean, std, True, out)


# ---- plain torch against the libraries that it stands for ---------------------------------------


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """(4, 160, 192, 3) uint8, crops of two JPEG photographs."""
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("PIL.Image")
    images = datasets.load_sample_images().images
    corners = ((60, 80), (230, 400))
    crops = [image[y : y + 160, x : x + 192] for image in images for y, x in corners]
    return torch.from_numpy(np.stack(crops).copy())


@pytest.fixture(scope="module")
def functional():
    return pytest.importorskip("torchvision.transforms.v2.functional")


def levels(images: torch.Tensor, **changes: float) -> torch.Tensor:
    """(B, C, H, W) float32 in 0..255 of plain torch; the names are those of `Parameter`."""
    parameters = contract.plain(len(images))
    for name, value in changes.items():
        parameters[:, Parameter[name]] = value
    zero, one = torch.zeros(images.shape[3]), torch.ones(images.shape[3])
    return 255 * aten.photometric(images, parameters, zero, one, torch.float32)


def test_solarize_gray_flip_and_normalise_as_torchvision(photographs, functional):
    planes = photographs.permute(0, 3, 1, 2)
    want = functional.solarize(planes, 128).float()
    assert float((levels(photographs, SOLARIZE=128) - want).abs().max()) < 1
    want = functional.rgb_to_grayscale(planes, 3).float()
    assert float((levels(photographs, GRAY=1) - want).abs().max()) <= 1
    want = functional.horizontal_flip(planes).float()
    assert float((levels(photographs, FLIP=1) - want).abs().max()) < 1e-3
    mean, std = contract.statistics(3)
    got = aten.photometric(photographs, contract.plain(4), mean, std, torch.float32)
    want = functional.normalize(planes.float() / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_jitter_as_torchvision_in_every_order(photographs, functional, order):
    factors = {"BRIGHTNESS": 1.3, "CONTRAST": 0.7, "SATURATION": 1.25, "HUE": 0.08}
    names = {getattr(photometry, name): name for name in factors}
    rounded = photographs.permute(0, 3, 1, 2)
    exact = rounded.float() / 255
    for name in map(names.get, ORDERS[order]):
        apply = getattr(functional, f"adjust_{name.lower()}")
        exact, rounded = (apply(images, factors[name]) for images in (exact, rounded))
    got = levels(photographs, ORDER=order, **factors)
    assert float((got - 255 * exact).abs().max()) < 0.01
    # torchvision on bytes rounds after each operation, which truncates: half a level each.
    assert float((got - rounded.float()).abs().mean()) < 2


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
def test_blur_as_torchvision(photographs, functional, sigma):
    got = levels(photographs, BLUR_SIGMA=sigma)
    want = functional.gaussian_blur(photographs.permute(0, 3, 1, 2), 23, sigma).float()
    assert float((got - want).abs().mean()) <= 0.5


@pytest.mark.parametrize("sigma", [1.2, 1.5, 2.0, 3.0])
def test_blur_as_pil(photographs, sigma):
    """PIL runs three boxes whose variance is sigma squared. Below a pixel that is another filter
    than a sampled Gaussian, whose variance is smaller."""
    from PIL import Image, ImageFilter

    got = levels(photographs, BLUR_SIGMA=sigma)
    blurred = [
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        for image in photographs.numpy()
    ]
    want = torch.from_numpy(np.stack(blurred)).permute(0, 3, 1, 2).float()
    assert float((got - want).abs().mean()) <= 0.5


def test_weights_of_the_blur():
    for sigma in (0.05, 0.3, 1.0, photometry.LARGEST_SIGMA):
        weights = blur_weights(sigma)
        assert len(weights) == 2 * blur_radius(sigma) + 1
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        torch.testing.assert_close(weights, weights.flip(0))
        beyond = torch.arange(blur_radius(sigma) + 1.0, 100)
        assert float(2 * torch.exp(-0.5 * (beyond / sigma) ** 2).sum()) < 2e-3 * sigma


@native
def test_native_on_photographs(photographs):
    parameters = contract.drawn(4, (160, 192), seed=5)
    parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((0.1, 0.9, 1.7, 2))
    for dtype in contract.DTYPES:
        flipped = contract.check(cpu_kernels, photographs, parameters, CPU, dtype)
        assert flipped <= photographs.numel() // 10000


@native
@pytest.mark.parametrize("name", cpu_kernels.INSTRUCTION_SETS[1:])
@pytest.mark.parametrize("dtype", contract.DTYPES, ids=str)
def test_in_the_calling_thread_the_same_bits(name, dtype):
    crops = torch.randint(0, 256, (5, 33, 47, 3), dtype=torch.uint8)
    parameters, mean, std = contract.drawn(5, (33, 47), seed=2), torch.rand(3), torch.rand(3) + 0.1
    with using(name) as kernels:
        out = torch.full((7, 33, 47, 3), 9, dtype=dtype)
        kernels.photometric_in_thread(crops, parameters, mean, std, out[1:6])
        expected = kernels.photometric(crops, parameters, mean, std, dtype)
        assert torch.equal(out[1:6].permute(0, 3, 1, 2), expected)
        assert torch.equal(out[[0, 6]], torch.full_like(out[:2], 9))
        with pytest.raises(RuntimeError, match="out"):
            kernels.photometric_in_thread(crops, parameters, mean, std, out)
