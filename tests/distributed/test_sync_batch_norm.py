"""`SyncBatchNorm` on two ranks against torch's batch norm of all samples in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from barlow_fast.models.batch_norm import SyncBatchNorm, synchronise

SAMPLES = {"unequal": (5, 3), "a rank without samples": (8, 0), "one sample a rank": (1, 1)}
SHAPES = {"matrix": (6,), "sequence": (6, 7), "image": (6, 4, 3), "volume": (6, 2, 3, 2)}
# Of float16 and bfloat16: two roundings of the output, three of the gradient.
TOLERANCES = {
    torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2
}  # fmt: skip


def tensors(count, shape, dtype, shift=3.0):
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(count, *shape, generator=generator, dtype=torch.float64) for _ in "xd")
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = channels_last.get(x.dim(), torch.contiguous_format)
    x, dy = ((t + offset).to(dtype) for t, offset in ((x, shift), (dy, 0.5)))
    return x.to(memory_format=form), dy.to(memory_format=form)


def weights(norm):
    with torch.no_grad():
        for parameter, low in ((norm.weight, 0.5), (norm.bias, -1.0)):
            if parameter is not None:
                parameter.copy_(torch.linspace(low, low + 1.0, parameter.numel()))
    return norm


def on_a_rank(group, samples, shape, dtype, parameters, affine, momentum, shift):
    norm = weights(
        SyncBatchNorm(
            shape[0], momentum=momentum, affine=affine, process_group=group, dtype=parameters
        )
    )
    x, dy = (
        t.split(list(samples))[group.rank()] for t in tensors(sum(samples), shape, dtype, shift)
    )
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    y.mul_(1)  # in place, as a ReLU that follows: the backward pass needs no output
    y.backward(dy)
    assert (y.dtype, x.grad.dtype, y.stride()) == (x.dtype, x.dtype, x.stride())
    gradients = [p.grad for p in norm.parameters()]
    return y.detach(), x.grad, gradients, dict(norm.named_buffers())


def check(pool, samples, shape, dtype, parameters=None, affine=True, momentum=0.1, shift=3.0):
    parameters = parameters or (torch.float64 if dtype == torch.float64 else torch.float32)
    ranks = pool.run(
        on_a_rank, len(samples), samples, shape, dtype, parameters, affine, momentum, shift
    )
    x, dy = tensors(sum(samples), shape, dtype, shift)
    wide = x.double().requires_grad_()
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()]
    norm = weights(kind(shape[0], momentum=momentum, affine=affine, dtype=torch.float64))
    y = norm(wide)
    y.backward(dy.double())
    limit = TOLERANCES[dtype]
    close = {"rtol": limit, "atol": limit}
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]).double(), y.detach(), **close)
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]).double(), wide.grad, **close)
    for index, parameter in enumerate(norm.parameters()):
        total = sum(r[2][index].double() for r in ranks)
        torch.testing.assert_close(total, parameter.grad, rtol=limit, atol=limit * len(x))
    for _, _, _, buffers in ranks:
        for key, expected in norm.named_buffers():
            close = {"rtol": TOLERANCES[parameters], "atol": TOLERANCES[parameters]}
            torch.testing.assert_close(buffers[key].double(), expected.double(), **close)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_gradients_and_running_statistics_are_those_of_all_samples(pool, shape, dtype):
    check(pool, SAMPLES["unequal"], shape, dtype)


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize(("affine", "momentum"), [(False, 0.1), (True, None)])
def test_of_any_number_of_samples_a_rank(pool, samples, affine, momentum):
    check(pool, samples, SHAPES["image"], torch.float64, affine=affine, momentum=momentum)


def test_parameters_of_16_bits(pool):
    check(pool, SAMPLES["unequal"], SHAPES["image"], torch.bfloat16, torch.bfloat16)


def test_a_mean_far_above_the_deviation_leaves_the_variance(pool):
    """E[x²] - E[x]² in float32 has no digit of it."""
    shape, samples = SHAPES["image"], SAMPLES["unequal"]
    given = (samples, shape, torch.float32, torch.float32, True, 1.0, 1e4)
    x, _ = tensors(sum(samples), shape, torch.float32, 1e4)
    for _, _, _, buffers in pool.run(on_a_rank, len(samples), *given):
        expected = x.double().var((0, 2, 3))
        torch.testing.assert_close(buffers["running_var"].double(), expected, rtol=1e-5, atol=0)


def too_few(group):
    norm = SyncBatchNorm(6, process_group=group)
    with pytest.raises(ValueError, match="more than one value per channel over all ranks"):
        norm(torch.ones(1 - group.rank(), 6))


def test_a_single_value_per_channel_is_refused(pool):
    pool.run(too_few, 2)


def test_conversion_keeps_parameters_and_keys():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4))
    before = model.state_dict()
    parameters = list(model.parameters())
    converted = synchronise(model, "cpu")
    assert list(converted.state_dict()) == list(before)
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert [type(layer) for layer in converted][1::2] == [SyncBatchNorm, SyncBatchNorm]
