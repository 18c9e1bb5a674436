"""`BarlowTwinsLoss` of facebookresearch/FFCV-SSL (6458e33).

    C = sum over ranks of bn(z_1)^T bn(z_2) / (batch_size * world_size)
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

The batch norm is the caller's, usually converted to SyncBN. Kept: its buffers move with both views
in each step; the divisor is the constructor's, also for a shorter last batch; the matrix is added
up without autograd's knowledge, so that DistributedDataParallel's gradient is 1/W of the exact one
(`gradient="exact"` for that one); a dead (constant) feature has C_ii = 0.

Differs: the loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Gradient, as_number
from .batch_normalised import check_matrices
from .normalising import loss_with_norm

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(nn.Module):
    """FFCV-SSL's loss, computed by barlow_fast.

    Args:
        bn: `nn.BatchNorm1d(D, affine=False)`, or a synchronised one.
        batch_size: samples of each rank.
        world_size: ranks.
        lambd: weight of the off-diagonal term.
        gradient: 'official', the original's 1/W, or 'exact'.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "official"

    def __init__(
        self,
        bn: nn.Module,
        batch_size: int,
        world_size: int,
        lambd: float = 0.0051,
        *,
        gradient: Gradient = "official",
    ) -> None:
        super().__init__()
        self.bn = bn
        self.batch_size = batch_size
        self.world_size = world_size
        self.lambd = lambd
        self.gradient = gradient

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of projections.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different shapes.
        """
        check_matrices(z1, z2, ("z1", "z2"), RuntimeError)
        return loss_with_norm(
            self.bn,
            z1,
            z2,
            as_number("lambd", self.lambd),
            lambda n: self.batch_size * self.world_size,
            self.gradient,
        )
