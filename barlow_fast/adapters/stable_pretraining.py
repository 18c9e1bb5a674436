"""`BarlowTwinsLoss`, `VICRegLoss`, `VCRegLoss` of stable-pretraining (`stable_pretraining.losses`),
tested with 0.1.8.

    u = (z - mean) / (std + 1e-5)                    per column, unbiased std, this rank's rows
    C = sum over ranks of u_i^T u_j / (N W)
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

Kept: the unbiased std over a division by N caps the diagonal at (N - 1) / N; a dead (constant)
feature has C_ii = 0; where torch.distributed is initialised the loss is that of all W ranks, with
statistics of each rank alone and an exact gradient under DistributedDataParallel; N is each rank's
own. (Until 0.1.7 nothing was added up, silently: the loss was each rank's own.)

`VCRegLoss` is std_coeff * v / 2 + cov_coeff * c of one view, as in
`adapters/variance_covariance.py`, and `VICRegLoss` sim_coeff * i and that of both views, which its
module `vcreg_loss` computes: variances and covariances are those of the samples of all ranks where
torch.distributed is initialised, with a gradient that DistributedDataParallel averages to the exact
one.

Differs: one sample is refused, where the original's loss is NaN. The loss of half-precision
embeddings is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from ..losses.vicreg import vicreg_loss
from .batch_normalised import check_matrices, joined_ranks, refuse
from .standardised import deviation_loss
from .variance_covariance import loss_of_gathered

__all__ = ["BarlowTwinsLoss", "VCRegLoss", "VICRegLoss"]

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


class VCRegLoss(nn.Module):
    """stable-pretraining's variance-covariance regulariser, computed by barlow_fast.

    Args:
        std_coeff, cov_coeff: weights of half the variance term and of covariance.
        epsilon: added to the variance, inside the root.
    """

    def __init__(self, std_coeff: float = 25, cov_coeff: float = 1, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.std_coeff = std_coeff
        self.cov_coeff = cov_coeff
        self.epsilon = epsilon

    def weights(self) -> tuple[float, float]:
        """Of the mean variance term of two views, and of covariance."""
        return as_number("std_coeff", self.std_coeff), as_number("cov_coeff", self.cov_coeff)

    def forward(self, z_i: Tensor) -> Tensor:
        """The scalar loss of an (N, D) batch of embeddings.

        Raises:
            ValueError: an input that is not (N, D), or one sample of all ranks.
        """
        if z_i.dim() != 2:
            problem = ValueError(f"z_i must be (N, D), got shape {tuple(z_i.shape)}")
            refuse(problem, joined_ranks())
        std, cov = self.weights()
        return vicreg_loss(
            z_i, None, 0.0, std / 2, cov, eps=self.epsilon, process_group=joined_ranks()
        )


class VICRegLoss(nn.Module):
    """stable-pretraining's VICReg loss, computed by barlow_fast.

    Args:
        sim_coeff, std_coeff, cov_coeff: weights of invariance, variance and covariance; the last
            two are attributes of the module `vcreg_loss`.
        epsilon: added to the variance, inside the root.
    """

    def __init__(
        self,
        sim_coeff: float = 25,
        std_coeff: float = 25,
        cov_coeff: float = 1,
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        self.sim_coeff = sim_coeff
        self.vcreg_loss = VCRegLoss(std_coeff, cov_coeff, epsilon)

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of embeddings.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different shapes.
        """
        check_matrices(z_i, z_j, ("z_i", "z_j"), RuntimeError, joined_ranks())
        weights = (as_number("sim_coeff", self.sim_coeff), *self.vcreg_loss.weights())
        return loss_of_gathered(z_i, z_j, weights, self.vcreg_loss.epsilon)
