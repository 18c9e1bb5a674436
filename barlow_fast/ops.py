"""The loss as a pair of operators: the one implementation, and its registration with torch.library.

`forward` and `backward` are plain functions on tensors. Eager mode calls them from an
autograd.Function; under torch.compile and export the registered operators `torch.ops.barlow_fast.*`
stand in the graph, opaque to the compiler. Both routes run the same code, so both give the same
bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import correlation, gram, plan
from .kernels import load
from .kernels.precision import accumulation_dtype

FORM = {"gram": gram, "correlation": correlation}

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(
    z_a: Tensor, z_b: Tensor, lambd: float, eps: float, form: str, precision: str, backend: str
) -> Outputs:
    """(loss, on_diagonal, off_diagonal, statistics, matrix, companion); z_a, z_b are (N, D).

    The last three are what `backward` needs: (7, D) statistics and, by form, both Gram matrices and
    their centres or the zeroed C and its (2, D) squared sums, laid out as the kernel set likes.
    """
    form, precision, backend = resolve(z_a, form, precision, backend)
    with without_autocast(z_a.device.type):
        return FORM[form].forward(load(backend), z_a, z_b, lambd, eps, precision)


def backward(
    grad: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    matrix: Tensor,
    companion: Tensor,
    lambd: float,
    eps: float,
    form: str,
    precision: str,
    backend: str,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss times the scalar `grad`; the one that is not needed is empty."""
    form, precision, backend = resolve(z_a, form, precision, backend)
    saved, need = (statistics, matrix, companion), (need_a, need_b)
    with without_autocast(z_a.device.type):
        return FORM[form].backward(
            load(backend), z_a, z_b, saved, grad, lambd, eps, precision, need
        )


def resolve(z: Tensor, form: str, precision: str, backend: str) -> tuple[str, str, str]:
    """The choices that are left to the time the operator runs; pure but for the global matmul
    precision."""
    backend = plan.choose_backend(backend, z.device)
    form = plan.choose_form(form, z.shape[0], z.shape[1], backend)
    if precision == "auto":
        matmul = torch.get_float32_matmul_precision() if z.dtype == torch.float32 else "highest"
        precision, _ = plan.choose_precision("auto", z.dtype, None, matmul)
    return form, plan.executed_precision(precision, z.device.type), backend


def without_autocast(device_type: str) -> AbstractContextManager:
    """The operand type is decided: autocast must not cast the products of plain torch a second
    time."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def refuse_double_backward(*_: object) -> None:
    raise RuntimeError(
        "barlow_fast: the loss cannot be differentiated twice (its fused backward pass has no "
        "gradient of its own). "
        "For second derivatives use barlow_fast.reference.barlow_twins_loss, which is plain torch."
    )


class BarlowTwinsFunction(torch.autograd.Function):
    """The eager route."""

    @staticmethod
    def forward(ctx, z_a, z_b, lambd, eps, form, precision, backend):
        loss, on_diagonal, off_diagonal, *saved = forward(
            z_a, z_b, lambd, eps, form, precision, backend
        )
        ctx.save_for_backward(z_a, z_b, *saved)
        ctx.options = (lambd, eps, form, precision, backend)
        ctx.mark_non_differentiable(on_diagonal, off_diagonal)
        return loss, on_diagonal, off_diagonal

    @staticmethod
    def backward(ctx, grad, *_):
        need_a, need_b = ctx.needs_input_grad[:2]
        # Gradients are recorded here only for the sake of second derivatives.
        gradient = BarlowTwinsGradient.apply if torch.is_grad_enabled() else backward
        gradients = gradient(grad, *ctx.saved_tensors, *ctx.options, need_a, need_b)
        wanted = (g if need else None for g, need in zip(gradients, (need_a, need_b), strict=True))
        return *wanted, None, None, None, None, None


class BarlowTwinsGradient(torch.autograd.Function):
    """The backward pass as a node of its own, so that differentiating it again is refused in
    words."""

    @staticmethod
    def forward(ctx, *args):
        return backward(*args)

    @staticmethod
    def backward(ctx, *_):
        refuse_double_backward()


# Inductor keeps compiled graphs on disk by operator name, with the shapes that they were made for:
# another layout of what `forward` returns needs another name.
LAYOUT = 2

forward_op = torch.library.custom_op(f"barlow_fast::forward_{LAYOUT}", forward, mutates_args=())
backward_op = torch.library.custom_op(f"barlow_fast::backward_{LAYOUT}", backward, mutates_args=())


@forward_op.register_fake
def _(z_a, z_b, lambd, eps, form, precision, backend):
    n, d = z_a.shape
    form, precision, backend = resolve(z_a, form, precision, backend)
    dtype = accumulation_dtype(precision)
    scalars = [z_a.new_empty((), dtype=dtype) for _ in range(3)]
    statistics = z_a.new_empty((7, d), dtype=dtype)
    if form == "gram":
        shape, matrix_dtype = load(backend).gram_layout(n, precision)
        companion = z_a.new_empty(2, dtype=dtype)
    else:
        shape, matrix_dtype = load(backend).correlation_layout(d, precision)
        companion = z_a.new_empty((2, d), dtype=torch.float64)
    return (*scalars, statistics, z_a.new_empty(shape, dtype=matrix_dtype), companion)


@backward_op.register_fake
def _(
    grad,
    z_a,
    z_b,
    statistics,
    matrix,
    companion,
    lambd,
    eps,
    form,
    precision,
    backend,
    need_a,
    need_b,
):
    return z_a.new_empty(z_a.shape if need_a else 0), z_b.new_empty(z_b.shape if need_b else 0)


def _setup_context(ctx, inputs, output):
    z_a, z_b, *options = inputs
    ctx.save_for_backward(z_a, z_b, *output[3:])
    ctx.options = options


def _gradients(ctx, grad, *_):
    need_a, need_b = ctx.needs_input_grad[:2]
    gradients = backward_op(grad, *ctx.saved_tensors, *ctx.options, need_a, need_b)
    wanted = (g if need else None for g, need in zip(gradients, (need_a, need_b), strict=True))
    return *wanted, None, None, None, None, None


forward_op.register_autograd(_gradients, setup_context=_setup_context)
backward_op.register_autograd(
    refuse_double_backward, setup_context=lambda ctx, inputs, output: None
)
