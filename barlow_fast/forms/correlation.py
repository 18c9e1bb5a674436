"""The correlation form: one D x D matrix, for N > D. Written once over any kernel set.

C is kept with its diagonal set to zero (written C0): the diagonal has its own, more accurate
vector, and nothing large cancels in the off-diagonal sum when C is close to the identity.

    sum_{i != j} C_ij^2 = ||C0||_F^2
    dL/dz_hat_a = (2 lambda / N) z_hat_b C0^T + w * z_hat_b,   w_i = 2 (C_ii - 1) / N

Derivation: kernels/README.md, equations 7 to 9.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels import Coefficients, GradientInputs, KernelSet


def forward(
    kernels: KernelSet, z_a: Tensor, z_b: Tensor, lambd: float, eps: float, precision: str
) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal) and the three tensors that `backward` needs."""
    statistics, sums = kernels.statistics(z_a, z_b, eps, precision)
    matrix, squares = kernels.correlation(z_a, z_b, statistics, precision)
    return *kernels.terms(sums, squares[0], 1, False, lambd, precision), statistics, matrix, squares


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
    statistics, matrices = saved[0], saved[1:]
    coefficients = Coefficients(2 * lambd / n, 2 / n, -2 / n)
    return kernels.correlation_gradients(
        GradientInputs(z_a, z_b, statistics, matrices, grad_scale, coefficients, precision, need)
    )
