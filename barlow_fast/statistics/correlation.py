"""The summary of a cross-correlation matrix that does not fit in memory.

    z_hat = (z - mean) / sqrt(var + eps)              per column, biased variance
    C = z_hat_a^T z_hat_b / N,      sum over i, j of C_ij^2 = <K_a, K_b> / N^2,  K = z_hat z_hat^T

C as in Zbontar et al., *Barlow Twins* (ICML 2021), equation 2; the identity is derived in
kernels/README.md, equation 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_number
from .columns import MEMORY, Columns, Matrix, check_memory, measure
from .products import feature_tiles, gram_products


class CrossCorrelationSummary(NamedTuple):
    """What C looks like, in Python numbers."""

    diagonal_mean: float  # of C_ii: 1 where both views agree
    diagonal_min: float
    diagonal_max: float
    off_diagonal_rms: float  # root mean square of C_ij over i != j; 0 for D = 1
    largest: float | None  # the C_ij, i != j, of largest magnitude; None unless requested
    largest_position: tuple[int, int] | None  # its (i, j); None too where all are 0
    dead_a: int  # columns of z_a without variance: their row of C is zero
    dead_b: int  # columns of z_b


@torch.no_grad()
def cross_correlation_summary(
    z_a: Matrix, z_b: Matrix, *, eps: float = 1e-5, largest: bool = False, memory: int = MEMORY
) -> CrossCorrelationSummary:
    """The summary of C, in bounded memory.

    For N <= D the sum of squares is an inner product of N x N matrices, and no element of C is
    computed: 2 N^2 D operations. Otherwise, and with `largest`, C is computed tile by tile, 2 N D^2
    operations. Both inputs are read once for their moments, and once for every pair of tiles of
    samples, or z_b for every block of columns of z_a.

    Args:
        z_a, z_b: embeddings of the two views, of one shape: see `barlow_fast.statistics`. Blocks of
            both must have the same widths.
        eps: added to the variance, inside the root, as in the loss; 0 for correlations proper.
        largest: also find the off-diagonal element of the largest magnitude.
        memory: bound on the bytes of blocks and tiles, at least 2**20.

    Returns:
        `CrossCorrelationSummary`. A column is dead if its deviation is below what its mean can be
        resolved to in the inputs' dtype, in float32 for half precision.

    Raises:
        TypeError: inputs that are no floating point tensors or blocks of these; an iterator.
        ValueError: shapes, blocks or devices that differ; N < 2, D < 1, values that are not finite;
            options out of range.
    """
    check_number("eps", eps, at_least=0)
    check_memory(memory)
    a, b = Columns("z_a", z_a), Columns("z_b", z_b)
    moments, resolution = measure(a, b, memory)
    dead = _standardise(a, b, moments, eps, min(resolution, torch.finfo(torch.float32).eps))
    diagonal = moments[4] / a.n * a.statistics[1] * b.statistics[1]
    extreme: tuple[float | None, tuple[int, int] | None] = None, None
    if largest or a.n > a.d:
        squares, extreme = _by_tiles(a, b, memory, largest)
    else:
        squares = gram_products(a, b, memory)[1] / a.n**2 - diagonal.square().sum()
    off_diagonal = (squares.clamp_min(0) / max(1, a.d * (a.d - 1))).sqrt()
    return CrossCorrelationSummary(
        diagonal.mean().item(), diagonal.min().item(), diagonal.max().item(), off_diagonal.item(),
        *extreme, *dead,
    )  # fmt: skip


def _standardise(
    a: Columns, b: Columns, moments: Tensor, eps: float, resolution: float
) -> tuple[int, int]:
    """Sets the statistics of both; returns their numbers of dead columns, which become zero."""
    dead = []
    for view, each in enumerate((a, b)):
        mean, variance = moments[view], moments[2 + view].clamp_min(0) / each.n
        constant = variance.sqrt() <= resolution * mean.abs()
        rstd = (variance + eps).rsqrt().masked_fill(constant, 0)
        each.statistics = torch.stack((mean, rstd, torch.zeros_like(mean)))
        dead.append(int(constant.sum()))
    return dead[0], dead[1]


def _by_tiles(
    a: Columns, b: Columns, memory: int, largest: bool
) -> tuple[Tensor, tuple[float | None, tuple[int, int] | None]]:
    """(sum of the squares off the diagonal, (the largest, its position)) from C itself."""
    squares = torch.zeros((), dtype=torch.float64, device=a.device)
    found, position = 0.0, None
    for i, j, tile in feature_tiles(a, b, memory):
        tile.div_(a.n)
        if -tile.shape[0] < i - j < tile.shape[1]:
            tile.diagonal(i - j).zero_()
        squares += torch.linalg.vecdot(tile, tile).sum()
        if largest:
            value, row, column = _largest(tile)
            if abs(value) > abs(found):
                found, position = value, (i + row, j + column)
    return squares, (found, position) if largest else (None, None)


def _largest(tile: Tensor) -> tuple[float, int, int]:
    """(value, row, column) of the element of the largest magnitude."""
    flat = tile.view(-1)
    ends = torch.stack((flat.argmax(), flat.argmin()))
    values = flat[ends]
    at = int(values.abs().argmax())
    return (values[at].item(), *divmod(int(ends[at]), tile.shape[1]))
