"""The paper's pseudo-code in eager torch: the oracle of every test and the baseline of every
benchmark.

Source: Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy
Reduction*, ICML 2021, equations 1 and 2 and algorithm 1 (with the batch normalisation of the
authors' code: biased variance, eps inside the root).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.precision import reciprocal_deviation


def standardise(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Column-wise (z - mean) / sqrt(var + eps) with the biased variance; z is (N, D)."""
    centred = z - z.mean(0)
    return centred * reciprocal_deviation(centred.square().mean(0) + eps, z.dtype)


def cross_correlation(z_a: Tensor, z_b: Tensor, eps: float = 1e-5) -> Tensor:
    """C = z_hat_a^T z_hat_b / N, a (D, D) matrix, in the dtype of the inputs."""
    return standardise(z_a, eps).T @ standardise(z_b, eps) / z_a.shape[0]


def barlow_twins_terms(
    z_a: Tensor, z_b: Tensor, lambd: float = 0.0051, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal), each a scalar; loss = on_diagonal + lambd * off_diagonal.

    on_diagonal = sum_i (C_ii - 1)^2 and off_diagonal = sum over i != j of C_ij^2. Inputs are (N,
    D); the sums are taken in the inputs' dtype: pass float64 for the truth.
    """
    c = cross_correlation(z_a, z_b, eps)
    diagonal = c.diagonal()
    on_diagonal = (diagonal - 1).square().sum()
    # The diagonal is removed before squaring, so that nothing large cancels when C is close to the
    # identity.
    off_diagonal = (c - torch.diag(diagonal)).square().sum()
    return on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, lambd: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """The loss alone; see `barlow_twins_terms`."""
    return barlow_twins_terms(z_a, z_b, lambd, eps)[0]
