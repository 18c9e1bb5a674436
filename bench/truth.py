"""Any stated loss and its gradients in float64, without a D x D matrix where N < D.

With z_hat the standardised views (bench/peers/mathematics.py), K = z_hat z_hat^T and
C = z_hat_a^T z_hat_b / N, for a factor of 1:

    L = sum_i (C_ii - 1)^2 + lambda (||C||^2 - sum_i C_ii^2),       ||C||^2 = <K_a, K_b> / N^2

Columns enter K one by one, and by the product rule d<K_a, K_b> = <dK_a, K_b> + <K_a, dK_b>. So
after the Gram matrices are summed over blocks of columns, the gradients of a block are those of a
loss in which the other factor is constant, and autograd takes them block by block: nothing larger
than the gradients themselves is kept. For the FFT relaxation, with A and B the transforms of the
groups p and q of the columns,

    s_pq = irfft(sum_n conj(A_np) B_nq) / N,      L_2 = lambda sum s_pq[k]^2 less s_pp[0]

tests/bench/test_truth.py compares all of it with autograd through the definitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.inputs import Pair
from bench.peers.mathematics import PAPER, Mathematics

BLOCK_BYTES = 64 << 20  # of one float64 view; autograd keeps about ten tensors of this size

Result = tuple[Tensor, tuple[Tensor, Tensor]]


def exact(pair: Pair, mathematics: Mathematics = PAPER, block: int | None = None) -> Result:
    """(loss, (dL/dz_a, dL/dz_b)) in float64 of two (N, D) views, on their device.

    `block` is the number of columns taken at a time where N < D; by default as many as BLOCK_BYTES
    hold.
    """
    n, d = pair[0].shape
    if mathematics.circular_groups:
        return _by_autograd(pair, mathematics, _circular)
    if n >= d:
        return _by_autograd(pair, mathematics, Mathematics.loss)
    return _gram(pair, mathematics, block or max(BLOCK_BYTES // (8 * n), 1))


def in_double(pair: Pair) -> Pair:
    """The same numbers in float64."""
    z_a, z_b = (z.detach().double().requires_grad_() for z in pair)
    return z_a, z_b


def _by_autograd(pair: Pair, mathematics: Mathematics, loss) -> Result:
    pair = in_double(pair)
    value = loss(mathematics, *pair)
    return value.detach(), torch.autograd.grad(value, pair)


def _gram(pair: Pair, m: Mathematics, block: int) -> Result:
    n = len(pair[0])
    blocks = list(zip(*(z.detach().split(block, dim=1) for z in pair), strict=True))
    grams = torch.zeros(2, n, n, dtype=torch.float64, device=pair[0].device)
    loss = grams.new_zeros(())
    with torch.no_grad():
        for columns in blocks:
            hat_a, hat_b = m.standardised(*in_double(columns))
            loss += _diagonal_terms(hat_a, hat_b, m.lambd)
            grams[0].addmm_(hat_a, hat_a.T)
            grams[1].addmm_(hat_b, hat_b.T)
        loss += m.lambd * (grams[0] * grams[1]).sum() / n**2
    found = tuple(torch.empty_like(z, dtype=torch.float64) for z in pair)
    parts = zip(*(gradient.split(block, dim=1) for gradient in found), strict=True)
    for columns, part in zip(blocks, parts, strict=True):
        columns = in_double(columns)
        hat_a, hat_b = m.standardised(*columns)
        square = ((grams[1] @ hat_a) * hat_a).sum() + ((grams[0] @ hat_b) * hat_b).sum()
        value = _diagonal_terms(hat_a, hat_b, m.lambd) + m.lambd * square / n**2
        for target, gradient in zip(part, torch.autograd.grad(value, columns), strict=True):
            target.copy_(m.factor * gradient)
    return m.factor * loss, found


def _diagonal_terms(hat_a: Tensor, hat_b: Tensor, lambd: float) -> Tensor:
    diagonal = (hat_a * hat_b).mean(0)
    return (diagonal - 1).square().sum() - lambd * diagonal.square().sum()


def _circular(m: Mathematics, z_a: Tensor, z_b: Tensor) -> Tensor:
    n, d = z_a.shape
    size = m.group_size(d)
    hats = m.standardised(z_a, z_b)
    a, b = (torch.fft.rfft(hat.unflatten(1, (-1, size))) for hat in hats)
    sums = torch.fft.irfft(torch.einsum("npf,nqf->pqf", a.conj(), b), size) / n
    off_diagonal = sums.square().sum() - sums[..., 0].diagonal().square().sum()
    on_diagonal = ((hats[0] * hats[1]).mean(0) - 1).square().sum()
    return m.factor * (on_diagonal + m.lambd * off_diagonal)
