"""`BarlowTwinsLoss` of stable-pretraining (`stable_pretraining.losses.BarlowTwinsLoss`), tested
with 0.1.8.

    u = (z - mean) / (std + 1e-5)                    per column, unbiased std, this rank's rows
    C = sum over ranks of u_i^T u_j / (N W)
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

Kept: the unbiased std over a division by N caps the diagonal at (N - 1) / N; a dead (constant)
feature has C_ii = 0; where torch.distributed is initialised the loss is that of all W ranks, with
statistics of each rank alone and an exact gradient under DistributedDataParallel; N is each rank's
own. (Until 0.1.7 nothing was added up, silently: the loss was each rank's own.)

Differs: one sample is refused, where the original's loss is NaN. The loss of half-precision
embeddings is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from .batch_normalised import check_matrices, joined_ranks
from .standardised import deviation_loss

__all__ = ["BarlowTwinsLoss"]

EPS = 1e-5


class BarlowTwinsLoss(nn.Module):
    """stable-pretraining's loss, computed by barlow_fast.

    Args:
        lambd: weight of the off-diagonal term.
        gradient: 'exact', or 'official' for 1/W of it, as in the original Barlow Twins code.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "exact"

    def __init__(self, lambd: float = 5e-3, *, gradient: Gradient = "exact") -> None:
        super().__init__()
        self.lambd = lambd
        self.gradient = gradient

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of projections.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different N.
            AssertionError: different D.
        """
        check_matrices(z_i, z_j, ("z_i", "z_j"), AssertionError, joined_ranks())
        lambd = as_number("lambd", self.lambd)
        if joined_ranks() is None:
            return deviation_loss(z_i, z_j, lambd, eps_outside=EPS)
        return _of_all_ranks(z_i, z_j, lambd, self.gradient)


# Exchanges between processes stay out of compiled graphs, where they could change their order.
@torch.compiler.disable
def _of_all_ranks(z_i: Tensor, z_j: Tensor, lambd: float, gradient: str) -> Tensor:
    from . import across_ranks

    group, rows = across_ranks.agree(z_i, z_j, gradient, "stable_pretraining", lambd)
    u_i, u_j = (_standardised(z, group.size) for z in (z_i, z_j))
    return across_ranks.loss_across_ranks(
        u_i, u_j, lambd, rows=rows, group=group, gradient=gradient
    )


def _standardised(z: Tensor, ranks: int) -> Tensor:
    """u / sqrt(N W), so that products of two of them need no divisor."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    factor = (z.shape[0] * ranks) ** -0.5
    return (z - z.mean(0)) * (factor / (z.std(0) + EPS))
