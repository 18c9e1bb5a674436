"""The mathematics of stable-pretraining's class in plain torch, for machines on which it
is missing.

    C = norm(z_a)^T norm(z_b) / N        norm: less the mean, over the unbiased deviation plus 1e-5
    loss = sum_i (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2

As there, C is divided and both terms are squared out of place, and the off-diagonal elements are
the columns after the first of C read as (D - 1) rows of D + 1. Not its code: written from this
description.
"""

from __future__ import annotations

import functools

from torch import Tensor

from bench.peers import LAMBD, Peer, installation, stateless
from bench.peers.installed import STABLE_PRETRAINING


def formula_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views."""
    n, d = z_a.shape
    hat_a, hat_b = ((z - z.mean(0)) / (z.std(0) + STABLE_PRETRAINING.eps) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / n
    on_diagonal = (c.diagonal() - 1).pow(2).sum()
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().pow(2).sum()
    return on_diagonal + LAMBD * off_diagonal


PEER = Peer(
    name="stable-pretraining-formula",
    title="stable-pretraining (formula)",
    source="the mathematics of stable_pretraining.losses.BarlowTwinsLoss in plain torch, not "
    "stable-pretraining itself",
    build=stateless(formula_loss),
    mathematics=STABLE_PRETRAINING,
    unavailable=functools.partial(
        installation.formula_reason, "stable_pretraining", "stable-pretraining"
    ),
)
