"""The losses of any number of views against their definitions in float64: values, terms and
gradients, in both forms and on every kernel set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import reference_losses
import torch
from torch import Tensor

import barlow_fast
from barlow_fast import (
    barlow_twins_loss,
    frossl_loss,
    mixed_barlow_twins_loss,
    vicreg_loss,
)
from barlow_fast.kernels import why_unusable

ALPHA = 0.3


class Loss(NamedTuple):
    """A loss and its definition: (views, permutation, options) to (loss, terms), and to the loss
    followed by its terms."""

    ours: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    definition: Callable[..., tuple[Tensor, ...]]
    counts: tuple[int, ...]  # of views


def barlow_twins(views, permutation, **options):
    return barlow_twins_loss(list(views), lambd=0.02, return_terms=True, **options)


def with_target(views, permutation, **options):
    return barlow_twins_loss(
        list(views), lambd=0.02, off_diagonal_target=-1.0, return_terms=True, **options
    )


def vicreg(views, permutation, **options):
    return vicreg_loss(list(views), None, 20.0, 10.0, 3.0, return_terms=True, **options)


def frossl(views, permutation, **options):
    return frossl_loss(list(views), invariance=1.4, return_terms=True, **options)


def mixed(views, permutation, **options):
    return mixed_barlow_twins_loss(
        *views, permutation, ALPHA, 0.02, mixing=1.7, return_terms=True, **options
    )


LOSSES = {
    "barlow twins": Loss(
        barlow_twins, lambda v, p: reference_losses.barlow_twins(v, 0.02), (2, 3, 5)
    ),
    "target": Loss(
        with_target, lambda v, p: reference_losses.barlow_twins(v, 0.02, target=-1.0), (2, 4)
    ),
    "vicreg": Loss(vicreg, lambda v, p: reference_losses.vicreg(v, (20.0, 10.0, 3.0)), (1, 2, 4)),
    "frossl": Loss(frossl, lambda v, p: reference_losses.frossl(v, 1.4), (2, 3)),
    "mixed": Loss(
        mixed, lambda v, p: reference_losses.mixed_barlow_twins(v, p, (0.02, 1.7, ALPHA)), (3,)
    ),
}
CASES = [(name, count) for name, loss in LOSSES.items() for count in loss.counts]
every_case = pytest.mark.parametrize(("name", "count"), CASES)
every_loss = pytest.mark.parametrize("name", LOSSES)
every_form = pytest.mark.parametrize("form", ["gram", "correlation"])
BACKENDS = [
    pytest.param(
        backend,
        marks=pytest.mark.skipif(
            why_unusable(backend, torch.device("cpu")) is not None, reason=f"no {backend} here"
        ),
    )
    for backend in ("aten", "cpu")
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def drawn(
    count: int, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """(Correlated views with means and scales of their own, a permutation)."""
    generator = torch.Generator().manual_seed(seed + 31 * n + d)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    common = random(n, d)
    scales, means = 0.3 + random(count, 1, d).abs(), 2 * random(count, 1, d)
    views = (common + random(count, n, d)) * scales + means
    permutation = torch.randperm(n, generator=generator)
    return [z.to(dtype).requires_grad_() for z in views], permutation


def assert_close(got: Tensor, want: Tensor, bound: float, size: float = 0.0) -> None:
    error = float((got.detach().double() - want.detach().double()).norm())
    assert error <= bound * max(float(want.detach().double().norm()), size)


def compare(
    loss: Loss, views: Sequence[Tensor], permutation: Tensor, bound: float, **options: Any
) -> None:
    value, terms = loss.ours(views, permutation, **options)
    want, *want_terms = loss.definition([z.double() for z in views], permutation)
    assert_close(value, want, bound, 1.0)
    for term, want_term in zip(terms, want_terms, strict=False):
        assert_close(term, want_term, bound, 1.0)
        assert not term.requires_grad
    grads = torch.autograd.grad(3 * value, views)
    want_grads = torch.autograd.grad(3 * want, views)
    # Where the gradient nearly vanishes (N = 2), rounding is that of its parts.
    typical = max(float(g.double().norm()) for g in want_grads)
    for z, g, want_g in zip(views, grads, want_grads, strict=True):
        assert g.dtype == z.dtype
        assert_close(g, want_g, bound, max(typical, 1.0 / z.shape[0]))


@every_backend
@every_form
@pytest.mark.parametrize(
    "shape", [(2, 7), (7, 1), (3, 3), (8, 30), (30, 8), (33, 33), (70, 130)], ids=str
)
@every_case
def test_equals_its_definition(name, count, shape, form, backend):
    views, permutation = drawn(count, *shape)
    compare(LOSSES[name], views, permutation, 1e-12, form=form, backend=backend)


@every_backend
@pytest.mark.parametrize("seed", range(3))
@every_loss
def test_seeds_and_automatic_form(name, seed, backend):
    count = LOSSES[name].counts[-1]
    for shape in ((12, 9), (9, 12)):
        views, permutation = drawn(count, *shape, seed=100 + seed)
        compare(LOSSES[name], views, permutation, 1e-12, backend=backend)


@every_backend
@every_form
@every_loss
def test_dead_columns(name, form, backend):
    views, permutation = drawn(LOSSES[name].counts[-1], 9, 12)
    for i, z in enumerate(views):
        with torch.no_grad():
            z[:, i] = 0.0 if name == "frossl" else 3.0
            z[:, 5] = 0.0
    value, _ = LOSSES[name].ours(views, permutation, form=form, backend=backend)
    want, *_ = LOSSES[name].definition(views, permutation)
    assert_close(value, want, 1e-12)
    grads = torch.autograd.grad(value, views)
    # A column of zeros has a gradient of 1e12 in FroSSL, of a norm that is not differentiable.
    live = [column for column in range(12) if column != 5 and column >= len(views)]
    for g, want_g in zip(grads, torch.autograd.grad(want, views), strict=True):
        assert_close(g[:, live], want_g[:, live], 1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@every_case
@every_form
@every_backend
def test_values_that_are_not_finite_reach_the_gradients(name, count, form, backend, value):
    """As in plain torch, so that GradScaler and checks for divergence see them."""
    views, permutation = drawn(count, 9, 6, dtype=torch.float32)
    with torch.no_grad():
        views[0][1, 2] = value
    loss, _ = LOSSES[name].ours(views, permutation, form=form, backend=backend)
    loss.backward()
    if value != 1e30:  # its square overflows in float32; where sums are float64 it may not
        assert not loss.isfinite()
        assert not views[0].grad[:, 2].isfinite().any()


@every_form
@every_loss
def test_one_view_without_gradient(name, form):
    loss = LOSSES[name]
    views, permutation = drawn(loss.counts[-1], 6, 10)
    for fixed in range(len(views)):
        some = [z.detach() if i == fixed else z for i, z in enumerate(views)]
        value, _ = loss.ours(some, permutation, form=form, backend="aten")
        wanted = [z for i, z in enumerate(some) if i != fixed]
        want, *_ = loss.definition(some, permutation)
        for g, want_g in zip(
            torch.autograd.grad(value, wanted), torch.autograd.grad(want, wanted), strict=True
        ):
            assert_close(g, want_g, 1e-12)


@pytest.mark.large
@every_form
@every_loss
def test_gradcheck(name, form):
    views, permutation = drawn(LOSSES[name].counts[-1], 5, 4)

    def function(*inputs):
        return LOSSES[name].ours(inputs, permutation, form=form, backend="aten")[0]

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


@every_backend
@every_loss
def test_two_runs_have_the_same_bits(name, backend):
    views, permutation = drawn(LOSSES[name].counts[-1], 70, 300, dtype=torch.float32)
    runs = []
    for _ in range(2):
        value, _ = LOSSES[name].ours(views, permutation, backend=backend)
        runs.append((value, *torch.autograd.grad(value, views)))
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@every_loss
def test_double_backward_is_refused(name):
    views, permutation = drawn(LOSSES[name].counts[-1], 5, 4)
    value, _ = LOSSES[name].ours(views, permutation, backend="aten")
    (g, *_) = torch.autograd.grad(value, views, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(g.sum(), views)


@every_loss
def test_views_changed_in_place_are_noticed(name):
    views, permutation = drawn(LOSSES[name].counts[-1], 5, 4)
    inputs = [z * 1.0 for z in views]
    value, _ = LOSSES[name].ours(inputs, permutation, backend="aten")
    inputs[0].add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        value.backward()


def test_two_views_are_the_pair_loss_to_the_bit():
    views, _ = drawn(2, 40, 90, dtype=torch.float32)
    want = barlow_twins_loss(*views, 0.02)
    for given in (views, tuple(views), torch.stack(views)):
        got = barlow_twins_loss(given, lambd=0.02)
        assert torch.equal(got, want)
    wanted = torch.autograd.grad(want, views)
    got = torch.autograd.grad(barlow_twins_loss(views, lambd=0.02), views)
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


def test_two_views_by_name_and_position():
    views, _ = drawn(2, 8, 5)
    assert torch.equal(vicreg_loss(*views), vicreg_loss(views))
    assert torch.equal(frossl_loss(*views), frossl_loss(torch.stack(views)))


@every_loss
def test_modules(name):
    loss = LOSSES[name]
    views, permutation = drawn(loss.counts[-1], 8, 5)
    module, arguments = {
        "barlow twins": (barlow_fast.BarlowTwinsLoss(0.02), (views,)),
        "target": (barlow_fast.BarlowTwinsLoss(0.02, off_diagonal_target=-1.0), (views,)),
        "vicreg": (barlow_fast.VICRegLoss(20.0, 10.0, 3.0), (views,)),
        "frossl": (barlow_fast.FroSSLLoss(1.4), (views,)),
        "mixed": (barlow_fast.MixedBarlowTwinsLoss(0.02, 1.7), (*views, permutation, ALPHA)),
    }[name]
    want, want_terms = loss.ours(views, permutation)
    got, terms = module(*arguments, return_terms=True)
    assert torch.equal(got, want)
    assert all(torch.equal(x, y) for x, y in zip(terms, want_terms, strict=True))
    assert torch.equal(module(*arguments), want)
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert "precision='auto'" in repr(module)


def test_terms_and_means():
    views, permutation = drawn(3, 8, 5)
    _, terms = vicreg_loss(views, return_terms=True)
    assert torch.equal(terms.covariance_mean, terms.covariance / 4)
    _, terms = mixed(views, permutation)
    assert torch.equal(terms.mixing_mean, terms.mixing / 50)
    assert torch.equal(terms.off_diagonal_mean, terms.off_diagonal / 20)


def test_nearly_equal_views_keep_their_invariance():
    """Not from co-moments, which would leave rounding alone."""
    views, _ = drawn(1, 64, 40, dtype=torch.float32)
    z = views[0].detach()
    moved = z + 1e-5 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    _, terms = vicreg_loss(z, moved, return_terms=True)
    want = (z.double() - moved.double()).square().mean()
    assert_close(terms.invariance, want, 1e-5)


@every_loss
def test_weights_may_be_tensors(name):
    views, permutation = drawn(LOSSES[name].counts[-1], 8, 5)
    number = torch.tensor(0.25)
    if name == "mixed":
        want = mixed_barlow_twins_loss(*views, permutation, 0.25, 0.02)
        assert torch.equal(mixed_barlow_twins_loss(*views, permutation, number, 0.02), want)
    elif name == "vicreg":
        assert torch.equal(vicreg_loss(views, None, number), vicreg_loss(views, None, 0.25))
    elif name == "frossl":
        got = frossl_loss(views, invariance=number)
        assert torch.equal(got, frossl_loss(views, invariance=0.25))
    else:
        got = barlow_twins_loss(views, lambd=number)
        assert torch.equal(got, barlow_twins_loss(views, lambd=0.25))


BAD = {
    "no views": (lambda z, p: barlow_twins_loss([]), ValueError, "at least 2 views, got 0"),
    "one view": (lambda z, p: frossl_loss(z[0]), ValueError, "at least 2 views, got 1"),
    "a number": (lambda z, p: vicreg_loss(3), TypeError, "sequence of tensors, got int"),
    "four sizes": (
        lambda z, p: frossl_loss(torch.zeros(2, 3, 4, 5)), ValueError, r"one \(V, N, D\) tensor"
    ),
    "shapes": (
        lambda z, p: vicreg_loss([z[0], z[1], z[2][:, 1:]]), ValueError,
        r"views\[0\] and views\[2\] must have the same shape",
    ),
    "no tensor": (lambda z, p: frossl_loss([z[0], None]), TypeError, r"views\[1\] must be a torch"),
    "integers": (lambda z, p: vicreg_loss(z[0].long()), TypeError, r"views\[0\] must be float64"),
    "one sample": (lambda z, p: vicreg_loss([x[:1] for x in z]), ValueError, "at least 2 samples"),
    "weight": (lambda z, p: vicreg_loss(z, None, "a lot"), TypeError, "invariance must be"),
    "gradient of a weight": (
        lambda z, p: frossl_loss(z, invariance=torch.ones(1, requires_grad=True)), TypeError,
        "invariance must be a number",
    ),
    "eps": (lambda z, p: vicreg_loss(z, eps=-1.0), ValueError, "eps must be from 0"),
    "gamma": (lambda z, p: vicreg_loss(z, gamma=-1.0), ValueError, "gamma must be from 0"),
    "form": (lambda z, p: frossl_loss(z, form="matrix"), ValueError, "form must be one of"),
    "target": (
        lambda z, p: barlow_twins_loss(z, off_diagonal_target=float("nan")), ValueError,
        "off_diagonal_target must be finite",
    ),
    "permutation": (
        lambda z, p: mixed_barlow_twins_loss(*z, p.float(), 0.5), TypeError,
        "permutation must be a torch.int64 tensor, got torch.float32",
    ),
    "length": (
        lambda z, p: mixed_barlow_twins_loss(*z, p[1:], 0.5), ValueError, r"must be \(6,\)"
    ),
    "repeated": (
        lambda z, p: mixed_barlow_twins_loss(*z, p * 0, 0.5), ValueError, "each of 0 ... 5 once"
    ),
    "alpha": (
        lambda z, p: mixed_barlow_twins_loss(*z, p, None), TypeError, "alpha must be"
    ),
    "beta": (
        lambda z, p: barlow_fast.mix_inputs(z[0], z[1], beta=0.0), ValueError, "more than 0"
    ),
    "inputs": (
        lambda z, p: barlow_fast.mix_inputs(z[0], z[1][1:]), ValueError, "the same shape"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, kind, words = BAD[what]
    views, permutation = drawn(3, 6, 4)
    with pytest.raises(kind, match=words):
        call(views, permutation)


def test_mix_inputs():
    x_a, x_b = torch.randn(2, 9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixtures = [
        barlow_fast.mix_inputs(x_a, x_b, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    (x, permutation, alpha), again = mixtures
    assert torch.equal(x, again[0])
    assert 0 < alpha < 1
    assert sorted(permutation.tolist()) == list(range(9))
    torch.testing.assert_close(x, alpha * x_a + (1 - alpha) * x_b[permutation])
    drawn_alphas = [
        barlow_fast.mix_inputs(x_a, x_b, beta=0.1, generator=torch.Generator().manual_seed(i))[2]
        for i in range(200)
    ]
    # Beta(0.1, 0.1) lies near 0 and 1: its variance is 0.208, that of a uniform number 0.083.
    assert torch.tensor(drawn_alphas).var() > 0.15
