"""`BarlowTwinsCriterion` and `BarlowTwinsLoss` of VISSL (`vissl.losses.barlow_twins_loss`), tested
with VISSL 0.1.6.

    z = both views' embeddings, one after the other: (2N, D)
    u = (z - mean) / sqrt(var + 1e-5)                per column, biased variance, both views at
                                                     once and all ranks together
    C = u_a^T u_b / N, the mean of all ranks'
    loss = scale_loss * (sum_i (C_ii - 1)^2 + lambda_ * sum over i != j of C_ij^2)

Kept: the two views share one mean and one variance, so that a difference of their means counts; the
matrices and the statistics are plain means over ranks, forward and backward; the matrix is added up
without autograd's knowledge, so that DistributedDataParallel's gradient is 1/W of the exact one
(`gradient="exact"` for that one); a dead (constant) feature has C_ii = 0.

Differs: the variance is summed about the mean, where VISSL takes E[z^2] - E[z]^2, which loses all
digits for means far larger than the deviation. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

import pprint
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from .batch_normalised import EPS, joined_ranks, refuse
from .standardised import shared_norm_loss

__all__ = ["BarlowTwinsCriterion", "BarlowTwinsLoss"]


class BarlowTwinsCriterion(nn.Module):
    """VISSL's criterion, computed by barlow_fast.

    Args:
        lambda_: weight of the off-diagonal term.
        scale_loss: factor on the whole loss.
        embedding_dim: D.
        gradient: 'official', VISSL's 1/W, or 'exact'.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "official"

    def __init__(
        self,
        lambda_: float,
        scale_loss: float,
        embedding_dim: int,
        *,
        gradient: Gradient = "official",
    ) -> None:
        super().__init__()
        self.lambda_ = lambda_
        self.scale_loss = scale_loss
        self.embedding_dim = embedding_dim
        self.num_copies = 2
        self.eps = EPS
        self.gradient = gradient

    def forward(self, embedding: Tensor) -> Tensor:
        """The scalar loss of (2N, D) embeddings: N of the first view, then N of the second.

        Raises:
            AssertionError: another shape, or an odd number of rows.
        """
        problem = None
        if embedding.ndim != 2 or embedding.shape[1] != int(self.embedding_dim):
            problem = (
                f"Incorrect embedding shape: {tuple(embedding.shape)} but expected "
                f"Nx{self.embedding_dim}"
            )
        elif embedding.shape[0] % self.num_copies or not embedding.shape[0]:
            problem = (
                f"Batch size {embedding.shape[0]} should be divisible by num_copies "
                f"({self.num_copies}) and more than 0"
            )
        if problem is not None:
            refuse(AssertionError(problem), joined_ranks())
        lambd = as_number("lambda_", self.lambda_)
        scale = as_number("scale_loss", self.scale_loss)
        if joined_ranks() is not None:
            return _of_all_ranks(embedding, lambd, scale, self.eps, self.gradient)
        z_a, z_b = embedding.chunk(2)
        return shared_norm_loss(z_a, z_b, lambd, eps=self.eps, scale=scale)

    def __repr__(self) -> str:
        return pprint.pformat(
            {
                "name": self._get_name(),
                "lambda_": self.lambda_,
                "scale_loss": self.scale_loss,
                "embedding_dim": self.embedding_dim,
                "num_copies": self.num_copies,
            },
            indent=2,
        )


class BarlowTwinsLoss(nn.Module):
    """VISSL's loss from its configuration.

    Args:
        loss_config: has the attributes `lambda_`, `scale_loss` and `embedding_dim`.
    """

    def __init__(self, loss_config: Any) -> None:
        super().__init__()
        self.loss_config = loss_config
        self.bt_criterion = BarlowTwinsCriterion(
            lambda_=loss_config.lambda_,
            scale_loss=loss_config.scale_loss,
            embedding_dim=loss_config.embedding_dim,
        )

    @classmethod
    def from_config(cls, loss_config: Any) -> BarlowTwinsLoss:
        """The loss that `loss_config` describes."""
        return cls(loss_config)

    def forward(self, output: Tensor, target: Any) -> Tensor:
        """The criterion of `output`; `target` is not used."""
        return self.bt_criterion(output)

    def __repr__(self) -> str:
        return pprint.pformat(
            {
                "name": self._get_name(),
                "lambda_": self.loss_config.lambda_,
                "scale_loss": self.loss_config.scale_loss,
                "embedding_dim": self.loss_config.embedding_dim,
            },
            indent=2,
        )


# Exchanges between processes stay out of compiled graphs, where they could change their order.
@torch.compiler.disable
def _of_all_ranks(
    embedding: Tensor, lambd: float, scale: float, eps: float, gradient: str
) -> Tensor:
    from . import across_ranks

    group, rows = across_ranks.agree(embedding, embedding, gradient, "vissl", lambd, scale)
    z = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    u = _SharedNorm.apply(z, eps, group)
    n = z.shape[0] // 2
    u_a, u_b = (u * (n * group.size) ** -0.5).chunk(2)
    return across_ranks.loss_across_ranks(
        u_a, u_b, lambd, rows=tuple(count // 2 for count in rows), group=group, gradient=gradient,
        scale=scale,
    )  # fmt: skip


class _SharedNorm(torch.autograd.Function):
    """(z - mean) / sqrt(var + eps) with the means over ranks of their means and squares.

        dL/dz = (g - mean(g) - u mean(g u)) / sqrt(var + eps)

    where mean is that over all ranks' rows: z is in the loss of every rank.
    """

    @staticmethod
    def forward(ctx, z: Tensor, eps: float, group: Any) -> Tensor:
        from ..distributed.collectives import total

        means = z.mean(0, dtype=torch.float64)
        mean = total("statistics", means, group) / group.size
        # About the mean of all: nothing cancels.
        centred = z - mean.to(z.dtype)
        variance = total("statistics", centred.square().mean(0).double(), group) / group.size
        rstd = (variance + eps).rsqrt().to(z.dtype)
        u = centred * rstd
        ctx.save_for_backward(u, rstd)
        ctx.group = group
        return u

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from ..distributed.collectives import total

        u, rstd = ctx.saved_tensors
        sums = torch.stack((grad.mean(0), (grad * u).mean(0))).double()
        mean, projection = (total("statistics", sums, ctx.group) / ctx.group.size).to(u.dtype)
        return (grad - mean - u * projection) * rstd, None, None
