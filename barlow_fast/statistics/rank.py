"""The effective rank of a matrix by way of the smaller one of its Gram matrices.

With the singular values s_k of Z (N, D), whose squares are the eigenvalues of Z Z^T and Z^T Z:

    p_k = s_k / sum s,       exp(-sum p_k log p_k)
        Roy and Vetterli, *The Effective Rank: A Measure of Effective Dimensionality*, EUSIPCO 2007
    p_k = s_k / sum s + 1e-7, the same expression
        Garrido et al., *RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
        Representations by Their Rank*, ICML 2023, of embeddings that are not centred
    (sum s^2)^2 / sum s^4
        the participation ratio of the variances; Gao et al., *A Theory of Multineuronal
        Dimensionality, Dynamics and Measurement*, 2017
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import tiles
from .columns import MEMORY, Columns, Matrix, check_memory, measure
from .products import feature_tiles, gram

RANK_ME_EPS = 1e-7


class EffectiveRank(NamedTuple):
    """How many directions a matrix uses, each from 1 (one direction) to min(N, D) (all alike), and
    0 where all its rows are one vector."""

    entropy: float  # Roy and Vetterli's
    rank_me: float  # Garrido et al.'s
    participation: float  # participation ratio
    singular_values: Tensor  # (min(N, D),) float64 on the device of z, from large to small


def effective_rank(z: Matrix, *, centre: bool = True, memory: int = MEMORY) -> EffectiveRank:
    """Three effective ranks of one matrix, and its singular values.

    Arguments, cost and errors are those of `singular_values`. RankMe is defined without centring:
    pass `centre=False` for published values of it.
    """
    values = singular_values(z, centre=centre, memory=memory)
    squares = values.square()
    spread = squares.square().sum()
    participation = (squares.sum().square() / spread).item() if spread > 0 else 0.0
    return EffectiveRank(
        entropy_rank(values), entropy_rank(values, RANK_ME_EPS), participation, values
    )


def entropy_rank(values: Tensor, eps: float = 0.0) -> float:
    """exp of the entropy of the singular values as shares of their sum, `eps` added to each; 0
    where all are 0.

    Args:
        values: (K,) floating point, at least 0.
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    return torch.special.entr(values / total + eps).sum().exp().item()


@torch.no_grad()
def singular_values(z: Matrix, *, centre: bool = True, memory: int = MEMORY) -> Tensor:
    """The singular values of a matrix, from large to small: how much each direction is in use.

    By way of the smaller Gram matrix, which is twenty times faster than a decomposition of the
    whole: N D min(N, D) operations and the eigenvalues of that matrix. Values below about 1e-6 of
    the largest, which are lost by it, are 0.

    Args:
        z: see `barlow_fast.statistics`.
        centre: subtract the mean of every column first.
        memory: bound on the bytes of blocks and tiles, at least 2**20, besides the Gram matrix: 8
            min(N, D)^2 bytes, twice for its eigenvalues.

    Returns:
        (min(N, D),) float64 on the device of z. All 0 where the columns, centred, differ from 0 by
        no more than the rounding of the inputs' dtype.

    Raises:
        TypeError, ValueError: as `cross_correlation_summary`.
    """
    check_memory(memory)
    x = Columns("z", z)
    moments, resolution = measure(x, x, memory)
    mean = moments[0] if centre else torch.zeros_like(moments[0])
    x.statistics = torch.stack((mean, torch.ones_like(mean), torch.zeros_like(mean)))
    size = min(x.n, x.d)
    if centre and is_constant(moments, x.n, resolution):
        return moments.new_zeros(size)
    if x.n <= x.d:
        matrix = tiles.unpack(gram(x, memory), x.n)
    else:
        matrix = moments.new_zeros((x.d, x.d))
        for i, j, tile in feature_tiles(x, x, memory, lower=True):
            matrix[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
    with _one_thread():
        found = torch.linalg.eigvalsh(matrix).flip(0)
    lost = size * torch.finfo(torch.float64).eps * found[0]
    return found.masked_fill(found <= lost, 0).sqrt()


def is_constant(moments: Tensor, n: int, resolution: float) -> bool:
    """Whether all rows are one vector but for rounding: that of the inputs, and where they are
    float64 that of the mean."""
    rounding = max(resolution, 8 * torch.finfo(torch.float64).eps)
    deviation = moments[2].clamp_min(0).sum()
    return bool(deviation <= rounding**2 * (deviation + n * moments[0].square().sum()))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Of a CPU. A decomposition this small gains nothing by a second one, and where cores are busy
    threads that wait for one another take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
