"""Each primitive of each kernel set against the plain-torch set, at awkward shapes, on every
instruction set."""

from __future__ import annotations

import pytest
import torch
from embeddings import AWKWARD_SHAPES, draw

from barlow_fast.kernels import KERNEL_SETS, aten, load, why_unusable
from barlow_fast.kernels import cpu as cpu_kernels

CPU = torch.device("cpu")
PROBLEM = why_unusable("cpu", CPU)
native = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
EPS = 1e-5

# What rounding in the accumulation type may differ by when sums run in another order, relative to
# the result.
BOUND = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 1e-5, "fp16": 1e-5}


@pytest.fixture(params=cpu_kernels.INSTRUCTION_SETS)
def kernels(request):
    """The native set, on each instruction set that this CPU has."""
    if PROBLEM is not None:
        pytest.skip(PROBLEM)
    before = cpu_kernels.instruction_set()
    try:
        cpu_kernels.use_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield cpu_kernels
    cpu_kernels.use_instruction_set(before)


def assert_close(got, want, precision, size=None):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    size = want.double().norm() if size is None else size
    assert float((got.double() - want.double()).norm()) <= BOUND[precision] * max(
        float(size), 1e-30
    )


def prepared(shape, precision, dtype=None):
    dtype = dtype or (torch.float64 if precision == "fp64" else torch.float32)
    z_a, z_b = draw("random", *shape, seed=sum(shape), dtype=dtype)
    z_b = (z_b + z_a).to(dtype)
    moments = aten.column_moments(z_a, z_b, precision)
    statistics, _ = aten.standardisation(moments, shape[0], EPS, precision)
    return z_a, z_b, moments, statistics


@pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.usefixtures("poisoned")
def test_moments_and_standardisation(kernels, shape, precision):
    z_a, z_b, moments, statistics = prepared(shape, precision)
    got = kernels.column_moments(z_a, z_b, precision)
    assert_close(got, moments, precision)
    for x, y in zip(
        kernels.standardisation(moments, shape[0], EPS, precision),
        aten.standardisation(moments, shape[0], EPS, precision),
        strict=True,
    ):
        assert_close(x, y, precision)
    rows = statistics[0:3]
    assert_close(
        kernels.standardise(z_a, *rows, precision),
        aten.standardise(z_a, *rows, precision),
        precision,
    )


def test_moments_of_long_columns_merge_over_row_blocks(kernels):
    """More rows than one task takes: partial moments are merged."""
    z_a, z_b = draw("badly_scaled", 9001, 40, seed=1)
    exact = aten.column_moments(z_a.double(), z_b.double(), "fp64")
    got = kernels.column_moments(z_a, z_b, "fp32")
    scale = (exact[2] / 9001).sqrt()
    assert float(((got[0] - exact[0]) / scale).abs().max()) < 1e-6
    for row in (2, 3):
        torch.testing.assert_close(got[row], exact[row], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_every_input_type_with_every_operand_type(kernels, dtype, precision):
    for shape in ((19, 45), (45, 19)):
        z_a, z_b, _, statistics = prepared(shape, precision, dtype)
        check_gram(kernels, z_a, z_b, statistics, precision)
        check_correlation(kernels, z_a, z_b, statistics, precision)


@pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.usefixtures("poisoned")
def test_gram(kernels, shape, precision):
    z_a, z_b, _, statistics = prepared(shape, precision)
    check_gram(kernels, z_a, z_b, statistics, precision)


@pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.usefixtures("poisoned")
def test_correlation(kernels, shape, precision):
    z_a, z_b, _, statistics = prepared(shape, precision)
    check_correlation(kernels, z_a, z_b, statistics, precision)


def check_gram(kernels, z_a, z_b, statistics, precision):
    want = aten.gram_pair(z_a, z_b, statistics, precision)
    got = kernels.gram_pair(z_a, z_b, statistics, precision)
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, precision)
    assert torch.equal(got[0], got[0].T)
    n = z_a.shape[0]
    options = (torch.tensor(1.7, dtype=statistics.dtype), 0.01 / n, 0.2, -0.3, EPS, precision)
    compare_gradients(
        kernels, "gram_gradients", (z_a, z_b, statistics, *want[:2], *options), precision
    )


def check_correlation(kernels, z_a, z_b, statistics, precision):
    want = aten.correlation(z_a, z_b, statistics, precision)
    got = kernels.correlation(z_a, z_b, statistics, precision)
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, precision)
    assert not got[0].diagonal().any()
    options = (torch.tensor(1.7, dtype=statistics.dtype), 0.01, 0.2, -0.3, precision)
    compare_gradients(
        kernels, "correlation_gradients", (z_a, z_b, statistics, *want, *options), precision
    )


def compare_gradients(kernels, name, arguments, precision):
    want = getattr(aten, name)(*arguments, (True, True))
    got = getattr(kernels, name)(*arguments, (True, True))
    # Where the exact gradient nearly vanishes (N = 2), what is compared is rounding in terms of
    # this size.
    rstd, scale = arguments[2][1].double().norm(), float(arguments[0].shape[0]) ** 0.5
    for x, y in zip(got, want, strict=True):
        bound = max(BOUND[precision], 2 * torch.finfo(y.dtype).eps)
        assert x.dtype == y.dtype
        size = max(float(y.double().norm()), float(rstd) * scale * 0.1)
        assert float((x.double() - y.double()).norm()) <= bound * size
    for need in ((True, False), (False, True)):
        for x, y, wanted in zip(getattr(kernels, name)(*arguments, need), got, need, strict=True):
            assert torch.equal(x, y) if wanted else x.numel() == 0


@pytest.mark.parametrize("shape", [(600, 700), (700, 600)], ids=["gram", "correlation"])
@pytest.mark.usefixtures("poisoned")
def test_more_than_one_block_of_the_matrix(shape, kernels):
    """Several square blocks and several parts of the summed index, with remainders."""
    z_a, z_b, _, statistics = prepared(shape, "fp32")
    check_gram(kernels, z_a, z_b, statistics, "fp32")
    check_correlation(kernels, z_a, z_b, statistics, "fp32")


@native
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    z_a, z_b, _, statistics = prepared((65, 900), "fp32")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check_gram(cpu_kernels, z_a, z_b, statistics, "fp32")
        check_correlation(
            cpu_kernels, z_a[:, :50], z_b[:, :50], statistics[:, :50].contiguous(), "fp32"
        )
    finally:
        torch.set_num_threads(before)


@native
def test_kernels_inside_a_thread_of_the_caller():
    """Autograd and data-parallel code call from threads of their own."""
    from concurrent.futures import ThreadPoolExecutor

    z_a, z_b, _, statistics = prepared((40, 300), "fp32")
    want = cpu_kernels.gram_pair(z_a, z_b, statistics, "fp32")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(cpu_kernels.gram_pair, z_a, z_b, statistics, "fp32") for _ in range(16)]
        for job in jobs:
            for x, y in zip(job.result(), want, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-4)


@native
def test_native_checks_refuse_wrong_shapes():
    z = torch.randn(8, 12)
    with pytest.raises(RuntimeError, match="moments must be a contiguous CPU tensor of 5 x 12"):
        torch.ops.barlow_fast_cpu.column_moments(z, z, 1, torch.empty(5, 11, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="differ in shape"):
        torch.ops.barlow_fast_cpu.column_moments(
            z, z[:, :4], 1, torch.empty(5, 12, dtype=torch.float64)
        )
    with pytest.raises(RuntimeError, match="unknown operand type"):
        torch.ops.barlow_fast_cpu.column_moments(z, z, 9, torch.empty(5, 12, dtype=torch.float64))


def test_sets_are_named_and_refused_with_a_reason():
    assert KERNEL_SETS == ("triton", "cpu", "aten")
    assert why_unusable("aten", CPU) is None
    assert "CUDA tensors" in why_unusable("triton", CPU)
    assert "CPU tensors" in why_unusable("cpu", torch.device("cuda"))
    with pytest.raises(ValueError, match="backend must be one of"):
        load("cudnn")
