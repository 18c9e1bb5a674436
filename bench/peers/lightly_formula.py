"""The mathematics of lightly's class in plain torch, for machines on which lightly is
missing.

    C = norm(z_a)^T norm(z_b) / N         functional batch_norm: biased variance, no running means
    loss = sum_i (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2

As in lightly, both terms are squared in place, and the off-diagonal elements are the columns after
the first of C read as (D - 1) rows of D + 1. Not lightly's code: written from this description.
"""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn import functional

from bench.peers import LAMBD, Peer, installation, stateless


def formula_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views."""
    n, d = z_a.shape
    hat_a, hat_b = (functional.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / n
    on_diagonal = c.diagonal().add_(-1).pow_(2).sum()
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().pow_(2).sum()
    return on_diagonal + LAMBD * off_diagonal


PEER = Peer(
    name="lightly-formula",
    title="lightly (formula)",
    source="the mathematics of lightly.loss.BarlowTwinsLoss in plain torch, not lightly itself",
    build=stateless(formula_loss),
    unavailable=functools.partial(installation.formula_reason, "lightly", "lightly"),
)
