"""`BarlowTwinsLoss` of catalyst (`catalyst.contrib.losses.BarlowTwinsLoss`), tested with 22.4.

    u = (z - mean) / sqrt(var + eps)                 per column, unbiased variance
    C = u_left^T u_right / N
    loss = sum_i (C_ii - 1)^2 + offdiag_lambda * sum over i != j of C_ij^2

Kept: `offdiag_lambda` is 1 by default, not the paper's 0.0051; the unbiased variance over a
division by N caps the diagonal at (N - 1) / N; a dead (constant) feature has C_ii = 0; each process
has a loss of its own.

Differs: the loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import as_number
from .standardised import deviation_loss

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(nn.Module):
    """catalyst's loss, computed by barlow_fast.

    Args:
        offdiag_lambda: weight of the off-diagonal term.
        eps: added to the variance.
    """

    def __init__(self, offdiag_lambda: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__()
        self.offdiag_lambda = offdiag_lambda
        self.eps = eps

    def forward(self, embeddings_left: Tensor, embeddings_right: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of embeddings.

        Raises:
            ValueError: inputs that are not (N, D), different shapes, N = 1.
        """
        left, right = embeddings_left.shape, embeddings_right.shape
        for side, shape in (("Left", left), ("Right", right)):
            if len(shape) != 2:
                raise ValueError(
                    f"{side} shape should be (batch_size, feature_dim), got {tuple(shape)}"
                )
        if left[0] == 1:
            raise ValueError(
                "Batch size should be >= 2, got 1 (a last batch of one? use drop_last=True)"
            )
        if left != right:
            raise ValueError(f"Shapes should be equal, got {tuple(left)} and {tuple(right)}")
        return deviation_loss(
            embeddings_left,
            embeddings_right,
            as_number("offdiag_lambda", self.offdiag_lambda),
            eps_inside=as_number("eps", self.eps),
        )
