"""Linear centred kernel alignment of two representations of the same samples.

    K = X X^T, L = Y Y^T of centred columns
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

Biased, HSIC(K, L) = <K, L> / (N - 1)^2: Kornblith et al., *Similarity of Neural Network
Representations Revisited*, ICML 2019. Unbiased, with p and q the diagonals of K and L,

    HSIC_1(K, L) = [<K, L> - N p.q / (N - 2) + sum(p) sum(q) / ((N - 1) (N - 2))] / (N (N - 3))

which is the estimator of Song et al., *Feature Selection via Dependence Maximization*, JMLR 2012,
equation 5, as Nguyen et al., *Do Wide and Deep Networks Learn the Same Things?*, ICLR 2021, use it.
It does not change when columns are shifted, and centred columns make the rows of K sum to zero: the
sum over a row without its diagonal is then -p_n, which leaves the terms above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .columns import MEMORY, Columns, Matrix, check_devices, check_memory, measure
from .products import gram_products, row_squares, sum_of_squares
from .rank import is_constant


def cka(x: Matrix, y: Matrix, *, unbiased: bool = False, memory: int = MEMORY) -> float:
    """Linear CKA of representations (N, D1) and (N, D2) of the same N samples.

    By tiles of samples for N <= D1 + D2, N^2 (D1 + D2) operations, else by tiles of features, N
    (D1 + D2)^2: neither N x N nor D1 x D2 values are stored beyond `memory`.

    Args:
        x, y: see `barlow_fast.statistics`; their D, dtypes and blocks may differ.
        unbiased: HSIC_1 instead of the biased estimator, which grows with D / N. Needs N >= 4.
        memory: bound on the bytes of blocks and tiles, at least 2**20.

    Returns:
        From 0 to 1; unbiased it may be a little outside. NaN where x or y is the same for all
        samples, and where an unbiased HSIC of x or y with itself is below 0.

    Raises:
        TypeError: inputs that are no floating point tensors or blocks of these; an iterator.
        ValueError: N that differ, N < 2 (unbiased N < 4), other devices, values that are not
            finite; `memory` out of range.
    """
    return _ratio(_hsics(x, y, unbiased, memory))


class MinibatchCKA:
    """CKA of representations that arrive by batches of samples.

        mean HSIC_1(K, L) / sqrt(mean HSIC_1(K, K) mean HSIC_1(L, L)),   means over batches

    Source: Nguyen et al., ICLR 2021, equations 2 and 3. The means estimate what the unbiased CKA of
    all samples estimates; the biased one has no such mean. Batches of 4 and more samples count
    alike.

    Args:
        memory: as `cka`, for each batch.
    """

    def __init__(self, *, memory: int = MEMORY) -> None:
        check_memory(memory)
        self.memory = memory
        self.batches = 0
        self._totals: Tensor | None = None

    def update(self, x: Matrix, y: Matrix) -> None:
        """Adds one batch of representations; arguments and errors are those of `cka`."""
        found = _hsics(x, y, True, self.memory)
        self._totals = found if self._totals is None else self._totals + found
        self.batches += 1

    def compute(self) -> float:
        """The CKA of all batches since the beginning or `reset`; NaN as in `cka`.

        Raises:
            RuntimeError: no batch yet.
        """
        if self._totals is None:
            raise RuntimeError("compute() needs at least one update(x, y) before it")
        return _ratio(self._totals)

    def reset(self) -> None:
        """Removes all batches."""
        self.batches, self._totals = 0, None


@torch.no_grad()
def _hsics(x: Matrix, y: Matrix, unbiased: bool, memory: int) -> Tensor:
    """(3,) float64: HSIC(K, K), HSIC(K, L), HSIC(L, L) but for one factor."""
    check_memory(memory)
    a, b = Columns("x", x), Columns("y", y)
    for each in (a, b):
        _centre(each, memory)
    check_devices(a, b)
    if a.n != b.n:
        raise ValueError(f"x and y must have the same number of samples, got {a.n} and {b.n}")
    if unbiased and a.n < 4:
        raise ValueError(f"the unbiased estimator needs at least 4 samples, got N = {a.n}")
    if a.n <= a.d + b.d:
        inner = gram_products(a, b, memory)
    else:
        inner = torch.stack([sum_of_squares(*pair, memory) for pair in ((a, a), (a, b), (b, b))])
    return _unbiased(inner, a, b, memory) if unbiased else inner


def _centre(x: Columns, memory: int) -> None:
    moments, resolution = measure(x, x, memory)
    factor = 0.0 if is_constant(moments, x.n, resolution) else 1.0
    mean = moments[0]
    x.statistics = torch.stack((mean, torch.full_like(mean, factor), torch.zeros_like(mean)))


def _unbiased(inner: Tensor, a: Columns, b: Columns, memory: int) -> Tensor:
    n = a.n
    p, q = row_squares(a, memory), row_squares(b, memory)
    products = torch.stack((p @ p, p @ q, q @ q))
    sums = torch.stack((p.sum().square(), p.sum() * q.sum(), q.sum().square()))
    return (inner - products * (n / (n - 2)) + sums / ((n - 1) * (n - 2))) / (n * (n - 3))


def _ratio(hsics: Tensor) -> float:
    own, cross, other = hsics.tolist()
    return cross / math.sqrt(own * other) if own > 0 and other > 0 else math.nan
