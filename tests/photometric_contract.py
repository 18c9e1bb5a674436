"""Checks of `photometric` of one kernel set against plain torch, on tensors of any device.

Nothing here may differ by more than rounding, `BOUND`, with one exception: solarizing inverts what
lies above a threshold, and a value that lies on it to within rounding may fall on either side. What
differs by more must be such a value, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from barlow_fast.kernels import aten
from barlow_fast.kernels.photometry import ORDERS, PARAMETERS, Parameter

BOUND = 1e-5  # where white is 1
NONE = 300.0  # a threshold of solarizing that nothing reaches
SIZES = ((1, 1), (1, 9), (2, 3), (7, 5), (33, 31), (3, 257), (40, 224))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rounding to the output's type may fall on either side too: one unit in the last place.
UNIT = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def crops(count: int, size: tuple[int, int], channels: int, seed: int = 0) -> Tensor:
    """Bytes with edges, flat parts and noise, and with grays among the colours."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *size, channels)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    coarse = torch.randint(0, 256, (count, 1 + size[0] // 6, 1 + size[1] // 6, channels),
                           dtype=torch.uint8, generator=generator)  # fmt: skip
    blocks = coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, : size[0], : size[1]]
    blocks = torch.where(torch.rand(*shape[:3], 1, generator=generator) < 0.3, noise, blocks)
    return torch.where(
        torch.rand(*shape[:3], 1, generator=generator) < 0.1, blocks[..., :1], blocks
    )


def plain(count: int) -> Tensor:
    """Parameters that change nothing."""
    parameters = torch.zeros(count, PARAMETERS)
    parameters[:, Parameter.ORDER] = -1
    parameters[:, Parameter.BRIGHTNESS : Parameter.HUE] = 1
    parameters[:, Parameter.SOLARIZE] = NONE
    return parameters


def drawn(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Any operation with any other, each at about half of the images."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def half(x: Tensor, otherwise: float) -> Tensor:
        return torch.where(torch.rand(count, generator=generator) < 0.5, x, otherwise)

    parameters = plain(count)
    parameters[:, Parameter.FLIP] = half(torch.ones(count), 0)
    parameters[:, Parameter.ORDER] = half(uniform(0, len(ORDERS)).floor(), -1)
    for factor in (Parameter.BRIGHTNESS, Parameter.CONTRAST, Parameter.SATURATION):
        parameters[:, factor] = uniform(0, 2)
    parameters[:, Parameter.HUE] = uniform(-0.5, 0.5)
    parameters[:, Parameter.GRAY] = half(torch.ones(count), 0)
    parameters[:, Parameter.BLUR_SIGMA] = half(uniform(0.02, 8), 0)
    parameters[:, Parameter.SOLARIZE] = half(uniform(0, 256).floor(), NONE)
    for low, high, extent in (
        (Parameter.ERASE_TOP, Parameter.ERASE_BOTTOM, size[0]),
        (Parameter.ERASE_LEFT, Parameter.ERASE_RIGHT, size[1]),
    ):
        parameters[:, low] = uniform(0, extent + 1).floor()
        parameters[:, high] = parameters[:, low] + uniform(0, 1 + extent / 2).floor()
    return parameters


def statistics(channels: int) -> tuple[Tensor, Tensor]:
    """mean and std."""
    return torch.tensor((0.485, 0.456, 0.406))[:channels], torch.tensor((0.229, 0.224, 0.225))[
        :channels
    ]


def photometric(
    kernels: ModuleType,
    images: Tensor,
    parameters: Tensor,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The set's result on `device`, brought back, with the form that the contract requests."""
    mean, std = statistics(images.shape[3])
    arguments = (x.to(device) for x in (images, parameters, mean, std))
    result = kernels.photometric(*arguments, dtype)
    count, height, width, channels = images.shape
    assert result.shape == (count, channels, height, width)
    assert result.dtype == dtype
    assert result.device.type == device.type
    assert result.is_contiguous(memory_format=torch.channels_last)
    return result.cpu()


def check(
    kernels: ModuleType,
    images: Tensor,
    parameters: Tensor,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Compares with plain torch; returns how many values solarizing took to the other side."""
    got = photometric(kernels, images, parameters, device, dtype).float()
    mean, std = statistics(images.shape[3])
    want = aten.photometric(images, parameters, mean, std, dtype).float()
    std = std.view(1, -1, 1, 1)
    allowed = BOUND / std + UNIT[dtype] * want.abs()
    differs = ~((got - want).abs() <= allowed)  # NaN differs
    if differs.any():
        before = parameters.clone()
        before[:, Parameter.SOLARIZE] = NONE
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        value = aten.photometric(images, before, zero, one, torch.float32)
        threshold = parameters[:, Parameter.SOLARIZE].view(-1, 1, 1, 1) / 255
        borderline = (value - threshold).abs() <= BOUND
        # The other side is the right one for what lies there.
        mirrored = (1 - value - mean.view(1, -1, 1, 1)) / std
        kept = (value - mean.view(1, -1, 1, 1)) / std
        other = torch.where((want - kept).abs() < (want - mirrored).abs(), mirrored, kept)
        explained = borderline & ((got - other).abs() <= allowed + UNIT[dtype] * other.abs())
        assert not (differs & ~explained).any(), float((got - want).abs()[differs].max())
    return int(differs.sum())


def check_everything_at_once(
    kernels: ModuleType,
    size: tuple[int, int],
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    images, parameters = crops(24, size, channels), drawn(24, size)
    flipped = check(kernels, images, parameters, device, dtype)
    assert flipped <= max(2, images.numel() // 10000)


def check_each_alone(kernels: ModuleType, channels: int, device: torch.device) -> None:
    """One operation at a time, where it is at its limits."""
    size = (19, 37)
    cases = [
        {Parameter.FLIP: 1},
        {Parameter.GRAY: 1},
        {Parameter.GRAY: 1, Parameter.BLUR_SIGMA: 1.5},
        *({Parameter.BLUR_SIGMA: sigma} for sigma in (1e-30, 0.1, 0.25, 0.26, 1, 2, 5, 8)),
        *({Parameter.SOLARIZE: level} for level in (0, 1, 127, 128, 254, 255, 255.5, NONE)),
        *(
            {Parameter.ORDER: 0, factor: value}
            for factor in (Parameter.BRIGHTNESS, Parameter.CONTRAST, Parameter.SATURATION)
            for value in (0, 0.5, 1, 3)
        ),
        *({Parameter.ORDER: 5, Parameter.HUE: turns} for turns in (-0.5, -0.1, 0, 1e-9, 0.3, 0.5)),
        *(
            dict(zip(list(Parameter)[Parameter.ERASE_TOP :], rectangle, strict=True))
            for rectangle in ((0, 0, 19, 37), (3, 5, 4, 6), (18, 36, 99, 99), (5, 5, 5, 9))
        ),
    ]
    parameters = plain(len(cases))
    for row, case in zip(parameters, cases, strict=True):
        for name, value in case.items():
            row[name] = value
    images = crops(1, size, channels).expand(len(cases), -1, -1, -1).contiguous()
    check(kernels, images, parameters, device)
    # A byte on the threshold is on it exactly: nothing was rounded before.
    parameters = plain(256)
    parameters[:, Parameter.SOLARIZE] = torch.arange(256.0)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1)
    images = images.expand(256, 1, 256, channels).contiguous()
    assert check(kernels, images, parameters, device) == 0


def check_orders(kernels: ModuleType, channels: int, device: torch.device) -> None:
    """All 24, with factors that reach black and white."""
    count = len(ORDERS)
    parameters = plain(count)
    parameters[:, Parameter.ORDER] = torch.arange(float(count))
    parameters[:, Parameter.BRIGHTNESS] = 1.4
    parameters[:, Parameter.CONTRAST] = 1.7
    parameters[:, Parameter.SATURATION] = 1.6
    parameters[:, Parameter.HUE] = -0.2
    images = crops(1, (21, 35), channels).expand(count, -1, -1, -1).contiguous()
    assert check(kernels, images, parameters, device) == 0
    if channels == 3:
        results = photometric(kernels, images, parameters, device).flatten(1)
        assert float(torch.pdist(results).min()) > 0.1  # no two orders are the same


def check_large_blurs_of_small_images(
    kernels: ModuleType, channels: int, device: torch.device
) -> None:
    """Borders that are mirrored more than once."""
    for size in ((1, 1), (1, 20), (20, 1), (2, 2), (3, 17), (16, 33)):
        parameters = plain(4)
        parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((0.3, 1.9, 5.1, 8))
        check(kernels, crops(4, size, channels), parameters, device)


def check_independence(kernels: ModuleType, channels: int, device: torch.device) -> None:
    """Equal bits in every run, and whatever else is in the batch."""
    size = (13, 45)
    images, parameters = crops(16, size, channels), drawn(16, size)
    whole = photometric(kernels, images, parameters, device)
    assert torch.equal(whole, photometric(kernels, images, parameters, device))
    backwards = photometric(kernels, images.flip(0), parameters.flip(0), device)
    assert torch.equal(whole, backwards.flip(0))
    for i in range(16):
        one = photometric(kernels, images[i : i + 1], parameters[i : i + 1], device)
        assert torch.equal(whole[i : i + 1], one)


def check_empty(kernels: ModuleType, channels: int, device: torch.device) -> None:
    for dtype in DTYPES:
        photometric(kernels, crops(0, (5, 6), channels), plain(0), device, dtype)


def check_any_layout_and_type(kernels: ModuleType, device: torch.device) -> None:
    """Crops of any strides; parameters and statistics of any floating type."""
    size = (12, 10)
    images, parameters = crops(6, size, 3), drawn(6, size)
    mean, std = statistics(3)
    want = photometric(kernels, images, parameters, device)
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(photometric(kernels, planar, parameters, device), want)
    wide = torch.zeros(6, 20, 30, 3, dtype=torch.uint8)
    wide[:, 4:16, 7:17] = images
    assert torch.equal(photometric(kernels, wide[:, 4:16, 7:17], parameters, device), want)
    arguments = (x.to(device) for x in (images, parameters.double(), mean.double(), std.double()))
    got = kernels.photometric(*arguments, torch.float32).cpu()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def check_refusals(kernels: ModuleType, place: str) -> None:
    """Arguments that do not fit raise, with what was passed; `place` is the name of the device."""
    images, parameters = crops(2, (4, 5), 3), plain(2)
    mean, std = statistics(3)
    wrong = (
        (TypeError, "crops", images.float(), r"be uint8, got torch\.float32"),
        (TypeError, "dtype", torch.float64, r"be .*, got torch\.float64"),
        (TypeError, "parameters", parameters.long(), r"be floating point, got torch\.int64"),
        (ValueError, "crops", images[..., 0], r"be \(B, H, W, 1 or 3\), got \(2, 4, 5\)"),
        (ValueError, "parameters", parameters[:1], r"be \(2, 13\) .*, got \(1, 13\)"),
        (ValueError, "std", std[:1], r"be \(3,\) .*, got \(1,\)"),
        (ValueError, "mean", mean.to("meta"), f"be on {place}, is on meta"),
    )
    valid = {
        "crops": images, "parameters": parameters, "mean": mean, "std": std, "dtype": torch.float32,
    }  # fmt: skip
    for error, name, value, words in wrong:
        with pytest.raises(error, match=f"{name} must {words}"):
            kernels.photometric(**valid | {name: value})


# What takes (kernels, number of channels, device), by the names of tests.
BY_CHANNELS: dict[str, Callable[[ModuleType, int, torch.device], None]] = {
    "each operation alone": check_each_alone,
    "all orders of the jitter": check_orders,
    "blurs larger than the image": check_large_blurs_of_small_images,
    "bits depend on the image alone": check_independence,
    "an empty batch": check_empty,
}
