"""Products of standardised matrices whose results do not fit in memory, tile by tile in float64.

With X and Y standardised, K = X X^T and L = Y Y^T,

    ||X^T Y||_F^2 = <K, L>

so that sums over the squares of a D1 x D2 matrix are sums over pairs of samples where there are
fewer of these (kernels/README.md, equation 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels import tiles
from .columns import PRECISION, Columns

# Of `memory`: bytes of a float64 value times the number of equal parts that it is divided into. A
# product takes up to four tiles of samples, and three copies of each of two blocks.
PARTS = 128


def feature_tiles(
    x: Columns, y: Columns, memory: int, lower: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """(i, j, tile): X^T Y from row i and column j on, by tiles; with `lower` those on and below the
    diagonal.

    Reads x once, and y once for every block of x.
    """
    side = min(math.isqrt(memory // PARTS), max(x.d, y.d))
    samples = max(1, memory // (PARTS * side))
    for i, left in x.blocks(side):
        for j, right in y.blocks(side):
            if lower and j > i:
                continue
            tile = left.new_zeros((left.shape[1], right.shape[1]), dtype=torch.float64)
            for part, other in zip(left.split(samples), right.split(samples), strict=True):
                tile.addmm_(_standardised(x, part, i).T, _standardised(y, other, j))
            yield i, j, tile


def sum_of_squares(x: Columns, y: Columns, memory: int) -> Tensor:
    """||X^T Y||_F^2 by tiles of features, a scalar; X^T X is computed by half."""
    symmetric = x is y
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, j, tile in feature_tiles(x, y, memory, lower=symmetric):
        total += (2 if symmetric and i != j else 1) * torch.linalg.vecdot(tile, tile).sum()
    return total


def gram_products(x: Columns, y: Columns, memory: int) -> Tensor:
    """(3,): <K, K>, <K, L> and <L, L> by tiles of samples, one tile where N x N is small enough.

    Reads both once for every tile on and below the diagonal.
    """
    side = min(math.isqrt(memory // PARTS), x.n)
    total = torch.zeros(3, dtype=torch.float64, device=x.device)
    for i in range(0, x.n, side):
        for j in range(0, i + 1, side):
            if i == j:
                left, right = (gram(each, memory, i, side).flatten(1) for each in (x, y))
                weights = _weights(len(left), left.device)
            else:
                left, right = (_rectangle(each, memory, i, j, side) for each in (x, y))
                weights = left.new_full((len(left),), 2)
            pairs = ((left, left), (left, right), (right, right))
            total += torch.stack([torch.linalg.vecdot(*pair) @ weights for pair in pairs])
    return total


def gram(x: Columns, memory: int, first: int = 0, samples: int | None = None) -> Tensor:
    """K = X X^T of `samples` samples, as the (T, B, B) tiles of `kernels/tiles.py`. Reads x
    once."""
    samples = samples or x.n
    total = None
    for start, block in x.blocks(max(1, memory // (PARTS * min(samples, x.n)))):
        statistics = x.statistics[:, start : start + block.shape[1]]
        packed = x.kernels.gram_tiles(block[first : first + samples], statistics, PRECISION)
        total = packed if total is None else total.add_(packed)
    return total


def _weights(count: int, device: torch.device) -> Tensor:
    """(count,): how often each packed tile is in the whole matrix."""
    blocks = (math.isqrt(8 * count + 1) - 1) // 2
    rows, columns = tiles.positions(blocks, device)
    return torch.where(rows == columns, 1.0, 2.0).double()


def _rectangle(x: Columns, memory: int, i: int, j: int, side: int) -> Tensor:
    """K of samples from i and from j on."""
    total = None
    for start, block in x.blocks(max(1, memory // (PARTS * side))):
        left, right = (_standardised(x, block[at : at + side], start) for at in (i, j))
        total = left @ right.T if total is None else total.addmm_(left, right.T)
    return total


def _standardised(x: Columns, block: Tensor, start: int) -> Tensor:
    """Some samples, in float64, of a block of X whose first column is `start`."""
    statistics = x.statistics[:, start : start + block.shape[1]]
    return x.kernels.standardise(block, *statistics, PRECISION)


def row_squares(x: Columns, memory: int) -> Tensor:
    """(N,): the diagonal of K."""
    total = torch.zeros(x.n, dtype=torch.float64, device=x.device)
    for start, block in x.blocks(max(1, memory // (PARTS * x.n))):
        hat = _standardised(x, block, start)
        total += torch.linalg.vecdot(hat, hat)
    return total
