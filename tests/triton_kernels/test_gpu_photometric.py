"""What a CUDA device must show of `photometric` in Triton: the whole contract against plain torch,
equal bits, large batches, a CUDA graph, and how fast bytes move."""

from __future__ import annotations

import photometric_contract as contract
import pytest
import torch
from torch import Tensor

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
from barlow_fast.kernels.photometry import Parameter  # noqa: E402

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
channels = pytest.mark.parametrize("channels", [1, 3])


@pytest.mark.parametrize("dtype", contract.DTYPES, ids=str)
@channels
@pytest.mark.usefixtures("poisoned")
def test_everything_at_once(channels, dtype):
    for size in (*contract.SIZES, (96, 96), (224, 224)):
        contract.check_everything_at_once(triton_kernels, size, channels, dtype, DEVICE)


@pytest.mark.parametrize("check", contract.BY_CHANNELS)
@channels
@pytest.mark.usefixtures("poisoned")
def test_contract(channels, check):
    contract.BY_CHANNELS[check](triton_kernels, channels, DEVICE)


def test_any_layout_and_type():
    contract.check_any_layout_and_type(triton_kernels, DEVICE)


def test_offsets_beyond_32_bits():
    """The last images of a batch of more than 2^31 values are those of a small batch."""
    count, size = 14_300, (224, 224)
    assert count * size[0] * size[1] * 3 > 2**31
    room = count * size[0] * size[1] * 3 * (1 + 2 + 8) / 2**30 + 1
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < room:
        pytest.skip(f"needs {room:.0f} GiB of device memory, {free:.1f} are free")
    last, rows = contract.crops(3, size, 3), contract.drawn(3, size)
    rows[:, Parameter.BLUR_SIGMA] = torch.tensor((0.0, 1.5, 0.4))
    images = torch.zeros(count, *size, 3, dtype=torch.uint8, device=DEVICE)
    parameters = contract.plain(count)
    images[-3:], parameters[-3:] = last.to(DEVICE), rows
    statistics = [x.to(DEVICE) for x in contract.statistics(3)]
    whole = triton_kernels.photometric(images, parameters.to(DEVICE), *statistics, torch.bfloat16)
    want = contract.photometric(triton_kernels, last, rows, DEVICE, torch.bfloat16)
    assert torch.equal(whole[-3:].cpu(), want)
    del images, whole
    torch.cuda.empty_cache()


def recipe(count: int, size: tuple[int, int], blurred: bool) -> Tensor:
    """A view's usual parameters: all blurred, or none; everything else as often as in BYOL."""
    generator = torch.Generator().manual_seed(0)
    parameters = contract.plain(count)
    jitter = torch.rand(count, generator=generator) < 0.8
    orders = torch.randint(0, 24, (count,), generator=generator).float()
    parameters[:, Parameter.FLIP] = (torch.rand(count, generator=generator) < 0.5).float()
    parameters[:, Parameter.ORDER] = torch.where(jitter, orders, -1.0)
    for factor in (Parameter.BRIGHTNESS, Parameter.CONTRAST, Parameter.SATURATION):
        parameters[:, factor] = 0.6 + 0.8 * torch.rand(count, generator=generator)
    parameters[:, Parameter.HUE] = 0.2 * torch.rand(count, generator=generator) - 0.1
    parameters[:, Parameter.GRAY] = (torch.rand(count, generator=generator) < 0.2).float()
    if blurred:
        parameters[:, Parameter.BLUR_SIGMA] = 0.1 + 1.9 * torch.rand(count, generator=generator)
    return parameters


def batch(count: int, size: tuple[int, int], blurred: bool) -> tuple[Tensor, ...]:
    images = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, device=DEVICE)
    statistics = (x.to(DEVICE) for x in contract.statistics(3))
    return images, recipe(count, size, blurred).to(DEVICE), *statistics


def test_nothing_waits_for_the_device():
    arguments = batch(8, (96, 96), blurred=True)
    triton_kernels.photometric(*arguments, torch.bfloat16)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        triton_kernels.photometric(*arguments, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_takes_other_images_and_parameters():
    size = (64, 80)
    arguments = batch(6, size, blurred=False)
    triton_kernels.photometric(*arguments, torch.float32)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = triton_kernels.photometric(*arguments, torch.float32)
    for seed in (1, 2):
        images, parameters = contract.crops(6, size, 3, seed), contract.drawn(6, size, seed)
        arguments[0].copy_(images)
        arguments[1].copy_(parameters)
        graph.replay()
        want = contract.photometric(triton_kernels, images, parameters, DEVICE)
        assert torch.equal(out.cpu(), want)


def milliseconds(run) -> float:
    """The median of ten, after three."""
    times = []
    for _ in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[3:])[5]


@pytest.mark.parametrize("blurred", [False, True], ids=["sharp", "blurred"])
def test_bandwidth(blurred, record_property, capsys):
    """Bytes in and out against a copy of as many. The bounds are far from what is expected: they
    say that nothing is wrong by an order of magnitude, the printed figures say how fast it is."""
    images, *rest = batch(256, (224, 224), blurred)
    moved = images.nbytes * 3  # bytes in, bfloat16 out
    source = torch.empty(moved // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source))
    view = milliseconds(lambda: triton_kernels.photometric(images, *rest, torch.bfloat16))
    record_property("milliseconds", view)
    record_property("fraction_of_copy", copy / view)
    with capsys.disabled():
        print(
            f"\n256 views of 224 x 224, {'blurred' if blurred else 'sharp'}: {view:.3f} ms, "
            f"{moved / view / 1e6:.0f} GB/s in and out, {copy / view:.0%} of a copy"
        )
    assert view < (60 if blurred else 12) * copy
