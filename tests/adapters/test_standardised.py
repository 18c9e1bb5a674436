"""The loss of embeddings standardised in other ways, in both forms, on every kernel set."""

from __future__ import annotations

import itertools

import gate
import pytest
import torch
from embeddings import draw
from formulas import outcome, penalty, rms_errors
from torch import Tensor
from torch.library import opcheck

from barlow_fast.adapters import standardised
from barlow_fast.adapters.standardised import deviation_loss, shared_norm_loss

# ddof, eps inside and outside the root
SHARED = (None, 1e-3, None)  # one mean and variance for both views
NORMS = ((1, 0.0, 0.0), (1, 1e-3, 0.0), (0, 1e-5, 0.0), (1, 0.0, 0.3), (1, 0.2, 0.3), (0, 0.0, 0.1))
FORMS = ("gram", "correlation")


def formula(norm, lambd: float, divisor: float | None, target: float):
    def standardise(z: Tensor) -> Tensor:
        if norm is None:
            return z
        ddof, inside, outside = norm
        return (z - z.mean(0)) / ((z.var(0, correction=ddof) + inside).sqrt() + outside)

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        if norm is SHARED:
            both = torch.cat((z_a, z_b))
            u = (both - both.mean(0)) / (both.var(0, correction=0) + norm[1]).sqrt()
            u_a, u_b = u.chunk(2)
        else:
            u_a, u_b = standardise(z_a), standardise(z_b)
        return penalty(u_a.T @ u_b / (divisor or z_a.shape[0]), lambd, target)

    return loss


def ours(norm, lambd: float, divisor: float | None, target: float, **options: str):
    if norm is SHARED:
        return lambda a, b: shared_norm_loss(a, b, lambd, eps=norm[1], **options)
    options = {"divisor": divisor, "off_diagonal_target": target, **options}
    if norm is None:
        return lambda a, b: standardised.standardised_loss(a, b, lambd, **options)
    ddof, inside, outside = norm
    options |= {"ddof": ddof, "eps_inside": inside, "eps_outside": outside}
    return lambda a, b: deviation_loss(a, b, lambd, **options)


@pytest.mark.parametrize("norm", [None, SHARED, *NORMS])
@pytest.mark.parametrize("form", FORMS)
def test_float64_is_the_formula(form, norm, backend, poisoned):
    for shape in ((2, 1), (2, 3), (13, 7), (7, 13), (33, 65), (65, 33)):
        z_a, z_b = draw("correlated", *shape, 1, torch.float64)
        options = itertools.product((None, 10.0), (0.0, -1.0, 0.4))
        for lambd, each in itertools.product(
            (0.0, 0.3), [(None, 0.0)] if norm is SHARED else options
        ):
            exact = outcome(formula(norm, lambd, *each), z_a + 0.2, z_b)
            loss = ours(norm, lambd, *each, form=form, backend=backend)
            for x, y in zip(outcome(loss, z_a + 0.2, z_b), exact, strict=True):
                assert float((x - y).norm()) <= 1e-11 * (1 + float(y.norm()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [None, (1, 0.0, 0.0), (1, 0.0, 0.1)])
def test_precisions_lose_no_more_than_plain_torch(norm, form, precision, backend):
    """rms error over seeds at most twice that of the formula with operands rounded alike."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def plain(z_a: Tensor, z_b: Tensor) -> Tensor:
        u_a, u_b = z_a, z_b
        if norm is not None:
            u_a, u_b = ((z - z.mean(0)) / (z.std(0) + norm[2]) for z in (z_a, z_b))
        u_a, u_b = u_a.to(dtype), u_b.to(dtype)
        if form == "correlation":
            c = (u_a.float().T @ u_b.float()).to(dtype).float() / len(z_a)
            return penalty(c, 0.3)
        diagonal = (u_a.float() * u_b.float()).mean(0)
        k_a, k_b = ((u.float() @ u.float().T).to(dtype).float() for u in (u_a, u_b))
        rest = (k_a * k_b).sum() / len(z_a) ** 2 - diagonal.square().sum()
        return (diagonal - 1).square().sum() + 0.3 * rest

    loss = ours(norm, 0.3, None, 0.0, form=form, backend=backend, precision=precision)
    for shape in ((40, 120), (24, 300)) if form == "gram" else ((120, 40), (40, 40)):
        draws = [draw("correlated", *shape, seed) for seed in range(5)]
        mine, theirs = rms_errors(draws, formula(norm, 0.3, None, 0.0), loss, plain)
        assert bool((mine <= 2 * theirs + gate.FLOOR[precision]).all()), (shape, mine, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 6, 4, 2, torch.float64))
    norms = ((None, 0.0), (SHARED, 0.0), ((1, 0.0, 0.1), -1.0), ((1, 0.0, 0.0), -1.0))
    for norm, target in norms:
        loss = ours(norm, 0.3, 5.0, target, form=form)
        assert torch.autograd.gradcheck(loss, (z_a, z_b))


@pytest.mark.parametrize("form", FORMS)
def test_operator_is_well_behaved(form):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 6, 4, 2))
    for ddof, outside, target in ((1, 0.0, 0.0), (1, 0.1, -1.0), (-1, 0.0, 0.0), (-2, 0.0, 0.0)):
        arguments = (0.3, target, 0.0, ddof, 0.0, outside, False, form, "fp32", "auto")
        assert set(opcheck(standardised.deviation.forward, (z_a, z_b, *arguments)).values()) == {
            "SUCCESS"
        }


def test_second_derivatives_are_refused():
    z_a, z_b = (z.requires_grad_() for z in draw("random", 6, 4, 2))
    (gradient,) = torch.autograd.grad(deviation_loss(z_a, z_b, 0.1), z_a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice"):
        gradient.sum().backward()


def test_leading_sizes_and_scale():
    z_a, z_b = draw("random", 12, 5, 3, torch.float64)
    shaped = z_a.view(3, 4, 5), z_b.view(3, 4, 5)
    assert torch.equal(deviation_loss(z_a, z_b, 0.1), deviation_loss(*shaped, 0.1))
    flat = 0.5 * shared_norm_loss(z_a, z_b, 0.1)
    assert torch.equal(flat, shared_norm_loss(*shaped, 0.1, scale=0.5))
    with pytest.raises(TypeError, match=r"scale must be a Python number, got str"):
        shared_norm_loss(z_a, z_b, 0.1, scale="big")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"ddof": 2}, ValueError, r"ddof must be 0 or 1, got 2"),
        ({"dead_features": "one"}, ValueError, r"dead_features must be one of .*got 'one'"),
        ({"eps_inside": -1.0}, ValueError, r"eps_inside must be from 0 to 1e\+100, got -1"),
        ({"eps_outside": float("nan")}, ValueError, r"eps_outside must be finite, got nan"),
        ({"divisor": -3}, ValueError, r"divisor must be from 0 to 1e\+100, got -3"),
        ({"form": "fft"}, ValueError, r"form must be one of"),
        ({"backend": "tpu"}, ValueError, r"backend must be one of"),
    ],
)
def test_options_are_refused_in_words(options, kind, text):
    z_a, z_b = draw("random", 6, 4)
    with pytest.raises(kind, match=text):
        deviation_loss(z_a, z_b, 0.1, **options)
    with pytest.raises(ValueError, match=r"at least 2 samples"):
        deviation_loss(z_a[:1], z_b[:1], 0.1)


def test_one_sample_that_is_standardised_already():
    z_a, z_b = draw("random", 1, 4, 0, torch.float64)
    exact = outcome(formula(None, 0.3, None, 0.0), z_a, z_b)
    for x, y in zip(outcome(ours(None, 0.3, None, 0.0), z_a, z_b), exact, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [None, SHARED, (1, 0.0, 0.0), (1, 0.0, 0.1)])
def test_on_a_device(norm, form):
    """The Triton set, with the centres that it takes from the sums, against float64."""
    for shape in ((64, 300), (300, 64), (700, 900)):
        z_a, z_b = draw("correlated", *shape, 1)
        for target in (0.0, -1.0) if norm is not SHARED else (0.0,):
            exact = outcome(formula(norm, 0.3, None, target), z_a.double(), z_b.double())
            for precision, bound in (("fp32", 2e-5), ("bf16", 0.05), ("fp16", 0.01)):
                loss = ours(norm, 0.3, None, target, form=form, precision=precision)
                for x, y in zip(outcome(loss, z_a.cuda(), z_b.cuda()), exact, strict=True):
                    assert gate.relative_error(x.cpu(), y) <= bound, (shape, target, precision)
