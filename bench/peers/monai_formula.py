"""The mathematics of MONAI's class in plain torch, for machines on which MONAI is missing.

    C = norm(z_a)^T norm(z_b) / N        norm: less the mean, over the unbiased deviation plus 1e-6
    loss = sum over i, j of (C_ij - delta_ij)^2, those with i != j times lambda

As in MONAI, the identity is made twice in each call, once to be subtracted and once to be a mask,
squares are taken in place, and lambda is multiplied into the elements that the mask picks. Not
MONAI's code: written from this description.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.peers import Peer, installation, stateless
from bench.peers.installed import MONAI


def formula_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views."""
    n, d = z_a.shape
    hat_a, hat_b = ((z - z.mean(0)) / (z.std(0) + MONAI.eps) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / n
    squares = (c - torch.eye(d, device=c.device)).pow_(2)
    off_diagonal = ~torch.eye(d, device=c.device).bool()
    squares[off_diagonal] *= MONAI.lambd
    return squares.sum()


PEER = Peer(
    name="monai-formula",
    title="MONAI (formula)",
    source="the mathematics of monai.losses.BarlowTwinsLoss in plain torch, not MONAI itself",
    build=stateless(formula_loss),
    mathematics=MONAI,
    unavailable=functools.partial(installation.formula_reason, "monai", "MONAI"),
)
