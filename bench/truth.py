"""Any stated loss and its gradients in float64, in closed form and in blocks.

For N < D the N x N Gram matrices are summed over blocks of columns, so that nothing larger than the
gradients themselves is ever held; no D x D matrix exists unless D <= N. With z_hat the standardised
views (bench/peers/mathematics.py), K = z_hat z_hat^T, C = z_hat_a^T z_hat_b / N and
w_i = [2 (C_ii - 1) - 2 lambda C_ii] / N, for a factor of 1:

    L = sum_i (C_ii - 1)^2 + lambda (||C||^2 - sum_i C_ii^2),       ||C||^2 = <K_a, K_b> / N^2
    dL/dz_hat_a = (2 lambda / N) M_a + w * z_hat_b,     M_a = K_b z_hat_a / N = z_hat_b C^T

and, for statistics over R rows (N, or 2 N where both views share them) with variance v of divisor
R or R - 1 =: Q and r = 1 / sqrt(v + eps) or 1 / (sqrt(v) + eps), sums over the R rows,

    dL/dz = r * [g - sum(g) / R - z_hat * t * sum(g * z_hat) / Q],            g = dL/dz_hat
    t     = -2 r^-3 dr/dv = 1 or 1 / (r sqrt(v))

For the FFT relaxation, with A and B the transforms of the groups p and q of the columns,

    s_pq = irfft(sum_n conj(A_np) B_nq) / N,      L_2 = lambda sum s_pq[k]^2 less s_pp[0]
    W_pq = rfft(2 lambda s_pq / N), s_pp[0] set to 0
    dL_2/dz_hat_a = sum_q irfft(conj(W_pq) B_nq),      dL_2/dz_hat_b = sum_p irfft(W_pq A_np)

The formulas are held against autograd through the definitions by tests/bench/test_truth.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.inputs import Pair
from bench.peers.mathematics import PAPER, Mathematics

BLOCK_BYTES = 256 << 20  # of one float64 block; a handful of them are alive at a time

Result = tuple[Tensor, tuple[Tensor, Tensor]]


def exact(pair: Pair, mathematics: Mathematics = PAPER, block: int | None = None) -> Result:
    """(loss, (dL/dz_a, dL/dz_b)) in float64 of two (N, D) views, on their device.

    `block` is the number of columns taken at a time where N < D, or of rows in the relaxation; by
    default as many as BLOCK_BYTES hold.
    """
    n, d = pair[0].shape
    with torch.no_grad():
        if mathematics.circular_groups:
            loss, gradients = _circular(pair, mathematics, block or max(BLOCK_BYTES // (8 * d), 1))
        elif n < d:
            loss, gradients = _gram(pair, mathematics, block or max(BLOCK_BYTES // (8 * n), 1))
        else:
            loss, gradients = _correlation(pair, mathematics)
        for gradient in gradients:
            gradient.mul_(mathematics.factor)
        return mathematics.factor * loss, gradients


@dataclass
class _Standardised:
    """Both views after standardisation, (2, N, columns) in float64, and the way back."""

    hat: Tensor
    r: Tensor
    t: Tensor | float
    over: tuple[int, ...]  # dimensions of the statistics
    divisor: int

    def back(self, g: Tensor) -> Tensor:
        """dL/dz from dL/dz_hat, both (2, N, columns)."""
        along = (g * self.hat).sum(self.over, keepdim=True) / self.divisor
        return self.r * (g - g.mean(self.over, keepdim=True) - self.hat * (self.t * along))


def _standardised(pair: Pair, mathematics: Mathematics) -> _Standardised:
    z = torch.stack([view.detach().double() for view in pair])
    over = (0, 1) if mathematics.shared else (1,)
    divisor = (2 if mathematics.shared else 1) * z.shape[1] - int(mathematics.unbiased)
    z -= z.mean(over, keepdim=True)
    variance = z.square().sum(over, keepdim=True) / divisor
    if mathematics.eps_on == "variance":
        r, t = (variance + mathematics.eps).rsqrt(), 1.0
    else:
        deviation = variance.sqrt()
        r = 1 / (deviation + mathematics.eps)
        t = 1 / (r * deviation)
    return _Standardised(z.mul_(r), r, t, over, divisor)


def _blocks(size: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def _weight(diagonal: Tensor, lambd: float, n: int) -> Tensor:
    return (2 * (diagonal - 1) - 2 * lambd * diagonal) / n


def _loss(diagonal: Tensor, square: Tensor, lambd: float) -> Tensor:
    return (diagonal - 1).square().sum() + lambd * (square - diagonal.square().sum())


def _gram(pair: Pair, mathematics: Mathematics, block: int) -> Result:
    n, d = pair[0].shape
    lambd = mathematics.lambd
    gram_a, gram_b = (z.new_zeros(n, n, dtype=torch.float64) for z in pair)
    diagonal = pair[0].new_empty(d, dtype=torch.float64)
    for columns in _blocks(d, block):
        hat_a, hat_b = _standardised(_columns(pair, columns), mathematics).hat
        diagonal[columns] = (hat_a * hat_b).mean(0)
        gram_a.addmm_(hat_a, hat_a.T)
        gram_b.addmm_(hat_b, hat_b.T)
    loss = _loss(diagonal, (gram_a * gram_b).sum() / n**2, lambd)
    weight = _weight(diagonal, lambd, n)
    gradients = tuple(torch.empty_like(z, dtype=torch.float64) for z in pair)
    for columns in _blocks(d, block):
        views = _standardised(_columns(pair, columns), mathematics)
        hat_a, hat_b = views.hat
        g_a = (2 * lambd / n**2) * (gram_b @ hat_a) + weight[columns] * hat_b
        g_b = (2 * lambd / n**2) * (gram_a @ hat_b) + weight[columns] * hat_a
        for gradient, found in zip(gradients, views.back(torch.stack([g_a, g_b])), strict=True):
            gradient[:, columns] = found
    return loss, gradients


def _columns(pair: Pair, columns: slice) -> Pair:
    return pair[0][:, columns], pair[1][:, columns]


def _correlation(pair: Pair, mathematics: Mathematics) -> Result:
    n, lambd = pair[0].shape[0], mathematics.lambd
    views = _standardised(pair, mathematics)
    hat_a, hat_b = views.hat
    c = hat_a.T @ hat_b / n
    diagonal = c.diagonal()
    weight = _weight(diagonal, lambd, n)
    g_a = (2 * lambd / n) * (hat_b @ c.T) + weight * hat_b
    g_b = (2 * lambd / n) * (hat_a @ c) + weight * hat_a
    gradients = tuple(views.back(torch.stack([g_a, g_b])))
    return _loss(diagonal, c.square().sum(), lambd), gradients


def _circular(pair: Pair, mathematics: Mathematics, block: int) -> Result:
    n, d = pair[0].shape
    lambd, size = mathematics.lambd, mathematics.group_size(d)
    views = _standardised(pair, mathematics)

    def spectra(rows: slice) -> Tensor:
        return torch.fft.rfft(views.hat[:, rows].unflatten(2, (-1, size)))

    products: Tensor | float = 0.0
    for rows in _blocks(n, block):
        a, b = spectra(rows)
        products = products + torch.einsum("npf,nqf->pqf", a.conj(), b)
    sums = torch.fft.irfft(products, size) / n
    sums[..., 0].fill_diagonal_(0)
    diagonal = (views.hat[0] * views.hat[1]).mean(0)
    loss = (diagonal - 1).square().sum() + lambd * sums.square().sum()
    weights = torch.fft.rfft(2 * lambd / n * sums)
    gradient = (2 * (diagonal - 1) / n) * views.hat.flip(0)
    for rows in _blocks(n, block):
        a, b = spectra(rows)
        towards_a = torch.einsum("pqf,nqf->npf", weights.conj(), b)
        towards_b = torch.einsum("pqf,npf->nqf", weights, a)
        for index, spectrum in enumerate((towards_a, towards_b)):
            gradient[index, rows] += torch.fft.irfft(spectrum, size).flatten(1)
    return loss, tuple(views.back(gradient))
