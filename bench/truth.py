"""The loss and its gradients in float64, in closed form and in blocks of columns.

For N < D the N x N Gram matrices are summed over blocks of columns, so that nothing larger than the
gradients themselves is ever held; no D x D matrix exists unless D <= N. With z_hat the standardised
views, K = z_hat z_hat^T, C = z_hat_a^T z_hat_b / N and w_i = [2 (C_ii - 1) - 2 lambda C_ii] / N:

    L = sum_i (C_ii - 1)^2 + lambda (||C||^2 - sum_i C_ii^2),       ||C||^2 = <K_a, K_b> / N^2
    dL/dz_hat_a = (2 lambda / N) M_a + w * z_hat_b,     M_a = K_b z_hat_a / N = z_hat_b C^T
    dL/dz = rstd * [dL/dz_hat - z_hat * mean_n(dL/dz_hat * z_hat)]

The formulas are held against autograd through `barlow_fast.reference` by tests/bench/test_truth.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.inputs import Pair

EPS = 1e-5
BLOCK_BYTES = 256 << 20  # of one float64 block; a handful of them are alive at a time

Result = tuple[Tensor, tuple[Tensor, Tensor]]


def exact(pair: Pair, lambd: float, block: int | None = None) -> Result:
    """(loss, (dL/dz_a, dL/dz_b)) in float64 of two (N, D) views, on their device.

    `block` is the number of columns taken at a time where N < D; by default as many as
    BLOCK_BYTES hold.
    """
    n, d = pair[0].shape
    with torch.no_grad():
        if n < d:
            return _gram(pair, lambd, block or max(BLOCK_BYTES // (8 * n), 1))
        return _correlation(pair, lambd)


def _standardised(z: Tensor) -> tuple[Tensor, Tensor]:
    """z_hat and rstd in float64, biased variance, eps inside the root."""
    z = z.double()
    z = z - z.mean(0)
    rstd = (z.square().mean(0) + EPS).rsqrt()
    return z.mul_(rstd), rstd


def _blocks(d: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, d)) for start in range(0, d, block))


def _weight(diagonal: Tensor, lambd: float, n: int) -> Tensor:
    return (2 * (diagonal - 1) - 2 * lambd * diagonal) / n


def _through_norm(g: Tensor, hat: Tensor, rstd: Tensor) -> Tensor:
    return rstd * (g - hat * (g * hat).mean(0))


def _loss(diagonal: Tensor, square: Tensor, lambd: float) -> Tensor:
    return (diagonal - 1).square().sum() + lambd * (square - diagonal.square().sum())


def _gram(pair: Pair, lambd: float, block: int) -> Result:
    n, d = pair[0].shape
    gram_a, gram_b = (z.new_zeros(n, n, dtype=torch.float64) for z in pair)
    diagonal = pair[0].new_empty(d, dtype=torch.float64)
    for columns in _blocks(d, block):
        hat_a, hat_b = (_standardised(z[:, columns])[0] for z in pair)
        diagonal[columns] = (hat_a * hat_b).mean(0)
        gram_a.addmm_(hat_a, hat_a.T)
        gram_b.addmm_(hat_b, hat_b.T)
    loss = _loss(diagonal, (gram_a * gram_b).sum() / n**2, lambd)
    weight = _weight(diagonal, lambd, n)
    grad_a, grad_b = (torch.empty_like(z, dtype=torch.float64) for z in pair)
    for columns in _blocks(d, block):
        (hat_a, rstd_a), (hat_b, rstd_b) = (_standardised(z[:, columns]) for z in pair)
        g_a = (2 * lambd / n**2) * (gram_b @ hat_a) + weight[columns] * hat_b
        grad_a[:, columns] = _through_norm(g_a, hat_a, rstd_a)
        g_b = (2 * lambd / n**2) * (gram_a @ hat_b) + weight[columns] * hat_a
        grad_b[:, columns] = _through_norm(g_b, hat_b, rstd_b)
    return loss, (grad_a, grad_b)


def _correlation(pair: Pair, lambd: float) -> Result:
    n = pair[0].shape[0]
    (hat_a, rstd_a), (hat_b, rstd_b) = (_standardised(z) for z in pair)
    c = hat_a.T @ hat_b / n
    diagonal = c.diagonal()
    weight = _weight(diagonal, lambd, n)
    g_a = (2 * lambd / n) * (hat_b @ c.T) + weight * hat_b
    g_b = (2 * lambd / n) * (hat_a @ c) + weight * hat_a
    gradients = (_through_norm(g_a, hat_a, rstd_a), _through_norm(g_b, hat_b, rstd_b))
    return _loss(diagonal, c.square().sum(), lambd), gradients
