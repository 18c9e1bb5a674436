"""Standardisation: statistics of each kind of norm, and the norm's part of the backward pass."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import KernelSet
from ..kernels.precision import accumulation_dtype, reciprocal, reciprocal_deviation

# In place of a ddof: embeddings as they are, and one mean and variance for both views.
GIVEN, SHARED = -1, -2


class Norm(NamedTuple):
    """How columns are standardised: (z - mean) / (sqrt(v + eps_inside) + eps_outside)."""

    ddof: int  # what is subtracted from N in v: 0, 1, GIVEN or SHARED
    eps_inside: float = 0.0
    eps_outside: float = 0.0
    dead_is_zero: bool = False  # what a constant column gives where both eps are 0, else NaN

    def kernel_eps(self, n: int) -> float:
        """What is added to the biased variance for the same result but for a constant factor."""
        return self.eps_inside * (n - max(self.ddof, 0)) / n


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


def project(
    kernels: KernelSet, g: Tensor, z: Tensor, statistics: Tensor, factor: Tensor, precision: str
) -> None:
    """g = rstd G becomes rstd (G - z_hat factor mean_n(G z_hat)), in place."""
    # sum g (z - mean), because z - mean sums to zero.
    products = kernels.column_moments(g, z, precision)[4]
    taken = factor * statistics[1].double() * products / z.shape[0]
    g.addcmul_(standardised(z, statistics).to(g.dtype), taken.to(g.dtype), value=-1)


def project_shared(
    kernels: KernelSet,
    grads: tuple[Tensor, Tensor],
    views: tuple[Tensor, Tensor],
    statistics: Tensor,
    precision: str,
) -> None:
    """g = rstd G of both views becomes rstd (G - mean(G) - z_hat mean(G z_hat)), in place, with the
    means over the samples of both views."""
    n = views[0].shape[0]
    rstd = statistics[1].double()
    mean = statistics[0].double() + statistics[2].double() / rstd
    moments = [kernels.column_moments(g, z, precision) for g, z in zip(grads, views, strict=True)]
    means = torch.stack([m[0] for m in moments]).mean(0)
    # sum g (z - mean) of each view: its co-moment is about the view's own means.
    products = sum(m[4] + n * m[0] * (m[1] - mean) for m in moments)
    taken = rstd * products / (2 * n)
    for g, z in zip(grads, views, strict=True):
        g.sub_(means.to(g.dtype))
        g.addcmul_(standardised(z, statistics).to(g.dtype), taken.to(g.dtype), value=-1)


def statistics(
    kernels: KernelSet, z_a: Tensor, z_b: Tensor, norm: Norm, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(statistics, sums, diagonal, factors): the kernels' two, the diagonal of C_hat in float64,
    and what the projection of both views' gradients is multiplied with, empty where that is 1."""
    n = z_a.shape[0]
    moments = kernels.column_moments(z_a, z_b, precision)
    means, squares, comoment = moments[0:2], moments[2:4].clamp_min(0), moments[4]
    dtype = accumulation_dtype(precision)
    factors = moments.new_empty(0)
    if norm.ddof == SHARED:
        mean = means.mean(0)
        squares = squares + n * (means - mean).square()
        variance = squares.sum(0) / (2 * n) + norm.eps_inside
        rstd = reciprocal_deviation(variance, dtype).expand_as(means)
        diagonal = (comoment / n + (means[0] - mean) * (means[1] - mean)) * rstd[0].square()
        means = mean.expand_as(means)
        factors = torch.zeros_like(squares)
    elif norm.ddof == GIVEN:
        # Moments about zero: what is given is not centred, or need not be.
        squares = squares + n * means.square()
        diagonal = comoment / n + means[0] * means[1]
        means = torch.zeros_like(means)
        rstd = torch.ones_like(means)
        factors = torch.zeros_like(means)
    else:
        resolved = torch.finfo(torch.promote_types(z_a.dtype, torch.float32)).eps
        rstd, factors = _of_each_view(norm, n, means, squares, dtype, resolved)
        diagonal = comoment / n * rstd[0] * rstd[1]
    shift = (means - means.to(dtype)) * rstd
    made = torch.stack((means[0], rstd[0], shift[0], means[1], rstd[1], shift[1], diagonal))
    # The Triton set reads the mean of each K's diagonal from columns 2 and 3.
    centres = (squares / n * rstd.square()).sum(1)
    ones = torch.stack(((diagonal - 1).square().sum(), diagonal.square().sum()))
    return made.to(dtype), torch.cat((ones, centres))[None], diagonal, factors


def _of_each_view(
    norm: Norm, n: int, means: Tensor, squares: Tensor, dtype: torch.dtype, resolved: float
) -> tuple[Tensor, Tensor]:
    """(rstd, factors) of views with a mean and a variance of their own."""
    factors = means.new_empty(0)
    if norm.eps_outside:
        deviation = (squares / (n - norm.ddof) + norm.eps_inside).sqrt()
        rstd = math.sqrt(n / (n - norm.ddof)) * reciprocal(deviation + norm.eps_outside, dtype)
        # At a deviation of zero torch takes the derivative of the root for zero.
        factors = (1 + norm.eps_outside / deviation).masked_fill(deviation == 0, 0.0)
    else:
        rstd = reciprocal_deviation(squares / n + norm.kernel_eps(n), dtype)
    if norm.eps_inside == 0 and norm.eps_outside == 0:
        dead = (squares / n).sqrt() <= resolved * means.abs()
        rstd = rstd.masked_fill(dead, 0.0 if norm.dead_is_zero else math.nan)
    return rstd, factors
