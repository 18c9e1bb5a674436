"""The losses of `views.py` as functions of moments and sums of squares, with their derivatives.

All vectors here are float64 and have a value for each column: V * V * D of them, whatever N is.
Derivatives are those by z_hat, the standardised views; `kernels/README.md` derives what the kernels
make of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.precision import reciprocal, reciprocal_deviation
from .views import (
    BETWEEN,
    BLOCK,
    EACH,
    Moments,
    Run,
    Standardised,
    Sums,
    Value,
    pairs,
    squares_of_pairs,
)

# Of a column's 2-norm, as torch.nn.functional.normalize has it.
SMALLEST_NORM = 1e-12


def _statistics(means: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """(V, 3, D): mean, rstd and the shift that rounding the mean makes necessary."""
    shift = (means - means.to(dtype)) * rstd
    return torch.stack((means, rstd, shift), 1).to(dtype)


def _products(sums: Tensor, rstd: Tensor, n: int) -> Tensor:
    """(V, V, D) means over samples of z_hat_v z_hat_u, in the memory of the sums that rstd scales:
    fresh memory of that size costs more than the arithmetic."""
    return sums.mul_(rstd[:, None]).mul_(rstd / n)


def _batch_normalised(moments: Moments, eps: float, dtype: torch.dtype) -> Standardised:
    """Means and biased variances of each view, eps inside the root."""
    variances = moments.comoments.diagonal().T / moments.n
    rstd = reciprocal_deviation(variances + eps, dtype)
    return Standardised(
        _statistics(moments.means, rstd, dtype), _products(moments.comoments, rstd, moments.n)
    )


@dataclass(frozen=True)
class BarlowTwins:
    """The mean over all pairs of views of sum_i (C_ii - 1)^2 + lambd * sum_{i != j} (C_ij - t)^2.

    Source: Zbontar et al., *Barlow Twins* (ICML 2021), eq. 1 and 2, of each pair. weights:
    (lambd,). terms: the sums on and off the diagonal. t, the target, is -1 in the variant after
    HSIC: Tsai et al., *A Note on Connecting Barlow Twins with Negative-Sample-Free Contrastive
    Learning* (2021), eq. 4.
    """

    target: float = 0.0

    squares = BETWEEN
    projected = True
    scaled = True
    terms = 2

    def kernel_eps(self, eps: float) -> float:
        return eps

    def standardised(
        self, moments: Moments, eps: float, dtype: torch.dtype, run: Run
    ) -> Standardised:
        return _batch_normalised(moments, eps, dtype)

    def value(
        self,
        views: Sequence[Tensor],
        moments: Moments,
        standardised: Standardised,
        sums: Sums,
        weights: Sequence[float],
        eps: float,
        run: Run,
    ) -> Value:
        (lambd,) = weights
        diagonals, n, d, t = standardised.diagonals, moments.n, run.d, self.target
        count = len(pairs(BETWEEN, len(views)))
        away = diagonals - 1
        away.diagonal().zero_()
        on_diagonal = run.total(squares_of_pairs(away)) / count
        off_diagonal = sums.squares[0] / count
        weights_ = away.mul_(2 / n / count)
        rows = 0.0
        if t:
            traces = diagonals.sum() - diagonals.diagonal().sum()
            rest = sums.elements - run.total(traces) / 2
            off_diagonal = off_diagonal - 2 * t * rest / count + t * t * d * (d - 1)
            pull = 2 * t * lambd / n / count
            weights_ += pull
            weights_.diagonal().sub_(pull)
            rows = -pull
        return Value(
            on_diagonal + lambd * off_diagonal, torch.stack((on_diagonal, off_diagonal)),
            torch.full_like(sums.squares, lambd / count), weights_, rows=rows,
        )  # fmt: skip


@dataclass(frozen=True)
class VICReg:
    """invariance * i + variance * v + covariance * c.

        i = mean over pairs of views of mean (z_v - z_u)^2
        v = mean over views and columns of relu(gamma - sqrt(var + eps))
        c = min(V, 2) / V * sum over views of sum_{i != j} cov_ij^2 / D

    with var and cov of N - 1. Source: Bardes, Ponce, LeCun, *VICReg* (ICLR 2022), eq. 1 to 6, with
    the authors' code's factors; of one view Zhu et al., *VCReg* (2023). weights: (invariance,
    variance, covariance). terms: i, v, c.

    z_hat is centred and divided by one number for all columns, the root of their mean variance t^2:
    K then has the range that half-precision operands are scaled for. That number is no part of the
    norm's backward: the loss does not depend on it.
    """

    gamma: float = 1.0

    squares = EACH
    target = 0.0
    projected = False
    scaled = False
    terms = 3

    def kernel_eps(self, eps: float) -> float:
        return 0.0

    def standardised(
        self, moments: Moments, eps: float, dtype: torch.dtype, run: Run
    ) -> Standardised:
        variances = moments.comoments.diagonal().T / moments.n
        scale = (run.total(variances.sum(1)) / run.d).sqrt()
        # Rounded, as the kernels read it.
        shared = reciprocal(torch.where(scale > 0, scale, 1.0), dtype).to(dtype).double()
        rstd = shared[:, None].expand_as(moments.means)
        return Standardised(
            _statistics(moments.means, rstd, dtype),
            _products(moments.comoments, rstd, moments.n),
            shared.reciprocal(),
        )

    def value(
        self,
        views: Sequence[Tensor],
        moments: Moments,
        standardised: Standardised,
        sums: Sums,
        weights: Sequence[float],
        eps: float,
        run: Run,
    ) -> Value:
        pull, spread, decorrelate = weights
        n, d, count = moments.n, run.d, len(views)
        scale = standardised.scales[:, None]
        variances = standardised.diagonals.diagonal().T * scale.square() * (n / (n - 1))
        deviations = (variances + eps).sqrt()
        hinges = (self.gamma - deviations).clamp_min(0)
        variance = run.total(hinges.sum()) / (count * d)
        # cov of z from squares of C of z_hat.
        factors = min(count, 2) / count / d * (n / (n - 1)) ** 2 * scale[:, 0] ** 4
        covariance = (factors * sums.squares).sum()
        # d sqrt(var + eps) / dz = (z - mean) / ((N - 1) sqrt(var + eps)), of z_hat times scale^2.
        slopes = (hinges > 0) / deviations * scale.square()
        own = slopes.masked_fill(deviations == 0, 0.0) * (-spread / (count * d * (n - 1)))
        weights_ = own.new_zeros(standardised.diagonals.shape)
        weights_.diagonal().copy_(own.T)
        invariance, offsets = own.new_zeros(()), own.new_zeros(own.shape)
        if count > 1:
            chosen = len(pairs(BETWEEN, count))
            invariance = squared_differences(views, run) / (chosen * n * d)
            step = 2 * pull / (chosen * n * d)
            scales = scale @ scale.T * step
            weights_ -= scales[:, :, None]
            weights_.diagonal().add_(count * scales.diagonal())
            means = moments.means
            offsets = step * scale * (count * means - means.sum(0))
        loss = pull * invariance + spread * variance + decorrelate * covariance
        return Value(
            loss, torch.stack((invariance, variance, covariance)), decorrelate * factors, weights_,
            offsets,
        )  # fmt: skip


@dataclass(frozen=True)
class FroSSL:
    """sum over views of 2 log(||u u^T||_F / tr(u u^T)) + invariance * i.

        u = z / max(||z||, 1e-12) per column
        i = V D mean (u_v - mean over views of u)^2

    Source: Skean, Dhakal, Jacobs, Giraldo, *FroSSL* (ECCV 2024), with the factors of solo-learn's
    code. weights: (invariance,). terms: i and the sum of logarithms. z_hat = sqrt(N) u.
    """

    squares = EACH
    target = 0.0
    projected = True
    scaled = True
    terms = 2

    def kernel_eps(self, eps: float) -> float:
        return 0.0

    def standardised(
        self, moments: Moments, eps: float, dtype: torch.dtype, run: Run
    ) -> Standardised:
        n = moments.n
        raw = moments.comoments.addcmul_(n * moments.means[:, None], moments.means)
        norms = raw.diagonal().T.clamp_min(0).sqrt()
        rstd = reciprocal(norms.clamp_min(SMALLEST_NORM) / n**0.5, dtype)
        zeros = torch.zeros_like(moments.means)
        return Standardised(_statistics(zeros, rstd, dtype), _products(raw, rstd, n))

    def value(
        self,
        views: Sequence[Tensor],
        moments: Moments,
        standardised: Standardised,
        sums: Sums,
        weights: Sequence[float],
        eps: float,
        run: Run,
    ) -> Value:
        (pull,) = weights
        diagonals, n, count = standardised.diagonals, moments.n, len(views)
        own = diagonals.diagonal().T
        traces = run.total(own.sum(1))
        frobenius = sums.squares + run.total(own.square().sum(1))  # ||u u^T||_F^2
        regularisation = (frobenius.log() - 2 * traces.log()).sum()
        # u_v - mean over views: the sum of squares of all V differences.
        spread = own.sum() - diagonals.sum() / count
        invariance = run.total(spread) / n
        weights_ = diagonals.new_full(diagonals.shape, -2 * pull / (n * n * count))
        slopes = 4 / n * (own / frobenius[:, None] - 1 / traces[:, None]) + 2 * pull / (n * n)
        weights_.diagonal().add_(slopes.T)
        return Value(
            regularisation + pull * invariance, torch.stack((invariance, regularisation)),
            frobenius.reciprocal(), weights_,
        )  # fmt: skip


def squared_differences(views: Sequence[Tensor], run: Run) -> Tensor:
    """Sum over pairs of views, samples and columns of (z_v - z_u)^2; float64.

    Not from the moments: of nearly equal views, co-moments would leave rounding alone.
    """
    n, width = views[0].shape
    wide = torch.promote_types(views[0].dtype, run.dtype)
    rows = max(BLOCK // max(width, 1), 1) if views[0].device.type == "cpu" else n
    sums = []
    for first in range(0, n, rows):
        block = [z[first : first + rows].to(wide) for z in views]
        for v in range(len(block)):
            for u in range(v):
                difference = block[v] - block[u]
                sums.append(torch.linalg.vecdot(difference, difference).sum(dtype=torch.float64))
    nothing = torch.zeros((), dtype=torch.float64, device=views[0].device)
    return run.total_of_samples(run.total(sum(sums, start=nothing)))
