"""Citizenship in torch: opcheck, torch.compile, export, fake tensors; the same bits on every
route."""

from __future__ import annotations

import pytest
import torch
from embeddings import draw
from torch._subclasses.fake_tensor import FakeTensorMode

from barlow_fast import BarlowTwinsLoss, barlow_twins_loss, ops


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck(form, precision, backend):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    z_a, z_b = (z.requires_grad_() for z in draw("random", 12, 17, dtype=dtype))
    options = (0.0051, 1e-5, form, precision, backend)
    torch.library.opcheck(ops.barlow_twins.forward, (z_a, z_b, *options))
    saved = ops.barlow_twins.forward(z_a.detach(), z_b.detach(), *options)[3:]
    grad = torch.ones((), dtype=dtype)
    for need in ((True, True), (True, False), (False, True)):
        arguments = (grad, z_a.detach(), z_b.detach(), *saved, *options, *need)
        torch.library.opcheck(ops.barlow_twins.backward, arguments)


def test_both_routes_give_the_same_bits(backend):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 33, 65))
    options = (0.0051, 1e-5, "auto", "fp32", backend)
    eager = ops.barlow_twins.eager(z_a, z_b, options[0], ops.Options(*options[1:]))[0]
    operator = ops.barlow_twins.forward(z_a, z_b, *options)[0]
    assert torch.equal(eager, operator)
    gradients = (torch.autograd.grad(loss, (z_a, z_b)) for loss in (eager, operator))
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


def test_operator_refuses_double_backward(backend):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 8, 9))
    loss = ops.barlow_twins.forward(z_a, z_b, 0.0051, 1e-5, "auto", "fp32", backend)[0]
    (grad,) = torch.autograd.grad(loss, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


class Model(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(10, 40), torch.nn.Tanh())
        self.criterion = BarlowTwinsLoss(**options)

    def forward(self, x_a, x_b):
        loss, terms = self.criterion(self.encoder(x_a), self.encoder(x_b), return_terms=True)
        return loss, terms.on_diagonal_mean


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("shape", [(16, 10), (60, 10)], ids=["gram", "correlation"])
def test_compile_fullgraph_gives_the_same_numbers(compiler, shape, backend):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Model(backend=backend, scale=0.5)
    x_a, x_b = torch.randn(shape), torch.randn(shape)
    loss, term = model(x_a, x_b)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    loss_compiled, term_compiled = compiled(x_a, x_b)
    got = torch.autograd.grad(loss_compiled, list(model.parameters()))
    torch.testing.assert_close(loss_compiled, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(term_compiled, term, rtol=1e-5, atol=0)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_compile_under_autocast_and_with_dynamic_batch(backend):
    torch.compiler.reset()
    criterion = BarlowTwinsLoss(backend=backend)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (12, 50, 90):  # both forms
        z_a, z_b = draw("random", n, 48, seed=n)
        assert torch.equal(compiled(z_a, z_b), criterion(z_a, z_b))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(z_a, z_b), criterion(z_a, z_b))


def test_fake_tensors_know_shapes_and_dtypes():
    with FakeTensorMode():
        z = torch.empty(20, 30, dtype=torch.bfloat16)
        loss, terms = barlow_twins_loss(z, z, return_terms=True)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert terms.off_diagonal.dtype == torch.float32


def test_no_form_is_chosen_by_reading_a_tensor(monkeypatch):
    """The loss never asks a tensor for its value: that would stop the host at every step on an
    accelerator."""
    z_a, z_b = (z.requires_grad_() for z in draw("random", 16, 24))
    scalars = []
    original = torch.Tensor.item

    def noticed(self):
        scalars.append(self)
        return original(self)

    monkeypatch.setattr(torch.Tensor, "item", noticed)
    barlow_twins_loss(z_a, z_b, backend="aten").backward()
    assert not scalars
