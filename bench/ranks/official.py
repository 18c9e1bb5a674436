"""The authors' formulation on several ranks: C is summed over ranks by one all-reduce.

    C_r = z_hat_a^T z_hat_b / N over own rows, standardised over all rows;  C = sum of all C_r
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2
    dL/dz_hat_a = z_hat_b (dL/dC)^T / N      dL/dz_hat_b = z_hat_a (dL/dC) / N      own rows

Written from these formulas, not from the authors' code, and generous to it: backward is by hand and
C is the only D x D matrix there ever is. It is summed, and turned into dL/dC, in place; its squares
are one read. Under autograd the authors' in-place code holds four such matrices and passes over
them many times, and four ranks of that would not fit into this benchmark's machine at D = 16384.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bench.peers import LAMBD

EPS = 1e-5


def wire_bytes(d: int, ranks: int, itemsize: int) -> int:
    """What a rank sends in a ring all-reduce of a D x D matrix; the statistics are left out."""
    return 2 * (ranks - 1) * d * d * itemsize // ranks


def standardise(z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(z_hat, rstd) with mean and biased variance over the n rows of all ranks."""
    total = z.sum(0)
    dist.all_reduce(total)
    hat = z - total / n
    squares = torch.linalg.vecdot(hat, hat, dim=0)
    dist.all_reduce(squares)
    rstd = (squares / n + EPS).rsqrt()
    return hat.mul_(rstd), rstd


class AllReducedCorrelation(torch.autograd.Function):
    """The loss of the rows of all ranks; each rank's gradient is that of its own rows."""

    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, n: int) -> Tensor:
        (hat_a, rstd_a), (hat_b, rstd_b) = (standardise(z, n) for z in (z_a, z_b))
        c = (hat_a / n).T @ hat_b
        dist.all_reduce(c)
        diagonal = c.diagonal().clone()
        squares = torch.linalg.vecdot(c, c).sum() - diagonal.square().sum()
        c.mul_(2 * LAMBD).diagonal().copy_(2 * (diagonal - 1))  # dL/dC
        ctx.save_for_backward(hat_a, hat_b, rstd_a, rstd_b, c)
        ctx.n = n
        return (diagonal - 1).square().sum() + LAMBD * squares

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hat_a, hat_b, rstd_a, rstd_b, c = ctx.saved_tensors
        scale = grad / ctx.n
        grad_a = through_norm((hat_b @ c.T).mul_(scale), hat_a, rstd_a, ctx.n)
        grad_b = through_norm((hat_a @ c).mul_(scale), hat_b, rstd_b, ctx.n)
        return grad_a, grad_b, None


def through_norm(grad: Tensor, hat: Tensor, rstd: Tensor, n: int) -> Tensor:
    """dL/dz from dL/dz_hat, whose mean over all rows is zero: columns of z_hat sum to zero."""
    projection = torch.linalg.vecdot(grad, hat, dim=0)
    dist.all_reduce(projection)
    return grad.addcmul_(hat, projection / n, value=-1).mul_(rstd)
