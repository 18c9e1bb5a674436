"""The backward pass of a norm over this rank's own rows."""

from __future__ import annotations

import torch
from torch import Tensor


def differentiate_norm(grad: Tensor, z: Tensor, statistics: Tensor) -> Tensor:
    """dL/dz = rstd (G - z_hat mean_n(G z_hat)) from G = dL/dz_hat; mean_n(G) is zero.

    statistics: the view's (3, D) mean, rstd and shift. In their type.
    """
    mean, rstd, shift = statistics
    hat = (z.to(mean.dtype) - mean).mul_(rstd).sub_(shift)
    grad = grad.to(mean.dtype)
    projection = torch.linalg.vecdot(grad, hat, dim=0) / max(z.shape[0], 1)
    return hat.mul_(-projection).add_(grad).mul_(rstd)
