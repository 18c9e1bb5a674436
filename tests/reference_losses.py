"""Definitions of the losses of any number of views, in plain torch: the oracle of their tests.

Each is written as its authors write it, with D x D matrices, and knows nothing of the library.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def standardise(z: Tensor, eps: float) -> Tensor:
    centred = z - z.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()


def off_diagonal(c: Tensor) -> Tensor:
    return c - torch.diag(c.diagonal())


def barlow_twins(
    views: Sequence[Tensor], lambd: float, eps: float = 1e-5, target: float = 0.0
) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal): means over all pairs of views."""
    hats = [standardise(z, eps) for z in views]
    pairs = list(itertools.combinations(hats, 2))
    on = off = 0.0
    for a, b in pairs:
        c = a.T @ b / a.shape[0]
        on = on + (c.diagonal() - 1).square().sum() / len(pairs)
        off = off + off_diagonal(c - target).square().sum() / len(pairs)
    return on + lambd * off, on, off


def vicreg(
    views: Sequence[Tensor], weights: Sequence[float], gamma: float = 1.0, eps: float = 1e-4
) -> tuple[Tensor, ...]:
    """(loss, invariance, variance, covariance)."""
    (n, d), count = views[0].shape, len(views)
    pairs = list(itertools.combinations(views, 2))
    nothing = views[0].new_zeros(())
    invariance = sum((functional.mse_loss(a, b) for a, b in pairs), start=nothing)
    invariance = invariance / max(len(pairs), 1)
    variance = sum(
        (functional.relu(gamma - (z.var(0) + eps).sqrt()).mean() for z in views), nothing
    )
    covariance = nothing
    for z in views:
        centred = z - z.mean(0)
        covariance = covariance + off_diagonal(centred.T @ centred / (n - 1)).square().sum() / d
    terms = invariance, variance / count, covariance * min(count, 2) / count
    return sum(w * t for w, t in zip(weights, terms, strict=True)), *terms


def frossl(views: Sequence[Tensor], invariance: float) -> tuple[Tensor, ...]:
    """(loss, invariance, regularisation)."""
    u = functional.normalize(torch.stack(tuple(views)), dim=1)
    count, _, d = u.shape
    regularisation = u.new_zeros(())
    for one in u:
        c = one.T @ one
        regularisation = regularisation + 2 * torch.log(torch.linalg.norm(c / c.trace()))
    away = count * d * functional.mse_loss(u, u.mean(0, keepdim=True).expand_as(u))
    return regularisation + invariance * away, away, regularisation


def mixed_barlow_twins(
    views: Sequence[Tensor],
    permutation: Tensor,
    weights: Sequence[float],
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal, mixing) by six D x D products; weights: lambd, mixing,
    alpha."""
    lambd, mixing, alpha = weights
    a, b, m = (standardise(z, eps) for z in views)
    n = a.shape[0]
    loss, on, off = barlow_twins(views[:2], lambd, eps)
    mixed = 0.0
    for z in (a, b):
        aimed_at = alpha * (a.T @ z) + (1 - alpha) * (b[permutation].T @ z)
        mixed = mixed + ((m.T @ z - aimed_at) / n).square().sum()
    return loss + mixing * lambd * mixed, on, off, mixed
