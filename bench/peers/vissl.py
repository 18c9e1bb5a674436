"""The mathematics of VISSL's criterion in plain torch: its release pins numpy 1.19, which today's
Pythons cannot install.

    mean = E[x],  variance = E[x^2] - E[x]^2               over the rows of both views together
    C = norm(z_a)^T norm(z_b) / N                   norm(x) = (x - mean) / sqrt(variance + 1e-5)
    loss = sum_i (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2

As in VISSL, whose models give both views in one tensor, the views are concatenated; the norm is an
autograd function of its own that keeps the inputs and the two statistics and goes back by

    dL/dx = [g - E[g] - norm(x) E[g norm(x)]] / sqrt(variance + 1e-5),        g = dL/dnorm(x)

and the terms are squared out of place. Its factor on the loss is 1 here. Written from this
description.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.peers import LAMBD, Mathematics, Peer, stateless

EPS = 1e-5


class Normalisation(torch.autograd.Function):
    """norm(x) of a (rows, D) tensor by the statistics of all its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.mean(0)
        variance = x.square().mean(0) - mean.square()
        ctx.save_for_backward(x, mean, variance)
        return (x - mean) / (variance + EPS).sqrt()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, mean, variance = ctx.saved_tensors
        centred = x - mean
        along = (g * centred).mean(0)
        return (g - g.mean(0) - centred / (variance + EPS) * along) / (variance + EPS).sqrt()


def vissl_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views."""
    n, d = z_a.shape
    hat_a, hat_b = Normalisation.apply(torch.cat([z_a, z_b])).split(n)
    c = hat_a.T @ hat_b / n
    on_diagonal = (c.diagonal() - 1).pow(2).sum()
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().pow(2).sum()
    return on_diagonal + LAMBD * off_diagonal


PEER = Peer(
    name="vissl",
    title="VISSL (formula)",
    source="the mathematics of VISSL's BarlowTwinsCriterion (09270ed) in plain torch, not VISSL "
    "itself",
    build=stateless(vissl_loss),
    mathematics=Mathematics(shared=True, eps=EPS),
)
