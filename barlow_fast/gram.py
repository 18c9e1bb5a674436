"""The Gram form: two N x N matrices, exact, for N <= D. Written once over any kernel set.

    sum_{i != j} C_ij^2 = <K_a, K_b> / N^2 - sum_i C_ii^2,      K = z_hat z_hat^T
    dL/dz_hat_a = (2 lambda / N^2) K_b z_hat_a + w * z_hat_b,   w_i = [2 (C_ii - 1) - 2 lambda C_ii]
    / N

Derivation: kernels/README.md, equations 3 to 6.
"""

from __future__ import annotations

from torch import Tensor

from .kernels import KernelSet


def forward(
    kernels: KernelSet, z_a: Tensor, z_b: Tensor, eps: float, precision: str
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(on_diagonal, off_diagonal, saved): float64 scalars and what `backward` needs."""
    n = z_a.shape[0]
    statistics, sums = kernels.standardisation(
        kernels.column_moments(z_a, z_b, precision), n, eps, precision
    )
    gram_a, gram_b, inner = kernels.gram_pair(z_a, z_b, statistics, precision)
    on_diagonal, diagonal_squares = sums.unbind()
    return on_diagonal, inner / n**2 - diagonal_squares, (statistics, gram_a, gram_b)


def backward(
    kernels: KernelSet,
    z_a: Tensor,
    z_b: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    grad_scale: Tensor,
    lambd: float,
    eps: float,
    precision: str,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b times `grad_scale`; an unwanted one is empty."""
    n = z_a.shape[0]
    statistics, gram_a, gram_b = saved
    coefficient, slope, offset = 2 * lambd / n**2, (2 - 2 * lambd) / n, -2 / n
    return kernels.gram_gradients(
        z_a,
        z_b,
        statistics,
        gram_a,
        gram_b,
        grad_scale,
        coefficient,
        slope,
        offset,
        eps,
        precision,
        need,
    )
