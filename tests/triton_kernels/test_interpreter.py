"""Every Triton kernel in Triton's interpreter, on the CPU, against the plain-torch set.

    TRITON_INTERPRET=1 pytest tests/triton_kernels/test_interpreter.py        (part of `make test`)

The interpreter runs one program after the other with numpy: it shows that indices, masks, sums and
roundings are right, not that a device runs them fast.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import contract
import numpy as np
import photometric_contract as views
import pytest
import torch
from embeddings import AWKWARD_SHAPES, KINDS, draw
from gate import assert_within_gate, ours

from barlow_fast import barlow_twins_loss
from barlow_fast.kernels import Coefficients, GradientInputs, ViewGradients, aten
from barlow_fast.kernels.photometry import Parameter

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
from barlow_fast.kernels.precision import gram_scale  # noqa: E402
from barlow_fast.kernels.triton import configurations, table  # noqa: E402
from barlow_fast.kernels.triton.launch import device_of  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        not triton_kernels.INTERPRETED.value,
        reason="runs in Triton's interpreter: TRITON_INTERPRET=1 (make test does)",
    ),
    pytest.mark.usefixtures("poisoned", "fresh_plans"),
]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BFLOAT = torch.bfloat16
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def slow(*values):
    """One of many alike, for `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def language_patched_once():
    """Triton's interpreter patches its language again in every call of a device function, a quarter
    of the time; what the call of the kernel has patched is enough."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    known, patch = (interpreter.tl, interpreter.tl.core), interpreter._patch_lang

    def patch_once(function):
        found = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        if any(known[0].core.is_builtin(language.load) for language in known if language in found):
            return patch(function)
        return None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture
def fresh_plans():
    """Tests change the table; plans are cached."""
    configurations.forget_plans()
    yield
    configurations.forget_plans()


def check_grams(case, precision, *checks):
    """With the factor that the set stores K with."""
    scale = gram_scale(*case.z_a.shape, precision)
    for check in checks or (contract.check_gram, contract.check_tiles):
        check(triton_kernels, case, precision, scale)


def check_both(case, precision):
    check_grams(case, precision, contract.check_gram)
    contract.check_correlation(triton_kernels, case, precision)


def test_the_interpreter_is_on():
    assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_moments(shape):
    contract.check_moments(triton_kernels, contract.prepared(shape, "fp32"), "fp32")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_input_type_with_every_operand_type(dtype, precision):
    for shape in ((19, 45), (45, 19)):
        case = contract.prepared(shape, precision, dtype)
        contract.check_moments(triton_kernels, case, precision)
        check_both(case, precision)


@pytest.mark.parametrize(
    "shape",
    [shape if max(shape) < 200 else slow(shape) for shape in AWKWARD_SHAPES],
    ids=lambda s: f"{s[0]}x{s[1]}",
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_awkward_shapes(shape, precision):
    # The interpreter is slow: one type at the largest shape.
    if precision == "fp32" and max(shape) > 1000:
        pytest.skip("1025 in bf16 only, 521 in fp32")
    check_both(contract.prepared(shape, precision), precision)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_row(dtype):
    for d in (1, 37):
        contract.check_one_row(triton_kernels, d, dtype, "fp32")


@pytest.mark.parametrize(
    "shape",
    [(2, 1), (13, 7), (64, 64), (65, 129), slow((300, 1)), slow((33, 600))],
    ids=str,
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiles(shape, precision):
    check_grams(contract.prepared(shape, precision), precision, contract.check_tiles)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_of_every_input_type(dtype):
    contract.check_tiles(triton_kernels, contract.prepared((70, 45), "bf16", dtype), "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_sample_that_dominates(precision):
    contract.check_dominating_sample(triton_kernels, precision)


@pytest.mark.parametrize("parts", ["one", "many"])
def test_moments_in_row_parts(parts, monkeypatch):
    """Long columns are cut into parts that are merged; badly scaled ones stay accurate."""
    rows = 1 << 30 if parts == "one" else 8
    monkeypatch.setattr(configurations, "MOST_UNDIVIDED_ROWS", rows)
    monkeypatch.setattr(configurations, "MOST_PART_ROWS", rows if parts == "one" else 128)
    z_a, z_b = draw("badly_scaled", 901, 40, seed=1)
    exact = aten.column_moments(z_a.double(), z_b.double(), "fp64")
    got = triton_kernels.column_moments(z_a, z_b, "fp32")
    scale = (exact[2] / 901).sqrt()
    assert float(((got[0] - exact[0]) / scale).abs().max()) < 1e-6
    for row in (2, 3):
        torch.testing.assert_close(got[row], exact[row], rtol=1e-5, atol=0)
    fused, sums = triton_kernels.statistics(z_a, z_b, contract.EPS, "fp32")
    want, want_sums = aten.standardisation(exact, 901, contract.EPS, "fp32")
    torch.testing.assert_close(fused[[0, 1, 3, 4, 6]], want[[0, 1, 3, 4, 6]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums[:, :2].sum(0), want_sums.sum(0), rtol=1e-5, atol=0)


def use(monkeypatch, kernel, path, **blocks):
    """Sends every size of one kernel down one path."""
    for key, row in table.TABLE.items():
        if key[0] == kernel:
            monkeypatch.setitem(table.TABLE, key, row._replace(path=path, **blocks))


# Paths and shapes decide on tiles, operand types on products: every path with every shape in one
# type, and with every type in one shape. Products of float32 quality are fused at every size, or
# torch's.
def all_slow(*values):
    return itertools.starmap(slow, itertools.product(*values))


PATHS = ["stored", "tma", "cublas"]
PRODUCTS = [
    *itertools.product(PATHS, [(200, 90)], ["bf16"]),
    ("stored", (60, 600), "bf16"),
    *all_slow(PATHS, [(60, 600), (330, 70)], ["bf16"]),
    *all_slow(PATHS, [(60, 600)], ["tf32"]),
    *all_slow(PATHS, [(200, 90)], ["fp16"]),
    *all_slow(["cublas"], [(60, 600), (330, 70)], ["fp32"]),
]
WAYS = ["fused", "tiles", "tma", "cublas"]
GRADIENTS = [
    *itertools.product(WAYS, [64], ["bf16"]),
    *all_slow(["fused", "tiles", "cublas"], [64], ["fp32"]),
    *all_slow(WAYS, [64], ["tf32"]),
    *all_slow(WAYS, [256], ["bf16"]),
    slow("tiles", 256, "fp32"),
]


@pytest.mark.parametrize(("path", "shape", "precision"), PRODUCTS, ids=str)
def test_paths_of_large_gram_products(path, shape, precision, monkeypatch):
    """z_hat in memory, full tiles finished in place, the last wave split; or torch's product."""
    use(monkeypatch, "gram", path)
    case = contract.prepared(shape, precision)
    plan = configurations.gram(device_of(case.z_a), *shape, torch.float32, precision)
    assert plan.path == path
    assert (plan.full_tiles > 0) == (shape[0] > 60)
    assert (plan.splits > 1) == (shape[0] == 60)
    check_grams(case, precision)


@pytest.mark.parametrize(("path", "block_n", "precision"), GRADIENTS)
def test_paths_of_large_gram_gradients(path, block_n, precision, monkeypatch):
    """More rows than one program owns; chunks of torch's product."""
    use(monkeypatch, "gram_gradients", path, block_m=64, block_n=block_n)
    monkeypatch.setattr(configurations, "LIBRARY_CHUNK_BYTES", 1 << 15)
    shape = (130, block_n + 40)
    check_grams(contract.prepared(shape, precision), precision, contract.check_gram)
    contract.check_tiles(triton_kernels, contract.prepared((70, 140), precision), precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_correlation_with_full_and_split_tiles(precision):
    for n, d in ((140, 260), (600, 40)):
        case = contract.prepared((n, d), precision)
        plan = configurations.correlation(device_of(case.z_a), n, d, torch.float32, precision)
        assert (plan.full_tiles > 0) == (d > 40)
        assert (plan.splits > 1) == (d == 40)
        contract.check_correlation(triton_kernels, case, precision)


@pytest.mark.parametrize("path", table.PATHS["correlation_gradients"])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_paths_of_correlation_gradients(path, precision, monkeypatch):
    """z_hat standardised on its way into the product, stored with rows of whole blocks, or z as it
    is and C scaled."""
    use(monkeypatch, "correlation_gradients", path)
    dtype = torch.bfloat16 if path == "raw" and precision == "bf16" else None
    for shape in ((150, 70), (140, 64)):
        case = contract.prepared(shape, precision, dtype)
        contract.check_correlation(triton_kernels, case, precision)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_c_loses_no_more_than_rounding_z_hat(kind, monkeypatch):
    """The paths 'raw' and 'fused' against float64: of the products alone, stored in float32."""
    module = inspect.getmodule(triton_kernels.correlation_gradients)
    float32 = functools.partial(torch.empty, dtype=torch.float32)
    empty = SimpleNamespace(empty=lambda shape, dtype, device: float32(shape), bfloat16=BFLOAT)
    squared = {"raw": torch.zeros(2), "fused": torch.zeros(2)}
    for seed in range(4):
        z_a, z_b = draw(kind, 200, 40, seed, BFLOAT)
        statistics, _ = triton_kernels.statistics(z_a, z_b, contract.EPS, "bf16")
        matrix, squares = triton_kernels.correlation(z_a, z_b, statistics, "bf16")
        options = statistics.new_ones(()), Coefficients(1.0, 0.0, 0.0), "bf16"
        kept = matrix, torch.zeros_like(squares)  # without the projection
        whole = z_a.double(), z_b.double(), statistics.double(), (matrix[:, :40].double(), kept[1])
        exact = aten.correlation_gradients(GradientInputs(*whole, *options[:2], "fp64"))
        for path in squared:
            use(monkeypatch, "correlation_gradients", path)
            configurations.forget_plans()
            with monkeypatch.context() as patched:
                patched.setattr(module, "torch", empty)
                found = triton_kernels.correlation_gradients(
                    GradientInputs(z_a, z_b, statistics, kept, *options)
                )
            pairs = zip(found, exact, strict=True)
            squared[path] += torch.tensor([float((x - y).norm() / y.norm()) ** 2 for x, y in pairs])
    assert (squared["raw"] > 0).all()
    assert squared["raw"].sum() <= 1.1 * squared["fused"].sum(), squared


# Every kind in every precision in `make test`, in one form or the other.
FORMS = ("gram", "correlation")
GATE = [
    (slow if (k + p + f) % 2 else pytest.param)(kind, precision, form)
    for k, kind in enumerate(KINDS)
    for p, precision in enumerate(("fp32", "bf16", "fp16"))
    for f, form in enumerate(FORMS)
]


@pytest.mark.parametrize(("kind", "precision", "form"), GATE)
def test_numerics_gate(kind, precision, form):
    n, d = (24, 70) if form == "gram" else (70, 24)
    assert_within_gate(lambda seed: draw(kind, n, d, seed), precision, form, "triton")


def test_strided_inputs():
    wide = torch.randn(2, 30, 100)
    z_a, z_b = wide[0, :, :40], wide[1, :, 20:60]
    assert_same_as_aten(z_a, z_b)
    assert_same_as_aten(wide[0].T[:, :20], wide[1].T[:, :20])


def assert_same_as_aten(z_a, z_b):
    results = []
    for backend in ("triton", "aten"):
        # Not copies: `gate.ours` takes them.
        a, b = z_a.detach().requires_grad_(), z_b.detach().requires_grad_()
        loss = barlow_twins_loss(a, b, backend=backend)
        results.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


# One view to four, N within a block of rows or beyond what one program owns (fp32: 256).
VIEWS = [
    *itertools.product([((3, 40), 2), ((70, 45), 3)], PRECISIONS),
    (((33, 300), 1), "bf16"),
    (((13, 24), 4), "tf32"),
    *all_slow([((33, 300), 2)], PRECISIONS),
    *all_slow([((260, 130), 3)], ["fp32", "bf16"]),
]


@pytest.mark.parametrize(("case", "precision"), VIEWS, ids=str)
def test_view_primitives(case, precision):
    shape, count = case
    views, statistics = contract.prepared_views(shape, precision, count)
    contract.check_view_moments(triton_kernels, views, precision)
    contract.check_view_gradients(triton_kernels, views, statistics, precision)


@pytest.mark.parametrize("dtype", [torch.float64, slow(torch.bfloat16), torch.float16], ids=str)
def test_views_of_every_input_type(dtype):
    views, statistics = contract.prepared_views((19, 45), "bf16", 3, dtype)
    contract.check_view_moments(triton_kernels, views, "bf16")
    contract.check_view_gradients(triton_kernels, views, statistics, "bf16")


@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        ("tiles", torch.float32),
        ("tma", torch.bfloat16),
        slow("tiles", torch.bfloat16),
        ("tma", torch.float16),
        slow("cublas", torch.bfloat16),
        ("cublas", torch.float32),
    ],
    ids=str,
)
def test_paths_of_view_gradients(path, dtype, monkeypatch):
    """Products in float32, which the pass over the views finishes."""
    use(monkeypatch, "gram_gradients", path, block_m=64, block_n=64)
    views, statistics = contract.prepared_views((70, 45), "bf16", 2, dtype)
    contract.check_view_gradients(triton_kernels, views, statistics, "bf16")


@pytest.mark.parametrize("most", [12, 2])
def test_moments_of_many_views(most, monkeypatch):
    """All views in one launch, or two groups at a time; in one part of the rows, or in several."""
    monkeypatch.setattr(configurations, "MOST_VIEWS", most)
    monkeypatch.setattr(configurations, "MOST_PART_ROWS", 64)
    views, _ = contract.prepared_views((75, 40), "fp32", 5)
    plan = configurations.view_moments(device_of(views[0]), 75, 40, torch.float32, 5)
    assert plan.parts > 1
    contract.check_view_moments(triton_kernels, views, "fp32")
    badly_scaled = tuple(x[:, :20] * 1e-3 + 1000 for x in views[:3])
    exact = aten.view_moments([x.double() for x in badly_scaled], "fp64")
    got = triton_kernels.view_moments(badly_scaled, "fp32")
    torch.testing.assert_close(got[0], exact[0], rtol=1e-9, atol=0)
    squares = [comoments.diagonal().T for comoments in (got[1], exact[1])]
    torch.testing.assert_close(*squares, rtol=1e-5, atol=0)


def test_links_in_any_order():
    """The views of an output's links in any order, one of them twice."""
    views, statistics = contract.prepared_views((9, 21), "fp32", 3)
    links = ((0, 2), (0, 1), (0, 2), (2, 0))
    weights = torch.randn(4, 21, generator=torch.Generator().manual_seed(0))
    inputs = ViewGradients(
        views, statistics, None, torch.empty(0, dtype=torch.float64), links, weights, None,
        torch.tensor(1.7), 21, contract.EPS, True, "fp32", (True, True, True),
    )  # fmt: skip
    got, want = (k.view_gradients(inputs) for k in (triton_kernels, aten))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_more_views_than_a_mask_has_bits():
    z = torch.zeros(2, 3)
    inputs = ViewGradients(
        (z,) * 64, torch.zeros(64, 3, 3), None, z[:0], (), z[:0], None, z, 3, 0.0, False, "fp32",
        (True,) * 64,
    )  # fmt: skip
    with pytest.raises(ValueError, match="take up to 63 views, got 64"):
        triton_kernels.view_gradients(inputs)


def test_nan_and_inf_are_not_hidden():
    for form, (n, d) in (("gram", (20, 50)), ("correlation", (50, 20))):
        for bad in (float("nan"), float("inf")):
            z_a, z_b = draw("random", n, d)
            z_a[3, 4] = bad
            z_a.requires_grad_()
            loss = barlow_twins_loss(z_a, z_b, form=form, backend="triton")
            assert loss.isnan()
            loss.backward()
            assert z_a.grad[:, 4].isnan().all()


@pytest.mark.parametrize("precision", [slow("bf16"), "fp16"])
def test_half_precision_matrices_do_not_overflow(precision):
    """One sample far from all others makes an element of K nearly N * D, beyond float16."""
    z = torch.randn(64, 1200, generator=torch.Generator().manual_seed(0))
    z[0] = 1000 + z[0]
    assert (
        aten.gram_pair(z, z, *aten.statistics(z, z, contract.EPS, "fp32"), "fp32")[0].max() > 65504
    )
    results = []
    for backend, operands in (("triton", precision), ("aten", precision), ("aten", "fp64")):
        dtype = torch.float64 if operands == "fp64" else torch.float32
        z_a = z.to(dtype, copy=True).requires_grad_()
        z_b = z_a.detach() + torch.linspace(0, 0.1, 64, dtype=dtype)[:, None]
        barlow_twins_loss(z_a, z_b, precision=operands, form="gram", backend=backend).backward()
        results.append(z_a.grad.double())
    mine, theirs, exact = results
    assert mine.isfinite().all()
    assert float((mine - exact).norm()) <= 2 * float((theirs - exact).norm())


@pytest.fixture
def in_order(monkeypatch):
    """Sets the seed of the order in which programs run; None for that of the grid."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder = type(interpreter.interpreter_builder)
    place, order = builder.set_grid_idx, {}

    def anywhere(self, x, y, z):
        grid = self.grid_dim
        if order["seed"] is not None:
            drawn = order.setdefault(grid, iter(shuffled(math.prod(grid), order["seed"])))
            x, y, z = (int(i) for i in np.unravel_index(next(drawn), grid))
        place(self, x, y, z)

    def shuffled(count, seed):
        while True:  # launch after launch
            yield from np.random.default_rng(seed).permutation(count)

    monkeypatch.setattr(builder, "set_grid_idx", anywhere)

    def choose(seed):
        order.clear()
        order["seed"] = seed

    choose(None)
    return choose


@pytest.fixture
def counted(monkeypatch):
    """The counters that launches were given, by their launch."""
    given = []

    def counters(device, count):
        given.append(torch.zeros(count, dtype=torch.int32))
        return given[-1]

    for name in ("statistics", "correlation", "gram_terms", "gram_gradients"):
        module = inspect.getmodule(getattr(triton_kernels, name))
        monkeypatch.setattr(module, "counters", counters)
    return given


# Moments in parts; C by full tiles, by tiles that are all split, and by both.
ARRIVALS = [
    ("statistics", (300, 70), None),
    ("column_moments", (300, 70), None),
    ("correlation", (140, 200), (True, False)),
    ("correlation", (600, 40), (False, True)),
    ("correlation", (140, 260), (True, True)),
]


@pytest.mark.parametrize(("name", "shape", "tiles"), ARRIVALS, ids=str)
def test_programs_may_arrive_in_any_order(name, shape, tiles, in_order, counted, monkeypatch):
    """The last program finishes what all have made: all of it, to the bit, and once; it leaves the
    counters zero. Outputs are poisoned, so nothing is left to a program that did not run."""
    monkeypatch.setattr(configurations, "MOST_UNDIVIDED_ROWS", 8)
    monkeypatch.setattr(configurations, "MOST_PART_ROWS", 64)
    case = contract.prepared(shape, "bf16")
    z = case.z_a, case.z_b
    if tiles:
        plan = configurations.correlation(device_of(z[0]), *shape, torch.float32, "bf16")
        assert (plan.full_tiles > 0, plan.split_tiles > 0) == tiles
        run = functools.partial(triton_kernels.correlation, *z, case.statistics, "bf16")
    elif name == "statistics":
        run = functools.partial(triton_kernels.statistics, *z, contract.EPS, "bf16")
    else:
        run = lambda: [triton_kernels.column_moments(*z, "bf16")]  # noqa: E731
    want = run()
    assert not any(x.isnan().any() for x in want[1 if tiles else 0 :])
    for seed in range(10):
        in_order(seed)
        got = run()
        for x, y in zip(got, want, strict=True):
            assert torch.equal(x.nan_to_num(nan=7.0), y.nan_to_num(nan=7.0))
    assert counted
    assert not any(each.any() for each in counted)


@pytest.mark.parametrize(
    ("form", "shape", "path"),
    [
        ("gram", (40, 90), "tma"),
        ("gram", (130, 304), "tma"),
        ("gram", (130, 90), "fused"),
        ("correlation", (90, 40), None),
    ],
    ids=str,
)
def test_equal_runs_give_equal_bits_in_any_order_of_the_programs(
    form, shape, path, in_order, counted, monkeypatch
):
    """Whichever program makes the inner product of a tile, the terms, and takes the projection out
    of a stripe of columns."""
    if path:
        use(monkeypatch, "gram_gradients", path, block_m=64, block_n=64)
    if path == "fused":
        use(monkeypatch, "gram", path, block_m=64, block_n=64)
        device = device_of(torch.empty(1))
        plan = configurations.gram(device, *shape, torch.bfloat16, "bf16")
        assert plan.full_tiles
        assert plan.split_tiles
    z = [x.bfloat16() for x in draw("correlated", *shape)]
    first = None
    for seed in range(8):
        in_order(seed)
        again = ours(*z, backend="triton", precision="bf16", form=form)
        first = first or again
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert counted
    assert not any(each.any() for each in counted)


# ---- views: few and small ones; a device has the whole contract (test_gpu_photometric.py) -------

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "size", "channels", "dtype"),
    [
        (8, (1, 1), 3, torch.float32),
        (8, (7, 5), 3, torch.bfloat16),
        (8, (7, 5), 1, torch.float16),
        (3, (33, 31), 3, torch.float32),
    ],
    ids=str,
)
def test_photometric(count, size, channels, dtype):
    images = views.crops(count, size, channels)
    parameters = views.drawn(count, size)
    flipped = views.check(triton_kernels, images, parameters, CPU, dtype)
    assert flipped <= 2


@pytest.mark.parametrize("check", ["all orders of the jitter", "an empty batch"])
def test_views(check):
    views.BY_CHANNELS[check](triton_kernels, 3, CPU)


def test_photometric_of_several_tiles():
    """More pixels than one program takes, of the sums before a contrast too."""
    size = (37, 70)
    parameters = views.drawn(2, size, seed=1)
    parameters[:, Parameter.ORDER] = torch.tensor((22.0, 5.0))
    parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((0.0, 1.2))
    parameters[:, Parameter.GRAY] = 0
    images = views.crops(2, size, 3)
    assert views.check(triton_kernels, images, parameters, CPU) <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (2, 2), (17, 3)], ids=str)
def test_photometric_blurs_larger_than_the_image(size):
    parameters = views.plain(3)
    parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((1e-30, 1.9, 8))
    images = views.crops(3, size, 1)
    views.check(triton_kernels, images, parameters, CPU)


def test_photometric_divides_bytes_as_plain_torch():
    """To the bit: thresholds of solarizing are compared with them."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    arguments = (images, views.plain(1), torch.zeros(1), torch.ones(1))
    got = triton_kernels.photometric(*arguments, torch.float32)
    assert torch.equal(got, aten.photometric(*arguments, torch.float32))
    levels = torch.tensor((0, 1, 77, 128, 254, 255, 255.5))
    parameters = views.plain(len(levels))
    parameters[:, Parameter.SOLARIZE] = levels
    images = images.expand(len(levels), -1, -1, -1)
    assert views.check(triton_kernels, images, parameters, CPU) == 0


def test_photometric_bits_depend_on_the_image_alone():
    size = (13, 45)
    images = views.crops(4, size, 3)
    parameters = views.drawn(4, size)
    parameters[:, Parameter.ORDER] = torch.tensor((-1.0, 3.0, 9.0, 20.0))
    parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((0.0, 0.8, 0.0, 0.4))
    whole = views.photometric(triton_kernels, images, parameters, CPU)
    for rows in (slice(2, 4), slice(1, 2)):
        some = views.photometric(triton_kernels, images[rows], parameters[rows], CPU)
        assert torch.equal(some, whole[rows])


def test_photometric_of_any_layout_and_type():
    size = (6, 5)
    images = views.crops(2, size, 3)
    parameters = views.drawn(2, size)
    statistics = views.statistics(3)
    parameters[:, Parameter.BLUR_SIGMA] = torch.tensor((0.0, 0.6))
    want = triton_kernels.photometric(images, parameters, *statistics, torch.float32)
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wider = torch.cat((parameters, parameters), 1)[:, : parameters.shape[1]]
    wide = (x.double() for x in (wider, *statistics))
    assert torch.equal(triton_kernels.photometric(planar, *wide, torch.float32), want)


def test_photometric_parameters_that_nobody_can_check():
    """On a device values are not looked at: out of range they are the nearest that is, and what is
    not a number stays in its own image."""
    images = views.crops(4, (6, 9), 3)
    parameters = views.plain(4)
    parameters[1:3, Parameter.ORDER] = torch.tensor((float("nan"), 99.0))
    parameters[2, Parameter.BRIGHTNESS] = 0.5
    parameters[2, Parameter.BLUR_SIGMA] = 20
    parameters[3, Parameter.BLUR_SIGMA] = float("nan")
    valid = parameters.clone()
    valid[1:3, Parameter.ORDER] = torch.tensor((-1.0, 23.0))
    valid[2:4, Parameter.BLUR_SIGMA] = torch.tensor((8.0, 0.0))
    got = views.photometric(triton_kernels, images, parameters, CPU)
    want = views.photometric(triton_kernels, images, valid, CPU)
    assert torch.equal(got, want)
    parameters[3, Parameter.ORDER] = 0
    parameters[3, Parameter.SATURATION] = float("nan")
    got = views.photometric(triton_kernels, images, parameters, CPU)
    assert torch.equal(got[:3], want[:3])


def test_a_build_for_the_hub_has_these_kernels(tmp_path):
    kernels = pytest.importorskip("kernels", reason="Hugging Face's `kernels` is not installed")
    build = Path(__file__).resolve().parents[2] / "kernels" / "hub" / "build.py"
    runpy.run_path(str(build))["build"](tmp_path)
    hub = kernels.get_local_kernel(tmp_path)
    z_a, z_b = draw("random", 9, 20)
    got, want = (f(z_a, z_b, backend="triton") for f in (hub.barlow_twins_loss, barlow_twins_loss))
    assert torch.equal(got, want)


def test_photometric_arguments_that_do_not_fit_are_refused():
    views.check_refusals(triton_kernels, "cpu")
    arguments = views.plain(1), *views.statistics(3)
    large = torch.empty(1, 1 << 15, 1 << 15, 3, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="take images of up to"):
        triton_kernels.photometric(large, *(x.to("meta") for x in arguments), torch.float32)
