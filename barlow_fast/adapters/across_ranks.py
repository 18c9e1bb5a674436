"""The loss of standardised embeddings that are spread over the ranks of torch.distributed.

    C = sum over ranks of u_a^T u_b                  the divisor is in u
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

For peers whose statistics are not the core's. Whichever sends less: the ranks sum C (D x D), or
gather u (samples of all ranks x D) and hold their own rows of K = u u^T,

    sum over i, j of C_ij^2 = <K_a, K_b>,    dL/du_a = 2 lambd K_b u_a + w * u_b

with w_i = 2 (C_ii - 1) - 2 lambd C_ii, and 2 (C_ii - 1) where C is kept without its diagonal
(kernels/README.md, equations 4 and 8). Gradients: see `barlow_twins_loss`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import plan
from ..arguments import as_matrices, check_choice
from ..differentiable import (
    refuse_double_backward,
    refuse_forward_mode,
    refuse_transforms,
    save_for_backward,
    saved_tensors,
)
from ..distributed import agreement, groups
from ..distributed.collectives import all_gather, all_reduce, total
from ..distributed.groups import Group
from ..kernels.aten import product
from ..kernels.precision import OPERAND_DTYPE, accumulation_dtype

Gradients = tuple[Tensor | None, Tensor | None]


def agree(
    z_a: Tensor, z_b: Tensor, gradient: str, kind: str, lambd: float = 0.0, scale: float = 1.0
) -> tuple[Group, tuple[int, ...]]:
    """(all ranks, their samples), which all must call with the same D, dtype and options.

    kind: what is computed; differs between losses that have the same options.

    Raises:
        ValueError: on all ranks, in what their calls differ, or what is wrong with one.
    """
    group = groups.resolve("world")
    with agreement.errors_reported(group):
        if z_a.shape != z_b.shape or z_a.dim() != 2:
            raise ValueError(
                f"both views must be (N, D) of the same shape, got {tuple(z_a.shape)} and "
                f"{tuple(z_b.shape)}"
            )
        check_choice("gradient", gradient)
    options = {"lambd": float(lambd), "scale": float(scale), "form": kind, "gradient": gradient}
    call = agreement.call_of(z_a, z_b, **options)
    return group, agreement.agree(call, z_a.shape[0], groups.node(), group).samples


def loss_across_ranks(
    u_a: Tensor,
    u_b: Tensor,
    lambd: float,
    *,
    rows: tuple[int, ...],
    group: Group,
    gradient: str,
    scale: float = 1.0,
) -> Tensor:
    """The scalar loss of (rows[rank], D) embeddings, equal on all ranks."""
    refuse_transforms("the loss of a process group")
    u_a, u_b = as_matrices(u_a, u_b, at_least=0)
    autocast = plan.autocast_dtype(u_a.device.type)
    precision, _ = plan.choose_precision("auto", u_a.dtype, u_a.device.type, autocast)
    d = u_a.shape[1]
    wide = accumulation_dtype(precision).itemsize
    # An all-reduce sends twice what it adds up; both views are gathered.
    gathered = group.size * max(rows) * OPERAND_DTYPE[precision].itemsize
    function = GatheredRows if gathered < d * wide else AddedCorrelation
    loss = function.apply(u_a, u_b, float(lambd), rows, group, gradient == "exact", precision)
    return loss if scale == 1.0 else loss * scale


class AddedCorrelation(torch.autograd.Function):
    """The ranks sum C."""

    @staticmethod
    def forward(ctx, u_a, u_b, lambd, rows, group, exact, precision):
        with plan.without_autocast(u_a.device.type):
            a, b = (u.to(OPERAND_DTYPE[precision]) for u in (u_a, u_b))
            c = all_reduce("matrices", product(a.T, b, precision).contiguous(), group).wait()
            diagonal = c.diagonal().clone()
            c.fill_diagonal_(0)
            save_for_backward(ctx, u_a, u_b, c, diagonal)
            ctx.options = (lambd, group, exact, precision)
            off_diagonal = torch.linalg.vecdot(c, c).double().sum()
            loss = (diagonal.double() - 1).square().sum() + lambd * off_diagonal
            return loss.to(c.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *_Gradient.apply(grad, _correlation_gradients, ctx), *(None,) * 5

    jvp = staticmethod(refuse_forward_mode)


def _correlation_gradients(ctx, grad: Tensor) -> Gradients:
    u_a, u_b, c, diagonal = saved_tensors(ctx)
    precision = ctx.options[3]

    def moved(view: int) -> Tensor:
        other, right = ((u_b, c.T), (u_a, c))[view]
        operand = OPERAND_DTYPE[precision]
        return product(other.to(operand), right.to(operand), precision)

    return _gradients(ctx, grad, (u_a, u_b), 2 * (diagonal - 1), moved)


def _gradients(
    ctx, grad: Tensor, views: tuple[Tensor, Tensor], weight: Tensor, moved: Callable[[int], Tensor]
) -> Gradients:
    """2 lambd `moved(view)` + weight * the other view, for the views that need a gradient."""
    lambd, group, exact, *_ = ctx.options
    with plan.without_autocast(grad.device.type):
        # All ranks' losses are one number, each with a weight in its own rank's objective.
        factor = total("scale", grad.reshape(1).double(), group)
        scale = (factor if exact else factor / group.size).reshape(()).to(grad.dtype)
        found: list[Tensor | None] = [None, None]
        for view, own in enumerate(views):
            if ctx.needs_input_grad[view]:
                g = 2 * lambd * moved(view) + weight * views[1 - view]
                found[view] = (g * scale).to(own.dtype)
    return tuple(found)


class GatheredRows(torch.autograd.Function):
    """The ranks gather u."""

    @staticmethod
    def forward(ctx, u_a, u_b, lambd, rows, group, exact, precision):
        with plan.without_autocast(u_a.device.type):
            whole_a, whole_b = (_gather(u, rows, group, precision) for u in (u_a, u_b))
            operand = OPERAND_DTYPE[precision]
            k_a = product(u_a.to(operand), whole_a.T, precision)
            k_b = product(u_b.to(operand), whole_b.T, precision)
            diagonal = (u_a.to(k_a.dtype) * u_b).sum(0, dtype=torch.float64)
            inner = torch.linalg.vecdot(k_a, k_b).double().sum().reshape(1)
            summed = total("sums", torch.cat((diagonal, inner)), group)
            diagonal, inner = summed[:-1], summed[-1]
            off_diagonal = inner - diagonal.square().sum()
            loss = (diagonal - 1).square().sum() + lambd * off_diagonal
            kept = (whole_a, whole_b, k_a, k_b, diagonal.to(k_a.dtype))
            save_for_backward(ctx, u_a, u_b, *kept)
            ctx.options = (lambd, group, exact, precision, sum(rows[: group.rank]))
            return loss.to(k_a.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *_Gradient.apply(grad, _gathered_gradients, ctx), *(None,) * 5

    jvp = staticmethod(refuse_forward_mode)


def _gathered_gradients(ctx, grad: Tensor) -> Gradients:
    u_a, u_b, whole_a, whole_b, k_a, k_b, diagonal = saved_tensors(ctx)
    lambd, _, _, precision, first = ctx.options

    def moved(view: int) -> Tensor:
        own, whole, k = ((u_a, whole_a, k_b), (u_b, whole_b, k_a))[view]
        # Gram centring: the large diagonal of K stays out of the rounded product.
        centred = k.clone()
        own_diagonal = centred[:, first : first + own.shape[0]].diagonal()
        centre = own_diagonal.mean() if own.shape[0] else k.new_zeros(())
        own_diagonal.sub_(centre)
        return product(centred.to(OPERAND_DTYPE[precision]), whole, precision) + centre * own

    weight = 2 * (diagonal - 1) - 2 * lambd * diagonal
    return _gradients(ctx, grad, (u_a, u_b), weight, moved)


def _gather(u: Tensor, rows: tuple[int, ...], group: Group, precision: str) -> Tensor:
    """The samples of all ranks in their order, in the operand type."""
    share = u.detach().to(OPERAND_DTYPE[precision])
    missing = max(rows) - share.shape[0]
    if missing:
        share = torch.cat((share, share.new_zeros(missing, share.shape[1])))
    arrived = all_gather("embeddings", share, group).wait()
    return torch.cat([part[:count] for part, count in zip(arrived, rows, strict=True)])


class _Gradient(torch.autograd.Function):
    """The backward pass as a node of its own: differentiating it again raises an error."""

    @staticmethod
    def forward(ctx, grad, function, outer):
        return function(outer, grad)

    @staticmethod
    def backward(ctx, *_):
        refuse_double_backward()
