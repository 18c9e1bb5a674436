"""Each primitive of each kernel set against the plain-torch set, at awkward shapes, on every
instruction set."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

import contract
import pytest
import torch
from embeddings import AWKWARD_SHAPES, draw

from barlow_fast.kernels import KERNEL_SETS, ViewGradients, aten, load, why_unusable
from barlow_fast.kernels import cpu as cpu_kernels

CPU = torch.device("cpu")
poisoned = pytest.mark.usefixtures("poisoned")
every_shape = pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)


@pytest.fixture(params=cpu_kernels.INSTRUCTION_SETS)
def kernels(request):
    """The contract.native set, on each instruction set that this CPU has."""
    if request.param == cpu_kernels.EMULATED:
        parameters = request.node.callspec.params
        if parameters.get("precision", parameters.get("operand")) not in ("bf16", "tf32"):
            pytest.skip("what is emulated are products of bf16 and tf32")
    with contract.using(request.param) as kernels:
        yield kernels


@every_shape
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@poisoned
def test_moments_and_standardisation(kernels, shape, precision):
    contract.check_moments(kernels, contract.prepared(shape, precision), precision)


def test_moments_of_long_columns_merge_over_row_blocks(kernels):
    """More rows than one task takes: partial moments are merged."""
    z_a, z_b = draw("badly_scaled", 9001, 40, seed=1)
    exact = aten.column_moments(z_a.double(), z_b.double(), "fp64")
    got = kernels.column_moments(z_a, z_b, "fp32")
    scale = (exact[2] / 9001).sqrt()
    assert float(((got[0] - exact[0]) / scale).abs().max()) < 1e-6
    for row in (2, 3):
        torch.testing.assert_close(got[row], exact[row], rtol=1e-5, atol=0)


@every_dtype
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@poisoned
def test_every_input_type_with_every_operand_type(kernels, dtype, precision):
    for shape in ((19, 45), (45, 19)):
        case = contract.prepared(shape, precision, dtype)
        contract.check_gram(kernels, case, precision)
        contract.check_correlation(kernels, case, precision)


@pytest.mark.parametrize("check", [contract.check_gram, contract.check_correlation])
@every_shape
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16"])
@poisoned
def test_forms(kernels, shape, precision, check):
    check(kernels, contract.prepared(shape, precision), precision)


@every_dtype
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@poisoned
def test_one_row(kernels, dtype, precision):
    for d in (1, 37, 150):
        contract.check_one_row(kernels, d, dtype, precision)


@pytest.mark.parametrize("shape", [*AWKWARD_SHAPES, (300, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@poisoned
def test_tiles(kernels, shape, precision):
    contract.check_tiles(kernels, contract.prepared(shape, precision), precision)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@poisoned
def test_tiles_of_every_input_type(kernels, dtype, precision):
    contract.check_tiles(kernels, contract.prepared((70, 45), precision, dtype), precision)


@pytest.mark.large
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@poisoned
def test_tiles_of_more_than_one_block(kernels, precision):
    """Several square blocks, or several parts of the summed index, with remainders."""
    for shape in ((700, 90), (140, 1100)):
        contract.check_tiles(kernels, contract.prepared(shape, precision), precision)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@poisoned
def test_one_sample_that_dominates(kernels, precision):
    contract.check_dominating_sample(kernels, precision)


@pytest.mark.large
@pytest.mark.parametrize("shape", [(600, 700), (700, 600)], ids=["gram", "correlation"])
@poisoned
def test_more_than_one_block_of_the_matrix(shape, kernels):
    """Several square blocks and several parts of the summed index, with remainders."""
    case = contract.prepared(shape, "fp32")
    contract.check_gram(kernels, case, "fp32")
    contract.check_correlation(kernels, case, "fp32")


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@poisoned
def test_more_than_one_block_of_narrow_matrices(kernels, precision):
    """The same of matrices that take little work, for emulated instruction sets."""
    for shape in ((9, 1500), (1500, 3)):
        case = contract.prepared(shape, precision)
        contract.check_gram(kernels, case, precision)
        contract.check_correlation(kernels, case, precision)
    contract.check_tiles(kernels, contract.prepared((9, 1500), precision), precision)


@contract.native
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    wide, narrow = contract.prepared((65, 900), "fp32"), contract.prepared((65, 50), "fp32")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        contract.check_gram(cpu_kernels, wide, "fp32")
        contract.check_correlation(cpu_kernels, narrow, "fp32")
        contract.check_tiles(cpu_kernels, wide, "fp32")
    finally:
        torch.set_num_threads(before)


def of_views(
    views: tuple[torch.Tensor, ...], statistics: torch.Tensor, precision: str
) -> list[torch.Tensor]:
    """What the native set computes of three views, two of them with a gradient."""
    (n, d), few = views[0].shape, list(zip(views, statistics, strict=True))[:2]
    packed = torch.stack([cpu_kernels.gram_tiles(z, rows, precision) for z, rows in few])
    matrices = cpu_kernels.gram_from_tiles(packed, statistics.new_zeros(2), n, d, precision)
    links = ((0, 1), (0, 2), (1, 0))
    weights = torch.linspace(-1, 1, len(links) * d, dtype=statistics.dtype).view(-1, d)
    products, one = torch.full((2,), 0.01 / n, dtype=torch.float64), statistics.new_ones(())
    inputs = ViewGradients(
        views, statistics, matrices, products, links, weights, None, one, d, 1e-5, True, precision,
        (True, True),
    )  # fmt: skip
    return [
        *cpu_kernels.view_moments(views, precision), *matrices,
        *cpu_kernels.view_gradients(inputs),
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("shape", [(130, 600), (600, 130)], ids=str)
def test_views_repeat_bit_by_bit_and_agree_between_numbers_of_threads(kernels, shape, precision):
    views, statistics = contract.prepared_views(shape, precision, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 2):
            torch.set_num_threads(threads)
            results.append(of_views(views, statistics, precision))
    finally:
        torch.set_num_threads(before)
    for one, again, two, twice in zip(*results, strict=True):
        assert torch.equal(one, again)
        assert torch.equal(two, twice)
        contract.assert_close(two, one, 1e-5)


@poisoned
def test_moments_of_views_merge_over_row_blocks(kernels):
    """More rows than one task takes, and means far larger than the deviations."""
    z_a, z_b = draw("badly_scaled", 9001, 40, seed=1)
    views = (z_a, z_b, (z_a + z_b) / 2)
    exact_means, exact = aten.view_moments([z.double() for z in views], "fp64")
    means, comoments = kernels.view_moments(views, "fp32")
    squares = exact.diagonal(0, 0, 1).T
    assert float(((means - exact_means) / (squares / 9001).sqrt()).abs().max()) < 1e-6
    sizes = (squares[:, None] * squares).sqrt()
    assert float(((comoments - exact) / sizes).abs().max()) < 1e-5
    assert torch.equal(comoments, comoments.transpose(0, 1))


@poisoned
@pytest.mark.parametrize(
    "order", ["8 rows far away", "16 rows far away", "ascending", "steps", "constant"]
)
def test_moments_of_rows_in_an_order(kernels, order):
    """The native kernels sum squares about the mean of the rows before, at first of a few rows."""
    n, d = 300, 40
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3, n, d, generator=generator)
    if order.endswith("far away"):
        z[:2, : int(order.split()[0])] += 1e4
    elif order == "ascending":
        z = z.sort(1).values
    elif order == "steps":
        z += 1e3 * (torch.arange(n) // 64)[:, None]
    else:
        z = z[:, :1].expand(-1, n, -1).contiguous()
    exact_means, exact = aten.view_moments(z.double().unbind(), "fp64")
    means, comoments = kernels.view_moments(z.unbind(), "fp32")
    squares = exact.diagonal(0, 0, 1).T
    sizes = (squares[:, None] * squares).sqrt()
    limit = 2e-6 * sizes if order != "constant" else torch.full_like(sizes, 1e-9)
    near = 1e-6 * (squares / n).sqrt() + 1e-6
    assert bool(((comoments - exact).abs() <= limit).all())
    assert bool(((means - exact_means).abs() <= near).all())
    pair = kernels.column_moments(z[0], z[1], "fp32")
    assert bool(((pair[:2] - exact_means[:2]).abs() <= near[:2]).all())
    for row, (v, u) in ((2, (0, 0)), (3, (1, 1)), (4, (0, 1))):
        assert bool(((pair[row] - exact[v, u]).abs() <= limit[v, u]).all())


@contract.native
def test_kernels_inside_a_thread_of_the_caller():
    """Autograd and data-parallel code call from threads of their own."""
    from concurrent.futures import ThreadPoolExecutor

    case = contract.prepared((40, 300), "fp32")
    arguments = (case.z_a, case.z_b, case.statistics, case.sums, "fp32")
    want = cpu_kernels.gram_pair(*arguments)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(cpu_kernels.gram_pair, *arguments) for _ in range(16)]
        for job in jobs:
            for x, y in zip(job.result(), want, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-4)


def test_sets_are_named_and_refused_with_a_reason():
    assert KERNEL_SETS == ("triton", "cpu", "aten")
    assert why_unusable("aten", CPU) is None
    reason = "CUDA tensors" if find_spec("triton") else "Triton is not installed"
    assert reason in why_unusable("triton", CPU)
    assert "CPU tensors" in why_unusable("cpu", torch.device("cuda"))
    with pytest.raises(ValueError, match="backend must be one of"):
        load("cudnn")


@contract.native
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_standardise_takes_vectors_of_any_type(precision, dtype):
    z = torch.randn(9, 21, dtype=torch.float64)
    vectors = [torch.rand(21, dtype=dtype) for _ in range(3)]
    wide = torch.float64 if precision == "fp64" else torch.float32
    want = aten.standardise(z, *(v.to(wide) for v in vectors), precision)
    got = cpu_kernels.standardise(z, *vectors, precision)
    torch.testing.assert_close(got, want, rtol=1e-2 if precision == "bf16" else 1e-5, atol=1e-5)


@contract.native
def test_reading_the_instruction_set_changes_nothing():
    least = cpu_kernels.INSTRUCTION_SETS[1]
    with contract.using(least):
        assert cpu_kernels.instruction_set() == least
        assert cpu_kernels.instruction_set() == least


@pytest.mark.parametrize(("precision", "setting"), [("tf32", "tf32"), ("fp32", "ieee")])
def test_plain_products_of_float32_ask_for_their_precision(precision, setting, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def record(*arguments):
        seen.append(arguments)
        yield

    monkeypatch.setattr(aten, "float32_products", record)
    aten.product(torch.ones(2, 3), torch.ones(3, 2), precision)
    assert seen == [(setting, "cpu")]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape", [(2, 1), (3, 40), (70, 45), (33, 300), (260, 5), (260, 130)], ids=str
)
def test_views(kernels, shape, count, precision):
    views, statistics = contract.prepared_views(shape, precision, count)
    contract.check_view_moments(kernels, views, precision)
    contract.check_view_gradients(kernels, views, statistics, precision)
