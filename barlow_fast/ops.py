"""The loss as a pair of functions on tensors, and as the operator `barlow_twins` made of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import arguments, correlation, gram, plan
from .differentiable import DifferentiableOperator
from .kernels import Layout, load
from .kernels.precision import accumulation_dtype, float32_matmul_precision

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
        return FORM[form].forward(load(backend, precision), z_a, z_b, lambd, eps, precision)


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
            load(backend, precision), z_a, z_b, saved, grad, lambd, eps, precision, need
        )


def resolve(z: Tensor, form: str, precision: str, backend: str) -> tuple[str, str, str]:
    """The choices that are left to the time the operator runs; pure but for the global matmul
    precision."""
    backend = plan.choose_backend(backend, z.device)
    form = plan.choose_form(form, z.shape[0], z.shape[1], backend)
    if precision == "auto":
        matmul = float32_matmul_precision(z.device.type)
        precision, _ = plan.choose_precision("auto", z.dtype, None, matmul)
    return form, plan.executed_precision(precision, z.device.type), backend


def without_autocast(device_type: str) -> AbstractContextManager:
    """The operand type is decided: autocast must not cast the products of plain torch a second
    time."""
    if plan.autocast_dtype(device_type) is not None:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def flops(z: Tensor, eps: float, form: str, precision: str, backend: str) -> tuple[float, float]:
    """Operations of the forward pass and of the gradient of one view."""
    form, _, backend = resolve(z, form, precision, backend)
    return plan.flops(form, *z.shape, backend)


def kept_layouts(z: Tensor, form: str, precision: str, backend: str) -> tuple[Layout, ...]:
    """Shape and dtype of the loss, statistics, matrix and companion."""
    n, d = z.shape
    form, precision, backend = resolve(z, form, precision, backend)
    dtype = accumulation_dtype(precision)
    if form == "gram":
        matrix, companion = load(backend, precision).gram_layout(n, precision), ((2,), dtype)
    else:
        matrix = load(backend, precision).correlation_layout(d, precision)
        companion = ((2, d), torch.float64)
    return ((), dtype), ((7, d), dtype), matrix, companion


def _layouts(z: Tensor, lambd: Any, eps: float, *choices: str) -> tuple[Layout, ...]:
    arguments.check_choices(*choices)
    arguments.check_number("lambd", lambd)
    arguments.check_number("eps", eps, at_least=0)
    loss, *kept = kept_layouts(z, *choices)
    return loss, loss, loss, *kept


barlow_twins = DifferentiableOperator(
    "forward_2", "backward_2", forward, backward, _layouts, results=3, at_least=2, flops=flops
)
