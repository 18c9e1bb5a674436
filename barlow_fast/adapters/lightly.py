"""`BarlowTwinsLoss` of lightly (`lightly.loss.BarlowTwinsLoss`), tested with lightly 1.5.26 to 1.6.

    z_hat = (z - mean) / sqrt(var + 1e-5)            per column, biased variance, this rank's rows
    C_r = z_hat_a^T z_hat_b / N                      C = C_r, or the mean of all ranks' C_r
    loss = sum_i (C_ii - 1)^2 + lambda_param * sum over i != j of C_ij^2

Kept: statistics are those of each rank alone, whatever `gather_distributed` says; a dead (constant)
feature has C_ii = 0; without `gather_distributed` each rank has a loss of its own. The gradient of
the gathered loss is exact under DistributedDataParallel, as in lightly since 1.5.26; before, it
was 1/W of that (`gradient="official"`).

Differs: with `gather_distributed` and ranks that have different numbers of samples, samples count
alike; lightly takes the plain mean of the ranks' matrices, in which they do not. The loss of
half-precision embeddings is float32.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from .batch_normalised import check_matrices, joined_ranks, loss_of

__all__ = ["BarlowTwinsLoss"]


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
        if gather_distributed and not dist.is_available():
            raise ValueError(
                "gather_distributed is True but torch.distributed is not available. Please set "
                "gather_distributed=False or install a torch version with distributed support."
            )
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
