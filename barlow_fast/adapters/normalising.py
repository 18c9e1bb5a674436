"""What the adapters share whose peers own a batch norm module in front of the loss.

The module is in the model: its buffers are in checkpoints, converting a model to SyncBN converts
it, and `eval()` makes it use its running statistics. So it stays, and it decides:

* in training, the core standardises, with this rank's statistics or, for a synchronised norm, those
  of all ranks, and the module's buffers move as if it had been called once for each view;
* otherwise (eval mode, another divisor than the number of samples, affine weights, a norm over some
  ranks only) it is called, and the loss is that of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed.groups import Group
from ..kernels import load
from ..losses.barlow_twins import barlow_twins_loss
from ..plan import choose_backend
from .batch_normalised import joined_ranks
from .standardised import standardised_loss


def loss_with_norm(
    norm: nn.Module,
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    divisor: Callable[[int], float],
    gradient: str,
) -> Tensor:
    """The loss of C = sum over ranks of norm(z_a)^T norm(z_b) / divisor.

    divisor: what a rank with so many samples divides by.
    """
    if joined_ranks() is not None:
        return _of_all_ranks(norm, z_a, z_b, lambd, divisor, gradient)
    if _is_plain(norm) and divisor(z_a.shape[0]) == z_a.shape[0]:
        loss = barlow_twins_loss(z_a, z_b, lambd, eps=norm.eps)
        count_views(norm, z_a, z_b, None)
        return loss
    return standardised_loss(norm(z_a), norm(z_b), lambd, divisor=divisor(z_a.shape[0]))


# Exchanges between processes stay out of compiled graphs, where they could change their order.
@torch.compiler.disable
def _of_all_ranks(
    norm: nn.Module,
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    divisor: Callable[[int], float],
    gradient: str,
) -> Tensor:
    from . import across_ranks

    group, rows = across_ranks.agree(z_a, z_b, gradient, "batch norm", lambd)
    if _is_plain(norm) and all(divisor(n) == sum(rows) for n in rows):
        synchronised = is_synchronised(norm)
        loss = barlow_twins_loss(
            z_a, z_b, lambd, eps=norm.eps, process_group="world", gradient=gradient,
            statistics="global" if synchronised else "local",
        )  # fmt: skip
        count_views(norm, z_a, z_b, group if synchronised else None)
        return loss
    if norm.training and not is_synchronised(norm) and min(rows) < 2:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got {min(rows)} on rank "
            f"{rows.index(min(rows))} (a last batch of one? use drop_last=True)"
        )
    factor = divisor(z_a.shape[0]) ** -0.5
    return across_ranks.loss_across_ranks(
        norm(z_a) * factor, norm(z_b) * factor, lambd, rows=rows, group=group, gradient=gradient
    )


def is_synchronised(norm: nn.Module) -> bool:
    """Whether its statistics are those of several ranks: torch's SyncBatchNorm or ours."""
    return hasattr(norm, "process_group")


def _is_plain(norm: nn.Module) -> bool:
    """Whether the core standardises as `norm` would now."""
    group = getattr(norm, "process_group", None)
    everyone = group is None or not dist.is_initialized() or group is dist.group.WORLD
    return norm.training and norm.weight is None and norm.bias is None and everyone


@torch.no_grad()
def count_views(norm: nn.Module, z_a: Tensor, z_b: Tensor, group: Group | None) -> None:
    """Moves the running statistics of `norm` as its calls with z_a and then z_b would.

    group: the ranks whose rows count; None for this one's.
    """
    if not norm.track_running_stats or norm.running_mean is None:
        return
    dtype = norm.running_mean.dtype
    for mean, variance in _statistics(z_a.detach(), z_b.detach(), group):
        norm.num_batches_tracked.add_(1)
        share = norm.momentum
        if share is None:
            share = 1.0 / norm.num_batches_tracked.to(dtype)
        norm.running_mean.add_(share * (mean.to(dtype) - norm.running_mean))
        norm.running_var.add_(share * (variance.to(dtype) - norm.running_var))


def _statistics(z_a: Tensor, z_b: Tensor, group: Group | None) -> Iterator[tuple[Tensor, Tensor]]:
    """(mean, unbiased variance) of each view's columns, over the rows of `group`."""
    n = z_a.shape[0]
    if torch.compiler.is_compiling():
        for z in (z_a, z_b):
            variance, mean = torch.var_mean(z.to(torch.promote_types(z.dtype, torch.float32)), 0)
            yield mean, variance
        return
    # Both views in one read, by the kernels of the loss.
    precision = "fp64" if z_a.dtype == torch.float64 else "fp32"
    kernels = load(choose_backend("auto", z_a.device), precision)
    moments = kernels.column_moments(z_a, z_b.to(z_a.dtype), precision)
    means, squares = moments[0:2], moments[2:4]
    if group is not None:
        count, means, squares = _of_all(n, means, squares, group)
    else:
        count = n
    yield from zip(means, squares / (count - 1), strict=True)


def _of_all(n: int, means: Tensor, squares: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, means, sums of squares about them) of all ranks from those of each."""
    from ..distributed.collectives import total

    sums = total("statistics", torch.cat((means.new_full((1,), n), n * means.flatten())), group)
    count, mean = sums[0], (sums[1:] / sums[0]).view_as(means)
    return count, mean, total("statistics", squares + n * (means - mean).square(), group)
