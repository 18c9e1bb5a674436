"""`BarlowTwinsLoss` of IgorSusmelj/barlowtwins (`loss.py`, d6e3530).

    u = (z - mean) / std                             per column, unbiased std
    C = u_a^T u_b / N
    loss = sum_i (C_ii - 1)^2 + lambda_param * sum over i != j of C_ij^2

Kept: the unbiased std over a division by N caps the diagonal at (N - 1) / N; a dead (constant)
feature gives NaN (`dead_features="zero"`: C_ii = 0 and no gradient); each process has a loss of its
own. `device` is kept and not used: the loss is computed where the embeddings are.

Differs: one sample is refused, where the original's loss is NaN. A feature that is constant but for
rounding counts as dead. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import DeadFeatures, as_number
from .batch_normalised import check_matrices
from .standardised import deviation_loss

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(nn.Module):
    """That repository's loss, computed by barlow_fast.

    Args:
        device: kept as an attribute.
        lambda_param: weight of the off-diagonal term.
        dead_features: 'nan' or 'zero', see above.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    dead_features: DeadFeatures = "nan"

    def __init__(
        self,
        device: torch.device | str,
        lambda_param: float = 5e-3,
        *,
        dead_features: DeadFeatures = "nan",
    ) -> None:
        super().__init__()
        self.lambda_param = lambda_param
        self.device = device
        self.dead_features = dead_features

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of projections.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different N or D.
        """
        check_matrices(z_a, z_b, ("z_a", "z_b"), RuntimeError)
        return deviation_loss(
            z_a,
            z_b,
            as_number("lambda_param", self.lambda_param),
            dead_features=self.dead_features,
        )
