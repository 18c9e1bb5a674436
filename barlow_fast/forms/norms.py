"""A norm of this rank's own rows in the accumulation type, and its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


def standardised(z: Tensor, statistics: Tensor) -> Tensor:
    """z_hat (N, D) in the type of the view's (3, D) mean, rstd and shift."""
    mean, rstd, shift = statistics
    return (z.to(mean.dtype) - mean).mul_(rstd).sub_(shift)


def differentiate_norm(grad: Tensor, z: Tensor, statistics: Tensor) -> Tensor:
    """dL/dz = rstd (G - z_hat mean_n(G z_hat)) from G = dL/dz_hat; mean_n(G) is zero.

    statistics: the view's (3, D) mean, rstd and shift. In their type.
    """
    hat, rstd = standardised(z, statistics), statistics[1]
    grad = grad.to(hat.dtype)
    projection = torch.linalg.vecdot(grad, hat, dim=0) / max(z.shape[0], 1)
    return hat.mul_(-projection).add_(grad).mul_(rstd)
