"""`BarlowTwinsLoss`, `VICRegLoss`, `FroSSLLoss` of lightly (`lightly.loss`), tested with lightly
1.5.26 to 1.6.

    z_hat = (z - mean) / sqrt(var + 1e-5)            per column, biased variance, this rank's rows
    C_r = z_hat_a^T z_hat_b / N                      C = C_r, or the mean of all ranks' C_r
    loss = sum_i (C_ii - 1)^2 + lambda_param * sum over i != j of C_ij^2

Kept: statistics are those of each rank alone, whatever `gather_distributed` says; a dead (constant)
feature has C_ii = 0; without `gather_distributed` each rank has a loss of its own. The gradient of
the gathered loss is exact under DistributedDataParallel, as in lightly since 1.5.26; before, it
was 1/W of that (`gradient="official"`).

`VICRegLoss` is lambda_param * i + mu_param * v + nu_param * c of `adapters/variance_covariance.py`
with gathered v and c where `gather_distributed`; of (B, ..., D) tensors it is the mean over the
positions in between, each with statistics over the B samples. `covariance_loss` is c of one view:
`VICRegLLoss`, which lightly keeps, takes both, so that after `barlow_fast.patch` neither its global
nor its local part builds D x D matrices where B is the smaller side.

`FroSSLLoss` is `frossl_loss` with V times its invariance term: lightly adds up the mean squared
distances of the views. It takes no gradient through the traces, which have none: columns of length
1 sum to D.

Differs: with `gather_distributed` and ranks that have different numbers of samples, samples count
alike; lightly takes the plain mean of the ranks' matrices, in which they do not, and cannot gather
for VICReg. FroSSL of one sample is refused, and a column shorter than 1e-12, but not zero, has a
gradient through its view's trace. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from ..losses.frossl import frossl_loss
from ..losses.vicreg import vicreg_loss
from .batch_normalised import check_matrices, joined_ranks, loss_of, refuse
from .variance_covariance import loss_of_gathered

__all__ = ["BarlowTwinsLoss", "FroSSLLoss", "VICRegLoss", "covariance_loss"]


def _check_gathering(gather_distributed: bool) -> None:
    if gather_distributed and not dist.is_available():
        raise ValueError(
            "gather_distributed is True but torch.distributed is not available. Please set "
            "gather_distributed=False or install a torch version with distributed support."
        )


class BarlowTwinsLoss(nn.Module):
    """lightly's loss, computed by barlow_fast.

    Args:
        lambda_param: weight of the off-diagonal term.
        gather_distributed: the loss of all ranks' samples instead of each rank's own, where
            torch.distributed is initialised.
        gradient: 'exact', or 'official' for the 1/W of lightly before 1.5.26; only with
            `gather_distributed`.

    Raises:
        ValueError: `gather_distributed` where torch has no torch.distributed.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "exact"

    def __init__(
        self,
        lambda_param: float = 5e-3,
        gather_distributed: bool = False,
        *,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__()
        _check_gathering(gather_distributed)
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed
        self.gradient = gradient

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of projections.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different N.
            AssertionError: different D.
        """
        ranks = joined_ranks() if self.gather_distributed else None
        check_matrices(z_a, z_b, ("z_a", "z_b"), AssertionError, ranks)
        return loss_of(
            z_a,
            z_b,
            as_number("lambda_param", self.lambda_param),
            process_group=ranks,
            gradient=self.gradient,
        )


class VICRegLoss(nn.Module):
    """lightly's VICReg loss, computed by barlow_fast.

    Args:
        lambda_param, mu_param, nu_param: weights of invariance, variance and covariance.
        gather_distributed: variances and covariances over the samples of all ranks, where
            torch.distributed is initialised.
        eps: added to the variance, inside the root.

    Raises:
        ValueError: `gather_distributed` where torch has no torch.distributed.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ) -> None:
        super().__init__()
        _check_gathering(gather_distributed)
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.gather_distributed = gather_distributed
        self.eps = eps

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The scalar loss of two (B, ..., D) batches of embeddings.

        Raises:
            AssertionError: B = 1, or different shapes.
        """
        _check_batches(z_a, z_b, joined_ranks() if self.gather_distributed else None)
        names = ("lambda_param", "mu_param", "nu_param")
        weights = tuple(as_number(name, getattr(self, name)) for name in names)
        losses = [
            loss_of_gathered(*pair, weights, self.eps, self.gather_distributed)
            for pair in zip(_positions(z_a), _positions(z_b), strict=True)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _check_batches(z_a: Tensor, z_b: Tensor, ranks: str | None) -> None:
    if min(z_a.shape[0], z_b.shape[0]) < 2:
        sizes = f"{z_a.shape[0]} and {z_b.shape[0]}"
        refuse(AssertionError(f"z_a and z_b must have batch size > 1 but found {sizes}"), ranks)
    if z_a.shape != z_b.shape:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        refuse(AssertionError(f"z_a and z_b must have same shape but found {shapes}."), ranks)


def _positions(z: Tensor) -> tuple[Tensor, ...]:
    """The (B, D) embeddings at each position of (B, ..., D)."""
    return (z,) if z.dim() < 3 else z.flatten(1, -2).unbind(1)


def covariance_loss(x: Tensor) -> Tensor:
    """The sum over i != j of cov_ij^2 / D of one (B, ..., D) batch, of N - 1; the mean over the
    positions in between. A scalar."""
    losses = [vicreg_loss(z, None, 0.0, 0.0, 1.0) for z in _positions(x)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


class FroSSLLoss(nn.Module):
    """lightly's FroSSL loss, computed by barlow_fast.

    Args:
        invariance_weight: weight of the invariance term.
    """

    def __init__(self, invariance_weight: float = 1.0) -> None:
        super().__init__()
        self.invariance_weight = invariance_weight

    def forward(self, z_views: Sequence[Tensor]) -> Tensor:
        """The scalar loss of two or more (N, D) views.

        Raises:
            ValueError: fewer than two views, views of different shapes, or N = 1.
        """
        if len(z_views) < 2:
            raise ValueError(f"z_views must contain at least two views but found {len(z_views)}.")
        weight = as_number("invariance_weight", self.invariance_weight)
        return frossl_loss(list(z_views), invariance=weight * len(z_views))
