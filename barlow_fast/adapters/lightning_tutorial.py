"""`BarlowTwinsLoss` of the Lightning tutorial *Barlow Twins* (Lightning-AI/tutorials, 1581765).

    u = (z - mean) / std                             per column, unbiased std
    C = u_1^T u_2 / batch_size
    loss = sum_i (C_ii - 1)^2 + lambda_coeff * sum over i != j of C_ij^2

Kept: the divisor is the constructor's `batch_size`, also for a shorter last batch, whose C is then
too small; the unbiased std caps the diagonal at (N - 1) / N; a dead (constant) feature gives NaN
(`dead_features="zero"`: C_ii = 0 and no gradient); each process has a loss of its own. `z_dim` is
kept and not used.

Differs: one sample is refused; the tutorial's loss of it is NaN. A feature that is constant but for
rounding counts as dead, where the tutorial's code divides noise by noise. The loss of
half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import DeadFeatures, as_number
from .batch_normalised import check_matrices
from .standardised import deviation_loss

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(nn.Module):
    """The tutorial's loss, computed by barlow_fast.

    Args:
        batch_size: what C is divided by.
        lambda_coeff: weight of the off-diagonal term.
        z_dim: kept as an attribute.
        dead_features: 'nan' or 'zero', see above.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    dead_features: DeadFeatures = "nan"

    def __init__(
        self,
        batch_size: int,
        lambda_coeff: float = 5e-3,
        z_dim: int = 128,
        *,
        dead_features: DeadFeatures = "nan",
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.batch_size = batch_size
        self.lambda_coeff = lambda_coeff
        self.dead_features = dead_features

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of projections.

        Raises:
            ValueError: inputs that are not (N, D), or N = 1.
            RuntimeError: different N.
            AssertionError: different D.
        """
        check_matrices(z1, z2, ("z1", "z2"), AssertionError)
        return deviation_loss(
            z1,
            z2,
            as_number("lambda_coeff", self.lambda_coeff),
            divisor=self.batch_size,
            dead_features=self.dead_features,
        )
