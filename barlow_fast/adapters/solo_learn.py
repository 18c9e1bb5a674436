"""`barlow_loss_func`, `vicreg_loss_func`, `frossl_loss_func` of solo-learn (`solo.losses`), tested
with 1.0.2 to 1.0.6.

    z_hat = (z - mean) / sqrt(var + 1e-5)            per column, biased variance, this rank's rows
    C = z_hat_1^T z_hat_2 / N, the mean of all ranks' where torch.distributed is initialised
    loss = scale_loss * (sum_i (C_ii - 1)^2 + lamb * sum over i != j of C_ij^2)

Kept: `scale_loss` (0.025) is part of the loss; statistics are those of each rank alone; the matrix
is added up without autograd's knowledge, so that DistributedDataParallel's gradient is 1/W of the
exact one (`gradient="exact"` for that one). Without more than one process both are the same.

`vicreg_loss_func` is sim_loss_weight * i + var_loss_weight * (v(z1) + v(z2)) + cov_loss_weight * c
of `adapters/variance_covariance.py`: the variance terms of both views are added up, not averaged as
the authors do. Variances and covariances are gathered from all ranks, as in 9187ea3; in 1.0.2, the
release of the package index, each rank has its own (`gather_distributed=False`).

`frossl_loss_func` is `frossl_loss` of (V, N, D) views.

Differs: where ranks have different numbers of samples, samples count alike; solo-learn takes the
plain mean of the ranks' matrices, and cannot gather for VICReg. FroSSL's `logger` gets no numbers.
The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..arguments import Gradient, as_number
from ..losses.frossl import frossl_loss
from .batch_normalised import check_matrices, joined_ranks, loss_of
from .variance_covariance import loss_of_gathered

__all__ = ["barlow_loss_func", "frossl_loss_func", "vicreg_loss_func"]

VARIANCE_EPS = 1e-4


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


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
    *,
    gather_distributed: bool = True,
) -> Tensor:
    """The scalar VICReg loss of two (N, D) batches of projections.

    Args:
        z1, z2: (N, D) projections of the two views.
        sim_loss_weight, var_loss_weight, cov_loss_weight: weights of invariance, of the sum of both
            views' variance terms and of covariance.
        gather_distributed: variances and covariances over the samples of all ranks.

    Raises:
        ValueError: inputs that are not (N, D), or N = 1.
        RuntimeError: different N or D.
    """
    check_matrices(
        z1, z2, ("z1", "z2"), RuntimeError, joined_ranks() if gather_distributed else None
    )
    weights = (
        as_number("sim_loss_weight", sim_loss_weight),
        2 * as_number("var_loss_weight", var_loss_weight),
        as_number("cov_loss_weight", cov_loss_weight),
    )
    return loss_of_gathered(z1, z2, weights, VARIANCE_EPS, gather_distributed)


def frossl_loss_func(z: Tensor, invariance_weight: float = 1, logger: Any = None) -> Tensor:
    """The scalar FroSSL loss of (V, N, D) projections of V views.

    Args:
        z: (V, N, D) projections, V of at least 2.
        invariance_weight: weight of the invariance term.
        logger: not used.

    Raises:
        ValueError: another shape, or N = 1.
    """
    if z.dim() != 3:
        raise ValueError(f"z must be (V, N, D), got shape {tuple(z.shape)}")
    return frossl_loss(z, invariance=as_number("invariance_weight", invariance_weight))
