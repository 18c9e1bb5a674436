"""The numerics gate over kinds of input, shapes, forms, precisions and kernel sets."""

from __future__ import annotations

import contract
import pytest
import torch
from embeddings import AWKWARD_SHAPES, KINDS, draw
from gate import assert_within_gate, ours, relative_error, truth

from barlow_fast import barlow_twins_loss
from barlow_fast.adapters.standardised import deviation_loss, shared_norm_loss
from barlow_fast.kernels import cpu

# Each form on its own side of N = D, and a little beyond.
GATE_SHAPES = {
    "gram": ((64, 512), (37, 211), (96, 96)),
    "correlation": ((512, 64), (211, 37), (96, 96)),
}
every_gate_shape = pytest.mark.parametrize(
    ("form", "shape"),
    [(form, shape) for form, shapes in GATE_SHAPES.items() for shape in shapes],
    ids=str,
)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
@every_gate_shape
def test_gate(kind, form, shape, precision, backend):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    assert_within_gate(lambda s: draw(kind, *shape, s, dtype), precision, form, backend)


tiled = pytest.mark.parametrize("instruction_set", [cpu.EMULATED, "amx_bf16"])


@tiled
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_gate_of_matrix_tiles(kind, precision, form, instruction_set):
    with contract.using(instruction_set):
        for n, d in GATE_SHAPES[form]:
            assert_within_gate(lambda s: draw(kind, n, d, s), precision, form, "cpu")  # noqa: B023


@tiled
def test_two_pieces_keep_sixteen_bits(form, instruction_set):
    z_a, z_b = draw("random", 96, 160, seed=3)
    exact = truth(z_a, z_b)
    with contract.using(instruction_set):
        got = ours(z_a, z_b, form=form, precision="tf32", backend="cpu")
    for x, y in zip(got, exact, strict=True):
        assert relative_error(x, y) < 2.0**-16


@tiled
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_runs_of_matrix_tiles_are_bitwise_equal(precision, threads, form, instruction_set):
    z_a, z_b = draw("random", 150, 333, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with contract.using(instruction_set):
            first, *more = (
                ours(z_a, z_b, form=form, precision=precision, backend="cpu") for _ in range(4)
            )
    finally:
        torch.set_num_threads(before)
    for other in more:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "correlated", "constant_columns"])
@every_gate_shape
def test_gate_with_half_precision_inputs(kind, form, shape, dtype, backend):
    precision = "bf16" if dtype == torch.bfloat16 else "fp16"
    assert_within_gate(lambda s: draw(kind, *shape, s, dtype), precision, form, backend)


@pytest.mark.parametrize("shape", AWKWARD_SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.usefixtures("poisoned")
def test_awkward_shapes_in_float64(shape, backend):
    """Exact to float64 rounding at every shape, in both forms; N = 2 is left out of the gradients,
    which vanish."""
    z_a, z_b = draw("random", *shape, dtype=torch.float64)
    z_b = z_b + z_a
    exact = truth(z_a, z_b)
    for form in ("gram", "correlation"):
        got = ours(z_a, z_b, form=form, backend=backend)
        assert relative_error(got.loss, exact.loss) < 1e-12
        size = max(float(exact.grad_a.norm()), float(exact.loss) * 1e-3)
        for grad, want in zip(got[3:], exact[3:], strict=True):
            assert float((grad - want).norm()) < 1e-10 * size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_forms_agree(precision, backend):
    z_a, z_b = draw("correlated", 128, 160, seed=3)
    options = {"precision": precision, "backend": backend}
    forms = (ours(z_a, z_b, form=form, **options) for form in ("gram", "correlation"))
    bound = 1e-5 if precision == "fp32" else 2e-2
    for x, y in zip(*forms, strict=True):
        assert relative_error(x, y.double()) < bound


def test_runs_are_bitwise_equal(form, backend):
    z_a, z_b = draw("random", 150, 333, seed=1)
    first = ours(z_a, z_b, form=form, backend=backend)
    for _ in range(5):
        for x, y in zip(first, ours(z_a, z_b, form=form, backend=backend), strict=True):
            assert torch.equal(x, y)


def test_gradcheck(form, backend):
    for n, d in ((5, 9), (9, 5)):
        z_a, z_b = (z.requires_grad_() for z in draw("random", n, d, seed=n, dtype=torch.float64))
        assert torch.autograd.gradcheck(
            lambda a, b: barlow_twins_loss(a, b, 0.3, scale=2.0, form=form, backend=backend),
            (z_a, z_b),
        )


def test_constant_columns_have_zero_correlation_and_finite_gradient(form, backend):
    z_a, z_b = draw("random", 40, 30, seed=2)
    z_a[:, 4] = 7.0
    loss, terms = barlow_twins_loss(
        z_a.requires_grad_(), z_b, 0.0, form=form, backend=backend, return_terms=True
    )
    exact = truth(z_a, z_b)
    assert relative_error(terms.on_diagonal, exact.on_diagonal) < 1e-6
    loss.backward()
    assert z_a.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_never_give_a_finite_number(bad, form, dtype, backend):
    z_a, z_b = draw("random", 20, 50, seed=4, dtype=dtype)
    z_a[3, 17] = bad
    loss, terms = barlow_twins_loss(z_a, z_b, form=form, backend=backend, return_terms=True)
    assert loss.isnan()
    assert terms.on_diagonal.isnan()
    assert terms.off_diagonal.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_very_large_numbers_give_the_loss_or_nan(form, dtype, backend):
    """Squares of float32 from 1e19 on are infinite; of float64 from 1e154 on."""
    z_a, z_b = draw("random", 40, 24, seed=5, dtype=dtype)
    z_b = z_b + z_a
    exponents = range(50, 1024, 25) if dtype == torch.float64 else range(40, 126, 5)
    right = {"loss": 0, "nan": 0}
    for exponent in exponents:
        large = [(z.double() * 2.0**exponent).to(dtype) for z in (z_a, z_b)]
        a, b = (z.clone().requires_grad_() for z in large)
        loss, terms = barlow_twins_loss(a, b, form=form, backend=backend, return_terms=True)
        loss.backward()
        found = (loss.detach(), terms.on_diagonal, terms.off_diagonal)
        if loss.isnan():
            right["nan"] += 1
            assert all(x.isnan() for x in found)
            assert a.grad.isnan().any()
        else:
            right["loss"] += 1
            exact = truth(z_a, z_b)
            for mine, name in zip(found, ("loss", "on_diagonal", "off_diagonal"), strict=True):
                assert relative_error(mine, getattr(exact, name)) < 2e-2, (exponent, name)
            assert a.grad.isfinite().all()
    assert min(right.values()) > 0


@pytest.mark.parametrize("scale", [1e18, 1e19, 1e22, 1e30, 1e37, 3e38])
def test_very_large_numbers_in_other_norms(scale, backend):
    generator = torch.Generator().manual_seed(0)
    z_a = torch.rand(40, 24, generator=generator) * scale
    z_b = (z_a + scale * torch.rand(40, 24, generator=generator)) / 2
    norms = {
        "deviation": lambda a, b: deviation_loss(a, b, 0.01, backend=backend),
        "eps_outside": lambda a, b: deviation_loss(a, b, 0.01, eps_outside=1e-5, backend=backend),
        "shared": lambda a, b: shared_norm_loss(a, b, 0.01, backend=backend),
    }
    for name, norm in norms.items():
        exact, found = norm(z_a.double() / scale, z_b.double() / scale), norm(z_a, z_b)
        assert found.isnan() or relative_error(found, exact) < 1e-3, (name, found, exact)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_double_inputs_in_lesser_precision(precision, backend):
    z_a, z_b = draw("random", 48, 96, dtype=torch.float64)
    got = ours(z_a, z_b, precision=precision, backend=backend)
    assert got.loss.dtype == torch.float32
    assert got.grad_a.dtype == torch.float64
    assert relative_error(got.grad_a, truth(z_a, z_b).grad_a) < {"fp32": 1e-5}.get(precision, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_inputs_in_double_precision(dtype, backend):
    z_a, z_b = draw("random", 48, 96, dtype=dtype)
    got = ours(z_a, z_b, precision="fp64", backend=backend)
    assert got.loss.dtype == torch.float64
    assert relative_error(got.loss, truth(z_a, z_b).loss) < 1e-13
    assert got.grad_a.dtype == dtype
    assert relative_error(got.grad_a, truth(z_a, z_b).grad_a) < torch.finfo(dtype).eps


def test_half_products_are_accumulated_in_float32(backend):
    """K_nn is about D: in fp16 it would overflow beyond 65504, and in bf16 whole units would be
    lost."""
    z_a, z_b = draw("random", 4, 70000, seed=5)
    # A D x D truth would take 39 GB.
    exact = ours(z_a.double(), z_b.double(), form="gram", backend="aten")
    for precision in ("fp16", "bf16"):
        got = ours(z_a, z_b, precision=precision, backend=backend)
        assert relative_error(got.loss, exact.loss) < 1e-4


def test_gram_centring_keeps_bf16_accurate(backend):
    """For D >> N the diagonal of K dwarfs the rest, and centring keeps it out of the product.

    With it the Gram form loses less than the D x D form does (0.4 of it here); without it, more
    (1.4 times), four times what it loses now.
    """
    z_a, z_b = draw("random", 64, 2048, seed=7)
    z_b = 0.7 * z_a + 0.7 * z_b

    def gradient(x, y, **options):
        x = x.clone().requires_grad_()
        loss = barlow_twins_loss(x, y, 1.0, backend=backend, **options)
        return torch.autograd.grad(loss, x)[0]

    exact = gradient(z_a.double(), z_b.double())
    gram, correlation = (
        relative_error(gradient(z_a, z_b, form=form, precision="bf16"), exact)
        for form in ("gram", "correlation")
    )
    assert gram < 0.7 * correlation


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gradients_do_not_overflow(backend, precision):
    """Equal samples make every element of K as large as D, beyond float16's largest number."""
    generator = torch.Generator().manual_seed(3)
    z = torch.tensor([[3.0], [3.0], [-3.0], [-3.0]]).expand(4, 140_000)
    z = z + 0.1 * torch.randn(4, 140_000, generator=generator)
    z_a, z_b = z.requires_grad_(), (z + 0.1).detach()
    loss = barlow_twins_loss(z_a, z_b, precision=precision, form="gram", backend=backend)
    loss.backward()
    wanted = z.detach().double().requires_grad_()
    barlow_twins_loss(wanted, z_b.double(), form="gram", backend="aten").backward()
    error = (z_a.grad.double() - wanted.grad).norm() / wanted.grad.norm()
    assert float(error) < 0.2  # rounding to half precision; NaN and infinity fail
