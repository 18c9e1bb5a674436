"""The mathematics of the authors' code in eager torch.

    C = norm(z_a)^T norm(z_b) / N      one BatchNorm1d without affine parameters for both views
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

As the authors do, C is divided, shifted on its diagonal and squared in place, and the off-diagonal
elements are reached by dropping the last element and reading the rest as (D - 1) rows of D + 1,
whose first column is the diagonal.

This stands for mmpretrain too (and mmselfsup before it), whose head has the same norm and whose
loss the same operations in the same order, and for FFCV-SSL: on one device they differ in names
alone, so files of their own would time the same code again. lightly's class differs in keeping no
running statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.peers.peer import LAMBD, Loss, Peer


def batch_norm(d: int, dtype: torch.dtype) -> nn.BatchNorm1d:
    """Half-precision inputs keep float32 statistics, as in a float32 model under autocast."""
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    return nn.BatchNorm1d(d, affine=False, dtype=statistics)


def off_diagonal(c: Tensor) -> Tensor:
    """The elements off the diagonal."""
    d = c.shape[0]
    return c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def squared_in_place(c: Tensor) -> Tensor:
    """Both terms of the loss, squared in place."""
    on_diagonal = c.diagonal().add_(-1).pow_(2).sum()
    return on_diagonal + LAMBD * off_diagonal(c).pow_(2).sum()


class OfficialLoss(nn.Module):
    """The loss as a module that owns the normalisation, running statistics included."""

    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = batch_norm(d, dtype)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The scalar loss of two (N, D) views."""
        return squared_in_place((self.norm(z_a).T @ self.norm(z_b)).div_(len(z_a)))


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """A fresh module in training mode."""
    return OfficialLoss(d, dtype)


PEERS = (
    Peer(
        name="official",
        title="official",
        source="the formulation of the authors' code (Zbontar et al., ICML 2021), which is also "
        "mmpretrain's and FFCV-SSL's, in plain torch",
        build=build,
    ),
)
