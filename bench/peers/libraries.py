"""The losses of other libraries, with lambda matched: a class where its package is installed, and
its mathematics in plain torch where it is not, or no longer installs. Formulas are written from the
descriptions here, not from the libraries' code.

All of them compute C = norm(z_a)^T norm(z_b) / N and

    loss = factor * [sum_i (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2]

and differ in the norm, in how elements off the diagonal are reached, and in what is done in place.
MONAI and stable-pretraining divide by the unbiased deviation plus an eps, catalyst by the root of
the unbiased variance plus one. MONAI holds lambda in float32 whatever the inputs are. Packages are
imported when a loss is built, and not to find out whether they are there: some take seconds.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench import provenance
from bench.peers.official import batch_norm, off_diagonal, squared_in_place
from bench.peers.peer import LAMBD, PAPER, Loss, Mathematics, Peer, stateless

MONAI = Mathematics(unbiased=True, eps=1e-6, eps_on="deviation", lambd=torch.tensor(LAMBD).item())
STABLE_PRETRAINING = Mathematics(unbiased=True, eps=1e-5, eps_on="deviation")
SOLO_LEARN = Mathematics(factor=0.025)  # the library's default; its lambda is matched
VISSL = Mathematics(shared=True, eps=1e-5)
CATALYST = Mathematics(unbiased=True, eps=1e-12)


def squared(c: Tensor) -> Tensor:
    """Both terms of the loss, out of place."""
    return (c.diagonal() - 1).pow(2).sum() + LAMBD * off_diagonal(c).pow(2).sum()


def by_deviation(z: Tensor, eps: float) -> Tensor:
    """Divided by the unbiased deviation plus eps."""
    return (z - z.mean(0)) / (z.std(0) + eps)


def lightly_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Functional batch_norm: biased variance, no running means. Both terms are squared in place."""
    hat_a, hat_b = (functional.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
    return squared_in_place(hat_a.T @ hat_b / len(z_a))


def monai_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The identity is made twice in each call, once to be subtracted and once to be a mask, squares
    are taken in place, and lambda is multiplied into the elements that the mask picks."""
    n, d = z_a.shape
    c = by_deviation(z_a, MONAI.eps).T @ by_deviation(z_b, MONAI.eps) / n
    squares = (c - torch.eye(d, device=c.device)).pow_(2)
    squares[~torch.eye(d, device=c.device).bool()] *= MONAI.lambd
    return squares.sum()


def stable_pretraining_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """C is divided and both terms are squared out of place."""
    eps = STABLE_PRETRAINING.eps
    return squared(by_deviation(z_a, eps).T @ by_deviation(z_b, eps) / len(z_a))


def solo_learn_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """One BatchNorm1d for both views, with running statistics, is made anew in each call, the
    product is an einsum, the identity is subtracted out of place and then picks, as booleans, the
    elements that lambda is multiplied into."""
    n, d = z_a.shape
    norm = batch_norm(d, z_a.dtype).to(z_a.device)
    c = torch.einsum("ni, nj -> ij", norm(z_a), norm(z_b)) / n
    identity = torch.eye(d, device=c.device)
    squares = (c - identity).pow(2)
    squares[~identity.bool()] *= LAMBD
    return SOLO_LEARN.factor * squares.sum()


class VisslNormalisation(torch.autograd.Function):
    """norm(x) = (x - E[x]) / sqrt(E[x^2] - E[x]^2 + eps) of a (rows, D) tensor over all its rows.

    It keeps the input and the two statistics. With g = dL/dnorm(x),

        dL/dx = [g - E[g] - norm(x) E[g norm(x)]] / sqrt(variance + eps)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.mean(0)
        variance = x.square().mean(0) - mean.square()
        ctx.save_for_backward(x, mean, variance)
        return (x - mean) / (variance + VISSL.eps).sqrt()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, mean, variance = ctx.saved_tensors
        centred, v = x - mean, variance + VISSL.eps
        return (g - g.mean(0) - centred / v * (g * centred).mean(0)) / v.sqrt()


def vissl_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Both views, which its models give in one tensor, are standardised together, by an autograd
    function of its own; the terms are squared out of place. Its factor on the loss is 1 here."""
    n = len(z_a)
    hat_a, hat_b = VisslNormalisation.apply(torch.cat([z_a, z_b])).split(n)
    return squared(hat_a.T @ hat_b / n)


def build(path: str, options: Mapping[str, Any], n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class at a dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**options)


def _missing(module: str, command: str) -> str | None:
    reason = provenance.missing(module)
    return reason and f"{reason} ({command})"


def library(
    name: str,
    path: str,
    mathematics: Mathematics = PAPER,
    options: Mapping[str, Any] | None = None,
    formula: Loss | None = None,
    title: str | None = None,
    command: str | None = None,
) -> Iterator[Peer]:
    """The class of a library and its formula, as far as there are both.

    Args:
        name: of its package.
        path: of its loss, as Python has it where `options` are given.
        mathematics: what it computes.
        options: of its class; None where the release does not install beside a current torch.
        formula: the same in plain torch, for machines on which the class is not there.
        title: what the tables call it; the name by default.
        command: that installs it, by default `pip install` of its name.
    """
    title, module = title or name, path.partition(".")[0]
    command = command or f"pip install {name}"
    if options is not None:
        yield Peer(
            name=name,
            title=title,
            source=f"{title} {provenance.version(name) or '(not installed)'}, {path}",
            build=functools.partial(build, path, options),
            mathematics=mathematics,
            unavailable=lambda: _missing(module, command),
        )
    if formula is not None:
        measured = f"{title} itself is installed"
        yield Peer(
            name=name if options is None else f"{name}-formula",
            title=f"{title} (formula)",
            source=f"the mathematics of {path} in plain torch, not {title} itself",
            build=stateless(formula),
            mathematics=mathematics,
            unavailable=lambda: measured if options and not provenance.missing(module) else None,
        )


PEERS = (
    *library(
        "lightly", "lightly.loss.BarlowTwinsLoss", PAPER, {"lambda_param": LAMBD}, lightly_loss,
        command="pip install 'barlow-fast[bench]'",
    ),
    *library(
        "monai", "monai.losses.BarlowTwinsLoss", MONAI, {"lambd": LAMBD}, monai_loss, "MONAI"
    ),
    *library(
        "stable-pretraining", "stable_pretraining.losses.BarlowTwinsLoss", STABLE_PRETRAINING,
        {"lambd": LAMBD}, stable_pretraining_loss,
    ),
    *library(
        "catalyst", "catalyst.contrib.losses.BarlowTwinsLoss", CATALYST,
        {"offdiag_lambda": LAMBD, "eps": CATALYST.eps},
    ),
    # Its release requires torch 1.9; that of VISSL, numpy 1.19.
    *library(
        "solo-learn", "solo-learn 1.0.6's barlow_loss_func", SOLO_LEARN, formula=solo_learn_loss
    ),
    *library(
        "vissl", "VISSL's BarlowTwinsCriterion (09270ed)", VISSL, formula=vissl_loss, title="VISSL"
    ),
)  # fmt: skip
