"""What the adapters share whose peers standardise with a batch norm: the core's own arithmetic.

Biased variance, eps inside the root, division by the number of samples; the peers differ in where
the statistics come from, in the factor of the gradient and in their errors.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ..arguments import Gradient, Statistics
from ..losses.barlow_twins import barlow_twins_loss

EPS = 1e-5


def joined_ranks() -> str | None:
    """'world' where torch.distributed runs with more than one process, else None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return "world"
    return None


def check_matrices(
    first: Tensor,
    second: Tensor,
    names: tuple[str, str],
    unequal_dimensions: type[Exception],
    process_group: str | None = None,
) -> None:
    """Raises what peers raise, mostly from deep inside torch, before anything is computed.

    process_group: of the ranks that compute the loss together; they raise it too.

    Raises:
        ValueError: an input that is not (N, D), or N = 1.
        RuntimeError: different N.
        unequal_dimensions: different D.
    """
    problem = _problem(first, second, names, unequal_dimensions)
    if problem is not None:
        refuse(problem, process_group)


def _problem(
    first: Tensor, second: Tensor, names: tuple[str, str], unequal_dimensions: type[Exception]
) -> Exception | None:
    for name, z in zip(names, (first, second), strict=True):
        if z.dim() != 2:
            return ValueError(f"{name} must be (N, D), got shape {tuple(z.shape)}")
    shapes = f"got {tuple(first.shape)} and {tuple(second.shape)}"
    if first.shape[1] != second.shape[1]:
        return unequal_dimensions(f"{names[0]} and {names[1]} must have the same D, {shapes}")
    if first.shape[0] != second.shape[0]:
        return RuntimeError(f"{names[0]} and {names[1]} must have the same N, {shapes}")
    if first.shape[0] == 1:
        return ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{tuple(first.shape)} (a last batch of one? use drop_last=True)"
        )
    return None


# Exchanges between processes stay out of compiled graphs.
@torch.compiler.disable
def refuse(problem: Exception, process_group: str | None) -> NoReturn:
    """Raises it on this rank and, where there is a group, on all that are about to agree on a
    call."""
    if process_group is not None:
        from ..distributed import agreement, groups

        agreement.exchange("", b"", problem, groups.resolve(process_group))
    raise problem


def loss_of(
    first: Tensor,
    second: Tensor,
    lambd: float,
    *,
    scale: float = 1.0,
    process_group: Any = None,
    statistics: Statistics = "local",
    gradient: Gradient = "exact",
) -> Tensor:
    """`barlow_twins_loss` with what all these peers have in common."""
    return barlow_twins_loss(
        first,
        second,
        lambd,
        scale=scale,
        eps=EPS,
        process_group=process_group,
        statistics=statistics,
        gradient=gradient,
    )
