"""The losses as pairs of functions on tensors, and the operators made of them: `barlow_twins` of
two views, `family` of any number (`forms/views.py`, `forms/mixed.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import plan
from .arguments import check_choice, check_number, described
from .differentiable import DifferentiableOperator, ViewsOperator
from .forms import correlation, gram, mixed
from .forms import views as views_form
from .forms.objectives import BarlowTwins, FroSSL, VICReg
from .forms.views import Objective, Run
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


BARLOW_TWINS, MIXED, VICREG, FROSSL = "barlow_twins", "mixed_barlow_twins", "vicreg", "frossl"
# Weights of each loss of the family.
_WEIGHTS = {BARLOW_TWINS: 1, MIXED: 3, VICREG: 3, FROSSL: 1}


class ViewOptions(NamedTuple):
    """The arguments of the operator of the family behind its weights.

    loss: one of the names above. gamma: of the variance term of VICReg. target: of the elements off
    the diagonal of Barlow Twins.
    """

    loss: str
    gamma: float
    target: float
    eps: float
    form: str
    precision: str
    backend: str

    @property
    def objective(self) -> Objective:
        if self.loss == VICREG:
            return VICReg(self.gamma)
        return FroSSL() if self.loss == FROSSL else BarlowTwins(self.target)


def work_of(loss: str, views: int) -> plan.Work:
    """The matrix products of a loss of the family."""
    if loss == MIXED:
        return plan.Work(3, 3, 3, 6)
    if loss == BARLOW_TWINS:
        pairs = views * (views - 1) // 2
        return plan.Work(views, views, pairs, 2 * pairs)
    return plan.Work(views, views, views, views)


def _run(views: Sequence[Tensor], options: ViewOptions) -> Run:
    work = work_of(options.loss, len(views))
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
        run = _run(views, options)
        if options.loss == MIXED:
            loss, terms, kept = mixed.forward(run, views, permutation, weights, options.eps)
        else:
            loss, terms, kept = views_form.forward(
                run, options.objective, views, weights, options.eps
            )
        return loss, terms, *kept[:-1], *kept[-1]


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
    n = views[0].shape[0]
    with plan.without_autocast(views[0].device.type):
        run = _run(views, options)
        if options.loss == MIXED:
            fields = mixed.Kept(*kept[:3], tuple(kept[3:]))
            return mixed.backward(
                run, views, permutation, fields, weights, options.eps, n, grad, need
            )
        fields = views_form.Kept(*kept[:6], tuple(kept[6:]))
        return views_form.backward(
            run, options.objective, views, fields, options.eps, n, grad, need
        )


def _view_layouts(
    views: Sequence[Tensor], permutation: Tensor | None, options: ViewOptions
) -> list[Layout]:
    if options.loss not in _WEIGHTS:
        raise ValueError(f"loss must be one of {tuple(_WEIGHTS)}, got {options.loss!r}")
    for name in ("form", "precision", "backend"):
        check_choice(name, getattr(options, name))
    for name in ("eps", "gamma"):
        check_number(name, getattr(options, name), at_least=0)
    check_number("target", options.target)
    n, least, most = views[0].shape[0], 2, None
    if options.loss == MIXED:
        least = most = 3
        _check_permutation(permutation, views[0])
    elif permutation is not None:
        raise ValueError(f"permutation must be None for {options.loss}")
    elif options.loss == VICREG:
        least = 1
    if len(views) < least or (most and len(views) > most):
        raise ValueError(f"{options.loss} takes {least} views, got {len(views)}")
    run = _run(views, options)
    if options.loss == MIXED:
        kept = mixed.kept_layouts(run, n, views[0].dtype)
    else:
        kept = views_form.kept_layouts(run, options.objective, n, len(views))
    terms = 3 if options.loss == MIXED else options.objective.terms
    return [((), run.dtype), ((terms,), run.dtype), *kept]


def _check_permutation(permutation: Tensor | None, z: Tensor) -> None:
    if (
        permutation is None
        or permutation.shape != z.shape[:1]
        or permutation.dtype != torch.int64
        or permutation.device != z.device
    ):
        got = "None" if permutation is None else described(permutation)
        raise ValueError(
            f"permutation must be torch.int64 ({z.shape[0]},) on {z.device}, got {got}"
        )


def _view_flops(views: Sequence[Tensor], options: ViewOptions) -> tuple[float, float]:
    work = work_of(options.loss, len(views))
    form, _, backend = plan.resolve(views[0], *options[4:], work)
    return plan.flops(form, *views[0].shape, backend, work, len(views))


family = ViewsOperator(
    "views_forward_1", "views_backward_1", forward_views, backward_views, ViewOptions,
    _view_layouts, lambda options: _WEIGHTS[options.loss], _view_flops,
)  # fmt: skip
