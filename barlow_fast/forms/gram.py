"""The Gram form: two N x N matrices, exact, for N <= D. Written once over any kernel set.

    sum_{i != j} C_ij^2 = <K_a, K_b> / N^2 - sum_i C_ii^2,      K = z_hat z_hat^T
    dL/dz_hat_a = (2 lambda / N^2) K_b z_hat_a + w * z_hat_b
    w_i = [2 (C_ii - 1) - 2 lambda C_ii] / N

Derivation: kernels/README.md, equations 3 to 6.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels import Coefficients, GradientInputs, KernelSet


def forward(
    kernels: KernelSet, z_a: Tensor, z_b: Tensor, lambd: float, eps: float, precision: str
) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal) and the three tensors that `backward` needs."""
    statistics, sums = kernels.statistics(z_a, z_b, eps, precision)
    terms, grams, centres = kernels.gram_terms(z_a, z_b, statistics, sums, lambd, precision)
    return *terms, statistics, grams, centres


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
    coefficients = Coefficients(2 * lambd / n**2, (2 - 2 * lambd) / n, -2 / n, eps)
    return kernels.gram_gradients(
        GradientInputs(z_a, z_b, statistics, matrices, grad_scale, coefficients, precision, need)
    )
