"""The mathematics of other libraries in plain torch, for machines on which a library is missing or
no longer installs. Written from the descriptions here, not from the libraries' code.

All of them compute C = norm(z_a)^T norm(z_b) / N and

    loss = factor * [sum_i (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2]

and differ in the norm, in how elements off the diagonal are reached, and in what is done in place.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.peers import installed
from bench.peers.installed import MONAI, STABLE_PRETRAINING
from bench.peers.mathematics import LAMBD, Mathematics
from bench.peers.peer import Peer, stateless

SOLO_LEARN_FACTOR = 0.025  # the library's default; its lambda is matched
VISSL_EPS = 1e-5


def off_diagonal(c: Tensor) -> Tensor:
    """The elements off the diagonal: C without its last element, read as (D - 1) rows of D + 1,
    less the first column."""
    d = c.shape[0]
    return c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def lightly_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Functional batch_norm: biased variance, no running means. Both terms are squared in place."""
    hat_a, hat_b = (functional.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / len(z_a)
    on_diagonal = c.diagonal().add_(-1).pow_(2).sum()
    return on_diagonal + LAMBD * off_diagonal(c).pow_(2).sum()


def monai_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Norm by the unbiased deviation plus 1e-6. The identity is made twice in each call, once to be
    subtracted and once to be a mask, squares are taken in place, and lambda is multiplied into the
    elements that the mask picks."""
    n, d = z_a.shape
    hat_a, hat_b = ((z - z.mean(0)) / (z.std(0) + MONAI.eps) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / n
    squares = (c - torch.eye(d, device=c.device)).pow_(2)
    squares[~torch.eye(d, device=c.device).bool()] *= MONAI.lambd
    return squares.sum()


def stable_pretraining_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Norm by the unbiased deviation plus 1e-5. C is divided and both terms are squared out of
    place."""
    hat_a, hat_b = ((z - z.mean(0)) / (z.std(0) + STABLE_PRETRAINING.eps) for z in (z_a, z_b))
    c = hat_a.T @ hat_b / len(z_a)
    return (c.diagonal() - 1).pow(2).sum() + LAMBD * off_diagonal(c).pow(2).sum()


def solo_learn_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """One BatchNorm1d for both views, with running statistics, is made anew in each call, the
    product is an einsum, the identity is subtracted out of place and then picks, as booleans, the
    elements that lambda is multiplied into."""
    n, d = z_a.shape
    # Half-precision inputs keep float32 statistics, as in a float32 model under autocast.
    statistics = torch.float64 if z_a.dtype == torch.float64 else torch.float32
    norm = nn.BatchNorm1d(d, affine=False, dtype=statistics).to(z_a.device)
    c = torch.einsum("ni, nj -> ij", norm(z_a), norm(z_b)) / n
    identity = torch.eye(d, device=c.device)
    squares = (c - identity).pow(2)
    squares[~identity.bool()] *= LAMBD
    return SOLO_LEARN_FACTOR * squares.sum()


class VisslNormalisation(torch.autograd.Function):
    """norm(x) = (x - E[x]) / sqrt(E[x^2] - E[x]^2 + 1e-5) of a (rows, D) tensor over all its rows.

    It keeps the input and the two statistics. With g = dL/dnorm(x),

        dL/dx = [g - E[g] - norm(x) E[g norm(x)]] / sqrt(variance + 1e-5)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.mean(0)
        variance = x.square().mean(0) - mean.square()
        ctx.save_for_backward(x, mean, variance)
        return (x - mean) / (variance + VISSL_EPS).sqrt()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, mean, variance = ctx.saved_tensors
        centred, v = x - mean, variance + VISSL_EPS
        return (g - g.mean(0) - centred / v * (g * centred).mean(0)) / v.sqrt()


def vissl_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Both views, which its models give in one tensor, are standardised together, by an autograd
    function of its own; the terms are squared out of place. Its factor on the loss is 1 here."""
    n = len(z_a)
    hat_a, hat_b = VisslNormalisation.apply(torch.cat([z_a, z_b])).split(n)
    c = hat_a.T @ hat_b / n
    return (c.diagonal() - 1).pow(2).sum() + LAMBD * off_diagonal(c).pow(2).sum()


def _stands_in(library: str, title: str, path: str, loss: Any, mathematics: Mathematics) -> Peer:
    """The peer where a library is missing; elsewhere the class itself is measured."""
    return Peer(
        name=f"{library}-formula",
        title=f"{title} (formula)",
        source=f"the mathematics of {path} in plain torch, not {title} itself",
        build=stateless(loss),
        mathematics=mathematics,
        unavailable=functools.partial(
            installed.why_formula_is_left_out, path.partition(".")[0], title
        ),
    )


PEERS = (
    _stands_in(
        "lightly", "lightly", "lightly.loss.BarlowTwinsLoss", lightly_loss, Mathematics()
    ),
    _stands_in("monai", "MONAI", "monai.losses.BarlowTwinsLoss", monai_loss, MONAI),
    _stands_in(
        "stable-pretraining", "stable-pretraining", "stable_pretraining.losses.BarlowTwinsLoss",
        stable_pretraining_loss, STABLE_PRETRAINING,
    ),
    Peer(
        name="solo-learn",
        title="solo-learn (formula)",
        source="the mathematics of solo-learn 1.0.6's barlow_loss_func in plain torch, not "
        "solo-learn itself",  # whose release requires torch 1.9
        build=stateless(solo_learn_loss),
        mathematics=Mathematics(factor=SOLO_LEARN_FACTOR),
    ),
    Peer(
        name="vissl",
        title="VISSL (formula)",
        source="the mathematics of VISSL's BarlowTwinsCriterion (09270ed) in plain torch, not "
        "VISSL itself",  # whose release requires numpy 1.19
        build=stateless(vissl_loss),
        mathematics=Mathematics(shared=True, eps=VISSL_EPS),
    ),
)  # fmt: skip
