"""What a CUDA device must show of the Triton kernels: primitives, large sizes, memory, launches.

The interpreter shows the same of indices and masks (test_interpreter.py), for every awkward shape.
Here is what only a device has: tensor cores, addresses beyond 32 bits, an allocator. Shapes are
few, because each costs compilations.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence

import contract
import pytest
import torch
from gate import EPS, LAMBDA, Result, assert_within_gate, ours, plain, relative_error, truth
from torch import Tensor

from barlow_fast import barlow_twins_loss

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
from barlow_fast.kernels import ViewGradients, tiles  # noqa: E402
from barlow_fast.kernels.precision import gram_scale  # noqa: E402
from barlow_fast.kernels.triton import configurations, table  # noqa: E402
from barlow_fast.kernels.triton.launch import device_of  # noqa: E402

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

# A wrong address or a lost block changes results by their own size; what correct sums of many
# bfloat16 products may differ by is far below this.
LOST = 2.0**-7


def case_of(shape: tuple[int, int], precision: str, dtype: torch.dtype = FLOAT) -> contract.Case:
    """A case of the contract's tests, on the device."""
    return contract.Case(*(x.to(DEVICE) for x in contract.prepared(shape, precision, dtype)))


def related(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, drawn on the device."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    z_a, noise = (torch.randn((n, d), generator=generator, device=DEVICE) for _ in range(2))
    return z_a.to(dtype), noise.mul_(0.5).add_(z_a).to(dtype)


def step(z: Sequence[Tensor], **options: str) -> Result:
    """Loss, terms and gradients of tensors as they lie in memory: `gate.ours` takes copies."""
    inputs = [x.detach().requires_grad_() for x in z]
    loss, terms = barlow_twins_loss(*inputs, LAMBDA, eps=EPS, return_terms=True, **options)
    grads = torch.autograd.grad(loss, inputs)
    return Result(loss.detach(), terms.on_diagonal, terms.off_diagonal, *grads)


def check_grams(case: contract.Case, precision: str, *checks: Callable[..., None]) -> None:
    """With the factor that the set stores K with."""
    scale = gram_scale(*case.z_a.shape, precision)
    for check in checks or (contract.check_gram, contract.check_tiles):
        check(triton_kernels, case, precision, scale)


@pytest.fixture
def room() -> Iterator[Callable[[float], None]]:
    """Skips the test unless so many GiB are free; gives back what it used."""

    def require(gibibytes: float) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 2**30
        if free < gibibytes:
            pytest.skip(f"needs {gibibytes} GiB of device memory, {free:.1f} are free")

    yield require
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", [torch.float64, FLOAT, BFLOAT, HALF], ids=str)
@pytest.mark.parametrize("shape", [(250, 1500), (1200, 1500)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_moments(shape, dtype):
    """One part of the rows, or several that are merged."""
    contract.check_moments(triton_kernels, case_of(shape, "fp32", dtype), "fp32")
    contract.check_one_row(triton_kernels, shape[1], dtype, "fp32", DEVICE)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_standardise_rounds(precision):
    contract.check_moments(triton_kernels, case_of((250, 1500), precision), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "shape",
    [(60, 1500), (250, 1500), (500, 1500), (1200, 1500), (2040, 2100), (2100, 2100)],
    ids=str,
)
@pytest.mark.usefixtures("poisoned")
def test_gram(shape, precision):
    """Every bucket of N, by the paths that the table gives them."""
    check_grams(case_of(shape, precision), precision, contract.check_gram)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(60, 1500), (250, 1500), (1200, 70), (300, 1)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_tiles(shape, precision):
    """As ranks have them: more columns than samples, or few."""
    check_grams(case_of(shape, precision), precision, contract.check_tiles)


def views_of(
    shape: tuple[int, int], precision: str, count: int, dtype: torch.dtype = FLOAT
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Views and their statistics, on the device."""
    views, statistics = contract.prepared_views(shape, precision, count, dtype)
    return tuple(z.to(DEVICE) for z in views), statistics.to(DEVICE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("shape", "count"), [((60, 1500), 2), ((250, 1500), 8), ((500, 300), 3), ((1200, 700), 2)],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("poisoned")
def test_views(shape, count, precision):
    """Every bucket of N, by the paths that the table gives them."""
    views, statistics = views_of(shape, precision, count)
    contract.check_view_moments(triton_kernels, views, precision)
    contract.check_view_gradients(triton_kernels, views, statistics, precision)


@pytest.mark.parametrize("dtype", [torch.float64, BFLOAT, HALF], ids=str)
@pytest.mark.parametrize("shape", [(250, 1501), (1200, 70)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_views_of_other_types(shape, dtype):
    precision = "fp16" if dtype == HALF else "bf16"
    views, statistics = views_of(shape, precision, 3, dtype)
    contract.check_view_moments(triton_kernels, views, precision)
    contract.check_view_gradients(triton_kernels, views, statistics, precision)


def test_moments_of_more_views_than_a_launch_takes():
    views, _ = views_of((1200, 70), "fp32", configurations.MOST_VIEWS + 2)
    contract.check_view_moments(triton_kernels, views, "fp32")


@pytest.mark.parametrize("shape", [(250, 1500), (1200, 700)], ids=str)
def test_steps_on_views_are_captured(shape):
    """Nothing waits for the device; a replay reads new values, and gives the bits of a call."""
    views, statistics = views_of(shape, "bf16", 3, BFLOAT)
    (n, d), count = shape, len(views)
    links = tuple((o, v) for o in range(count) for v in range(count))
    weights = torch.randn(len(links), d, device=DEVICE)
    products = torch.rand(count, device=DEVICE, dtype=torch.float64) / n
    one = torch.ones((), device=DEVICE)

    def step() -> tuple[Tensor, ...]:
        moments = triton_kernels.view_moments(views, "bf16")
        packed = torch.stack(
            [
                triton_kernels.gram_tiles(z, s, "bf16")
                for z, s in zip(views, statistics, strict=True)
            ]
        )
        centres = tiles.take_centres(packed, n, "bf16")
        matrices = triton_kernels.gram_from_tiles(packed, centres, n, d, "bf16")
        inputs = ViewGradients(
            views, statistics, matrices, products, links, weights, None, one, d, EPS, True, "bf16",
            (True,) * count,
        )  # fmt: skip
        return *moments, *triton_kernels.view_gradients(inputs)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    products.mul_(-2)
    views[0].mul_(0.5)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, step(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_one_sample_that_dominates(precision):
    contract.check_dominating_sample(triton_kernels, precision, DEVICE)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sends the sizes above all buckets down one path of a kernel."""

    def replace(kernel: str, path: str, **blocks: int) -> None:
        for key, row in table.TABLE.items():
            if (key[0], key[3]) == (kernel, table.LARGE):
                row = row._replace(path=path, **blocks)
                monkeypatch.setitem(table.TABLE, key, row)
        configurations.forget_plans()

    yield replace
    monkeypatch.undo()
    configurations.forget_plans()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(
    ("product", "gradients"), [("stored", "tiles"), ("cublas", "cublas")], ids=str
)
@pytest.mark.usefixtures("poisoned")
def test_paths_that_the_table_may_not_take(product, gradients, precision, use):
    """Other devices and tuned rows take them."""
    use("gram", product)
    use("gram_gradients", gradients, block_n=128)
    shape = (2100, 2100)
    case = case_of(shape, precision)
    plan = configurations.gram(device_of(case.z_a), *shape, FLOAT, precision)
    assert plan.path == product
    check_grams(case, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(3000, 100), (1900, 1660)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_correlation(shape, precision):
    """All tiles split over N, or full tiles and a last, incomplete wave."""
    case = case_of(shape, precision)
    plan = configurations.correlation(device_of(case.z_a), *shape, FLOAT, precision)
    assert (plan.full_tiles > 0) == (shape[1] == 1660)
    assert (plan.splits > 1) or plan.full_tiles
    contract.check_correlation(triton_kernels, case, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(2, 1), (7, 13), (129, 65)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_awkward_shapes(shape, precision):
    case = case_of(shape, precision)
    check_grams(case, precision, contract.check_gram)
    contract.check_correlation(triton_kernels, case, precision)


@pytest.mark.parametrize("dtype", [torch.float64, BFLOAT, HALF], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_inputs_of_other_types(dtype):
    precision = "fp16" if dtype == HALF else "bf16"
    check_grams(case_of((250, 1500), precision, dtype), precision, contract.check_gram)
    contract.check_correlation(triton_kernels, case_of((3000, 100), precision, dtype), precision)


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_strided_and_unaligned_inputs(form):
    """Columns cut out of wider rows, from an odd address on; transposed inputs."""
    n, d = (250, 1500) if form == "gram" else (3000, 100)
    wide = related(n, d + 9, FLOAT)
    tall = related(d, n, FLOAT)
    for z in ([x[:, 3 : 3 + d] for x in wide], [x.T for x in tall]):
        got = step(z, precision="fp32", form=form, backend="triton")
        want = step(z, precision="fp32", form=form, backend="aten")
        for x, y in zip(got, want, strict=True):
            assert relative_error(x, y.double()) <= 1e-5


def test_matrices_in_half_precision_do_not_overflow():
    """Equal samples make every element of K as large as D, beyond float16's largest number."""
    z = torch.cat((torch.ones(2, 90_000), -torch.ones(2, 90_000))) * 3
    z = (z + 1e-3 * torch.randn(4, 90_000, generator=torch.Generator().manual_seed(0))).to(DEVICE)
    result = ours(z, z + 0.1, precision="fp16", form="gram", backend="triton")
    assert all(x.isfinite().all() for x in result)
    exact = plain(z, z + 0.1, "fp64", "gram")
    assert relative_error(result.loss, exact.loss) <= 2.0**-10


# The closed form in float64 is the truth where D x D would be too large.
closed_form = functools.partial(plain, precision="fp64", form="gram")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", BFLOAT), ("fp32", FLOAT)], ids=str)
@pytest.mark.parametrize(("n", "d"), [(256, 8192), (4096, 512)], ids=str)
def test_gate_of_aligned_sizes(n, d, precision, dtype):
    """Sizes that fill every block, as most users' do; `tests/loss/test_gpu.py` has the others."""
    form = "gram" if n < d else "correlation"
    exact = closed_form if n < d else truth
    drawn = functools.partial(related, n, d, dtype)
    assert_within_gate(drawn, precision, form, "triton", seeds=3, exact=exact)


@pytest.mark.parametrize(
    ("n", "precision", "dtype"), [(64, "fp32", FLOAT), (256, "bf16", BFLOAT)], ids=["64", "256"]
)
def test_262144_dimensions(n, precision, dtype, room):
    """The gate on what every element has a part in; sums that are all but a multiple of D depend on
    how that rounds."""
    d = 1 << 18
    room(24)
    assert_within_gate(
        functools.partial(related, n, d, dtype), precision, "gram", "triton", 2, closed_form,
        ("on_diagonal", "grad_a", "grad_b"),
    )  # fmt: skip
    z = related(n, d, dtype)
    got = ours(*z, precision=precision, form="gram", backend="triton")
    assert relative_error(got.off_diagonal, closed_form(*z).off_diagonal) <= LOST


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", BFLOAT), ("fp32", FLOAT)], ids=str)
def test_169343_samples(precision, dtype, room):
    room(12)
    drawn = functools.partial(related, 169_343, 256, dtype)
    assert_within_gate(drawn, precision, "correlation", "triton", seeds=2)


def test_offsets_beyond_32_bits_by_columns(room):
    """N D > 2^31. Columns of zeros change nothing but a constant, so the rest is a small problem
    whose last rows lie beyond 2^31."""
    n, d, used = 8200, 1 << 18, 200
    assert n * d > 2**31
    room(32)
    ends = related(n, 2 * used, BFLOAT)
    z = [torch.zeros((n, d), dtype=BFLOAT, device=DEVICE) for _ in ends]
    for x, part in zip(z, ends, strict=True):
        x[:, :used], x[:, -used:] = part[:, :used], part[:, used:]
    got = step(z, precision="bf16", form="gram", backend="triton")
    exact, baseline = truth(*ends), plain(*ends, "bf16", "gram")
    constant = d - 2 * used
    assert relative_error(got.on_diagonal, exact.on_diagonal + constant) <= 1e-6
    assert relative_error(got.off_diagonal, exact.off_diagonal) <= LOST
    for grad, true, base in zip(got[3:], exact[3:], baseline[3:], strict=True):
        assert not grad[:, used:-used].any()
        mine = torch.cat((grad[:, :used], grad[:, -used:]), 1)
        allowed = 2 * relative_error(base.to(BFLOAT), true)
        assert relative_error(mine, true) <= allowed
        # The last rows by themselves: among all others they would hardly show.
        assert relative_error(mine[-8:], true[-8:]) <= LOST


def test_offsets_beyond_32_bits_by_rows(room):
    """N D > 2^31. Rows repeated R times have the same loss, and each copy 1 / R of the gradient."""
    n, d, repeats = 35_001, 256, 256
    assert n * d * repeats > 2**31
    room(28)
    base = related(n, d, BFLOAT)
    exact = truth(*base)
    z = [x.repeat(repeats, 1) for x in base]
    got = step(z, precision="bf16", form="correlation", backend="triton")
    assert relative_error(got.on_diagonal, exact.on_diagonal) <= 1e-5
    assert relative_error(got.off_diagonal, exact.off_diagonal) <= LOST
    for grad, true in zip(got[3:], exact[3:], strict=True):
        copies = grad.view(repeats, n, d)
        assert relative_error(copies[0].double() * repeats, true) <= LOST
        assert all(torch.equal(copy, copies[0]) for copy in copies[1:])


@pytest.mark.parametrize(
    ("n", "stride"), [(3, (1 << 31) + 64), (40, 1 << 27)], ids=["one row", "one block"]
)
@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_row_strides_beyond_32_bits(form, n, stride, room):
    """Rows so far apart that a stride, or a few of them, exceeds 2^31 elements."""
    d = 1500
    room((n - 1) * stride * 2 / 2**30 + 2)
    close = related(n, d, BFLOAT)
    memory = torch.zeros((n - 1) * stride + 2 * d, dtype=BFLOAT, device=DEVICE)
    far = [memory.as_strided((n, d), (stride, 1), view * d) for view in range(2)]
    for x, y in zip(far, close, strict=True):
        x.copy_(y)
    got = step(far, precision="bf16", form=form, backend="triton")
    want = step(close, precision="bf16", form=form, backend="triton")
    for x, y in zip(got, want, strict=True):
        assert relative_error(x, y.double()) <= LOST


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes of each allocation that `run` makes on the device."""

    def trace() -> list[dict]:
        return torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]

    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python")
    try:
        earlier = len(trace())  # an earlier recording may still be there
        run()
        events = trace()[earlier:]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return [event["size"] for event in events if event["action"] == "alloc"]


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT], ids=str)
@pytest.mark.parametrize(
    ("n", "d"), [(256, 8192), (2048, 8192), (4096, 512), (1024, 16384)], ids=str
)
def test_memory_of_a_step(n, d, dtype):
    """Beyond inputs and gradients at most as much as the inputs, and never the larger matrix."""
    z = related(n, d, dtype)
    step(z)  # compiles, and makes what is made once
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = step(z)
    torch.cuda.synchronize()
    gradients = result.grad_a.nbytes + result.grad_b.nbytes
    extra = torch.cuda.max_memory_allocated() - before - gradients
    inputs = sum(x.nbytes for x in z)
    assert 0 < extra <= inputs
    del result
    sizes = allocations(lambda: step(z))
    assert max(sizes) >= z[0].nbytes  # the gradients are among them
    assert max(sizes) < max(n, d) ** 2 * dtype.itemsize


@pytest.mark.parametrize(
    ("n", "d", "most"), [(256, 8192, 4), (2048, 8192, 4), (4096, 512, 5)], ids=str
)
def test_launches_of_a_step(n, d, most):
    """The kernels of ours, and the one that makes the gradient of the loss itself. Without the
    terms, whose means are divisions by torch."""
    inputs = [x.detach().requires_grad_() for x in related(n, d, BFLOAT)]

    def one_step() -> None:
        torch.autograd.grad(barlow_twins_loss(*inputs, LAMBDA, eps=EPS), inputs)

    one_step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        one_step()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profiler.events() if event.device_type == cuda]
    if not names:
        pytest.skip("the profiler records no kernels on this machine")
    mine = [name for name in names if name.endswith("_kernel")]
    others = [name for name in names if not name.endswith("_kernel")]
    assert 1 <= len(mine) <= most, mine
    assert len(others) <= 1, others


def test_steps_side_by_side():
    """Captured graphs and eager steps on streams of their own, at the same time: the last programs
    of each count their own."""
    inputs = [related(4096, 512, BFLOAT, seed) for seed in range(3)]
    options = {"form": "correlation", "precision": "bf16", "backend": "triton"}
    want = [step(z, **options) for z in inputs]
    graphs, got = [], []
    for z in inputs[:2]:
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            got.append(step(z, **options))
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(50):
        for graph, stream in zip(graphs, streams, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(streams[-1]):
            last = step(inputs[-1], **options)
    torch.cuda.synchronize()
    for found, expected in zip((*got, last), want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
