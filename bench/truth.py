"""Any stated loss and its gradients in float64, without a D x D matrix where N < D.

With z_hat the standardised views (bench/peers/mathematics.py), K = z_hat z_hat^T and
C = z_hat_a^T z_hat_b / N, for a factor of 1:

    L = sum_i (C_ii - 1)^2 + lambda (||C||^2 - sum_i C_ii^2),       ||C||^2 = <K_a, K_b> / N^2

and for the FFT relaxation, with A and B the transforms of the groups p and q of the columns,

    s_pq = irfft(sum_n conj(A_np) B_nq) / N,      L_2 = lambda sum s_pq[k]^2 less s_pp[0]

Gradients are autograd's. tests/bench/test_truth.py compares all of it with autograd through the
definitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.inputs import Pair
from bench.peers.mathematics import PAPER, Mathematics

Result = tuple[Tensor, tuple[Tensor, Tensor]]


def exact(pair: Pair, mathematics: Mathematics = PAPER) -> Result:
    """(loss, (dL/dz_a, dL/dz_b)) in float64 of two (N, D) views, on their device."""
    n, d = pair[0].shape
    pair = in_double(pair)
    if mathematics.circular_groups:
        value = _circular(mathematics, *pair)
    else:
        value = mathematics.loss(*pair) if n >= d else _gram(mathematics, *pair)
    return value.detach(), torch.autograd.grad(value, pair)


def in_double(pair: Pair) -> Pair:
    """The same numbers in float64."""
    z_a, z_b = (z.detach().double().requires_grad_() for z in pair)
    return z_a, z_b


def _gram(m: Mathematics, z_a: Tensor, z_b: Tensor) -> Tensor:
    hat_a, hat_b = m.standardised(z_a, z_b)
    diagonal = (hat_a * hat_b).mean(0)
    square = ((hat_a @ hat_a.T) * (hat_b @ hat_b.T)).sum() / len(z_a) ** 2
    redundancy = square - diagonal.square().sum()
    return m.factor * ((diagonal - 1).square().sum() + m.lambd * redundancy)


def _circular(m: Mathematics, z_a: Tensor, z_b: Tensor) -> Tensor:
    n, d = z_a.shape
    size = m.group_size(d)
    hats = m.standardised(z_a, z_b)
    a, b = (torch.fft.rfft(hat.unflatten(1, (-1, size))) for hat in hats)
    sums = torch.fft.irfft(torch.einsum("npf,nqf->pqf", a.conj(), b), size) / n
    off_diagonal = sums.square().sum() - sums[..., 0].diagonal().square().sum()
    on_diagonal = ((hats[0] * hats[1]).mean(0) - 1).square().sum()
    return m.factor * (on_diagonal + m.lambd * off_diagonal)
