"""What the adapters of VICReg share: the invariance term of each rank, statistics of all ranks.

    loss = invariance * mean (z_a - z_b)^2           of this rank's samples
           + variance * mean over views of v(z) + covariance * sum over views of c(z)
    v(z) = mean_i relu(1 - sqrt(var_i + eps)),       c(z) = sum over i != j of cov_ij^2 / D

with the N - 1 of the samples that v and c are of. Peers gather these from all ranks; each rank has
its own gradient of the sum over ranks of the losses, whose mean DistributedDataParallel takes: of
one mean loss. Source: Bardes, Ponce, LeCun, *VICReg* (ICLR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses.vicreg import vicreg_loss
from .batch_normalised import joined_ranks


def loss_of_gathered(
    z_a: Tensor,
    z_b: Tensor,
    weights: tuple[float, float, float],
    eps: float,
    gathered: bool = True,
) -> Tensor:
    """The scalar loss of two (N, D) batches.

    weights: of invariance, variance and covariance. gathered: whether statistics are those of all
    ranks, where torch.distributed is initialised.
    """
    invariance, variance, covariance = weights
    ranks = joined_ranks() if gathered else None
    if ranks is None:
        return vicreg_loss(z_a, z_b, invariance, variance, covariance, eps=eps)
    rest = vicreg_loss(z_a, z_b, 0.0, variance, covariance, eps=eps, process_group=ranks)
    a, b = (z.to(rest.dtype) for z in (z_a, z_b))
    return rest + invariance * torch.nn.functional.mse_loss(a, b)
