"""The losses as pairs of functions on tensors, and the operators made of them: `barlow_twins` of
two views, `family` of any number (`forms/family.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import plan
from .arguments import check_choice, check_number
from .differentiable import DifferentiableOperator, ViewsOperator
from .forms import correlation, gram
from .forms import family as family_form
from .forms.family import ViewOptions
from .forms.views import Run
from .kernels import Layout, load
from .kernels.precision import accumulation_dtype

FORM = {"gram": gram, "correlation": correlation}


class Options(NamedTuple):
    """The arguments of the operator behind its weight."""

    eps: float
    form: str
    precision: str
    backend: str


def forward(z_a: Tensor, z_b: Tensor, lambd: float, options: Options) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal, statistics, matrix, centres or squares); z_a, z_b (N, D).

    The last three are what `backward` needs: (7, D) statistics and, by form, both Gram matrices and
    their centres, or the zeroed C and its (2, D) squared sums, in the layouts of the kernel set.
    """
    form, precision, backend = plan.resolve(z_a, *options[1:])
    with plan.without_autocast(z_a.device.type):
        return FORM[form].forward(load(backend, precision), z_a, z_b, lambd, options.eps, precision)


def backward(
    grad: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    kept: tuple[Tensor, Tensor, Tensor],
    lambd: float,
    options: Options,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss times the scalar `grad`; the one that is not needed is empty."""
    form, precision, backend = plan.resolve(z_a, *options[1:])
    with plan.without_autocast(z_a.device.type):
        kernels = load(backend, precision)
        return FORM[form].backward(
            kernels, z_a, z_b, kept, grad, lambd, options.eps, precision, need
        )


def flops(z: Tensor, options: Any) -> tuple[float, float]:
    """Operations of the forward pass and of the gradient of one view."""
    options = plan.resolved(z, options)
    return plan.flops(options.form, *z.shape, options.backend)


def kept_layouts(z: Tensor, options: Any) -> tuple[Layout, ...]:
    """Shape and dtype of the loss, statistics, matrix, and centres or squares."""
    for name in ("form", "precision", "backend"):
        check_choice(name, getattr(options, name))
    n, d = z.shape
    options = plan.resolved(z, options)
    dtype, kernels = accumulation_dtype(options.precision), load(options.backend, options.precision)
    if options.form == "gram":
        kept = kernels.gram_layout(n, options.precision), ((2,), dtype)
    else:
        kept = kernels.correlation_layout(d, options.precision), ((2, d), torch.float64)
    return ((), dtype), ((7, d), dtype), *kept


def _layouts(z: Tensor, options: Options) -> tuple[Layout, ...]:
    check_number("eps", options.eps, at_least=0)
    loss, *kept = kept_layouts(z, options)
    return loss, loss, loss, *kept


barlow_twins = DifferentiableOperator(
    "forward_2", "backward_2", forward, backward, Options, ("statistics", "matrix", "companion"),
    _layouts, results=3, at_least=2, flops=flops,
)  # fmt: skip


def _run(views: Sequence[Tensor], options: ViewOptions) -> Run:
    work = family_form.work_of(options.loss, len(views))
    form, precision, backend = plan.resolve(views[0], *options[4:], work)
    return Run(load(backend, precision), form, precision, views[0].shape[1])


def forward_views(
    views: Sequence[Tensor],
    permutation: Tensor | None,
    weights: Sequence[float],
    options: ViewOptions,
) -> tuple[Tensor, ...]:
    """(loss, terms, *what `backward_views` needs); each view (N, D)."""
    with plan.without_autocast(views[0].device.type):
        return family_form.forward(_run(views, options), views, permutation, weights, options)


def backward_views(
    grad: Tensor,
    views: Sequence[Tensor],
    permutation: Tensor | None,
    kept: Sequence[Tensor],
    weights: Sequence[float],
    options: ViewOptions,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of the loss times the scalar `grad`; one that is not needed is empty."""
    with plan.without_autocast(views[0].device.type):
        run, n = _run(views, options), views[0].shape[0]
        return family_form.backward(run, views, permutation, kept, weights, options, n, grad, need)


def _view_layouts(
    views: Sequence[Tensor], permutation: Tensor | None, options: ViewOptions
) -> list[Layout]:
    for name in ("form", "precision", "backend"):
        check_choice(name, getattr(options, name))
    options.check(views, permutation)
    return family_form.layouts(_run(views, options), views, options)


def _view_flops(views: Sequence[Tensor], options: ViewOptions) -> tuple[float, float]:
    work = family_form.work_of(options.loss, len(views))
    form, _, backend = plan.resolve(views[0], *options[4:], work)
    return plan.flops(form, *views[0].shape, backend, work, len(views))


family = ViewsOperator(
    "views_forward_2", "views_backward_2", forward_views, backward_views, ViewOptions,
    _view_layouts, lambda options: family_form.WEIGHTS[options.loss], _view_flops,
)  # fmt: skip
