"""`barlow_loss_func` of solo-learn (`solo.losses.barlow_loss_func`), tested with 1.0.2 to 1.0.6.

    z_hat = (z - mean) / sqrt(var + 1e-5)            per column, biased variance, this rank's rows
    C = z_hat_1^T z_hat_2 / N, the mean of all ranks' where torch.distributed is initialised
    loss = scale_loss * (sum_i (C_ii - 1)^2 + lamb * sum over i != j of C_ij^2)

Kept: `scale_loss` (0.025) is part of the loss; statistics are those of each rank alone; the matrix
is added up without autograd's knowledge, so that DistributedDataParallel's gradient is 1/W of the
exact one (`gradient="exact"` for that one). Without more than one process both are the same.

Differs: where ranks have different numbers of samples, samples count alike; solo-learn takes the
plain mean of the ranks' matrices. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Gradient, as_number
from .batch_normalised import check_matrices, joined_ranks, loss_of

__all__ = ["barlow_loss_func"]


def barlow_loss_func(
    z1: Tensor,
    z2: Tensor,
    lamb: float = 5e-3,
    scale_loss: float = 0.025,
    *,
    gradient: Gradient = "official",
) -> Tensor:
    """The scalar loss of two (N, D) batches of projections.

    Args:
        z1, z2: (N, D) projections of the two views.
        lamb: weight of the off-diagonal term.
        scale_loss: factor on the whole loss.
        gradient: 'official', solo-learn's 1/W, or 'exact'.

    Raises:
        ValueError: inputs that are not (N, D), or N = 1.
        RuntimeError: different N or D.
    """
    check_matrices(z1, z2, ("z1", "z2"), RuntimeError, joined_ranks())
    return loss_of(
        z1,
        z2,
        as_number("lamb", lamb),
        scale=as_number("scale_loss", scale_loss),
        process_group=joined_ranks(),
        gradient=gradient,
    )
