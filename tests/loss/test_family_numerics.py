"""The numerics gate of the losses of any number of views: no path may lose more than twice what
their definitions in plain torch lose in the same precision."""

from __future__ import annotations

import pytest
import reference_losses
import torch
from gate import FLOOR, relative_error
from test_family import LOSSES, drawn, every_backend, every_loss
from torch import Tensor

SEEDS = range(5)
KINDS = ("correlated", "badly scaled", "large means", "nearly equal")


def views_of(kind: str, count: int, n: int, d: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Inputs in float32."""
    views, permutation = drawn(count, n, d, seed=1000 * (seed + 1))
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(2 * torch.randn(d, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        for v, z in enumerate(views):
            if kind == "badly scaled":
                z.mul_(scales)
            elif kind == "large means":
                z.add_(300 * scales / scales.max())
            elif kind == "nearly equal" and v:
                z.copy_(views[0] + 0.01 * (z - z.mean(0)))
    return [z.detach().float() for z in views], permutation


def computed(function, views: list[Tensor], permutation: Tensor) -> tuple[Tensor, ...]:
    """(loss, gradients as one vector)."""
    leaves = [z.detach().clone().requires_grad_() for z in views]
    loss = function(leaves, permutation)
    grads = torch.autograd.grad(loss, leaves)
    return loss.detach(), torch.cat([g.flatten() for g in grads])


def vicreg_by_gram_matrices(views: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """The definition in the Gram form: there long columns cancel, which round with the others."""
    (n, d), covariance = views[0].shape, 0.0
    for z in views:
        centred = z - z.mean(0)
        gram = (centred @ centred.T).float()
        own = centred.square().sum(0).square().sum()
        covariance = covariance + (gram.square().sum() - own) / (n - 1) ** 2 / d
    _, invariance, variance, _ = reference_losses.vicreg(views, weights)
    terms = invariance, variance, covariance * min(len(views), 2) / len(views)
    return sum(w * t for w, t in zip(weights, terms, strict=True))


def errors(name: str, kind: str, shape: tuple[int, int], precision: str, options: dict) -> list:
    """(ours, plain) root mean squares over seeds of the relative errors of loss and gradients."""
    loss = LOSSES[name]
    squares = torch.zeros(2, 2, dtype=torch.float64)
    for seed in SEEDS:
        views, permutation = views_of(kind, loss.counts[-1], *shape, seed)
        exact = computed(
            lambda z, p: loss.definition(z, p)[0], [z.double() for z in views], permutation
        )
        mine = computed(
            lambda z, p: loss.ours(z, p, precision=precision, **options)[0], views, permutation
        )

        def plain(z, p):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                if name == "vicreg" and options["form"] == "gram":
                    return vicreg_by_gram_matrices(z, (20.0, 10.0, 3.0))
                return loss.definition(z, p)[0].float()

        theirs = computed(plain, views, permutation)
        for row, found in enumerate((mine, theirs)):
            for column in range(2):
                error = relative_error(found[column], exact[column].detach())
                squares[row, column] += error**2 / len(SEEDS)
    return squares.sqrt().tolist()


@every_backend
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(24, 160), (160, 24)], ids=["gram", "correlation"])
@pytest.mark.parametrize("kind", KINDS)
@every_loss
def test_loses_no_more_than_twice_plain_torch(name, kind, shape, precision, backend):
    form = "gram" if shape[0] < shape[1] else "correlation"
    (loss, gradient), (plain_loss, plain_gradient) = errors(
        name, kind, shape, precision, {"backend": backend, "form": form}
    )
    assert loss <= 2 * plain_loss + FLOOR[precision]
    assert gradient <= 2 * plain_gradient + FLOOR[precision]
