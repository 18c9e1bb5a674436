"""The mathematics of solo-learn's loss function in plain torch: its release wants torch
1.9.

    C = norm(z_a)^T norm(z_b) / N      a BatchNorm1d without affine parameters, used for both views
    loss = scale * sum over i, j of (C_ij - delta_ij)^2, those with i != j times lambda

As in solo-learn, the norm with its running statistics is made anew in each call, the product is an
einsum, the identity is subtracted out of place and then, as booleans, picks the elements that
lambda is multiplied into; `scale` is its default, lambda is matched. Written from this description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.peers import LAMBD, Mathematics, Peer, stateless

SCALE = 0.025


def solo_learn_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views."""
    n, d = z_a.shape
    # Half-precision inputs keep float32 statistics, as in a float32 model under autocast.
    statistics = torch.float64 if z_a.dtype == torch.float64 else torch.float32
    norm = nn.BatchNorm1d(d, affine=False, dtype=statistics).to(z_a.device)
    c = torch.einsum("ni, nj -> ij", norm(z_a), norm(z_b)) / n
    identity = torch.eye(d, device=c.device)
    squares = (c - identity).pow(2)
    squares[~identity.bool()] *= LAMBD
    return SCALE * squares.sum()


PEER = Peer(
    name="solo-learn",
    title="solo-learn (formula)",
    source="the mathematics of solo-learn 1.0.6's barlow_loss_func in plain torch, not solo-learn "
    "itself",
    build=stateless(solo_learn_loss),
    mathematics=Mathematics(factor=SCALE),
)
