"""The losses of any number of views across ranks: values, terms and averaged gradients are those of
one process with all samples."""

from __future__ import annotations

import re

import pytest
import reference_losses
import torch
from embeddings import draw
from torch import Tensor
from whole import own

from barlow_fast import (
    barlow_twins_loss,
    frossl_loss,
    mixed_barlow_twins_loss,
    vicreg_loss,
)

BOUND = 1e-12
LOSSES = ("barlow twins", "target", "vicreg", "vcreg", "frossl", "mixed")
WEIGHTS = (0.05, 1.3, 0.4)  # of the mixed loss: lambd, mixing, alpha


def ours(name: str, views: list[Tensor], permutation: Tensor, **options) -> tuple:
    options = {"return_terms": True, "backend": "aten"} | options
    if name == "vicreg" or name == "vcreg":
        return vicreg_loss(views, None, 20.0, 10.0, 3.0, **options)
    if name == "frossl":
        return frossl_loss(views, invariance=1.4, **options)
    if name == "mixed":
        lambd, mixing, alpha = WEIGHTS
        return mixed_barlow_twins_loss(*views, permutation, alpha, lambd, mixing=mixing, **options)
    target = -1.0 if name == "target" else 0.0
    return barlow_twins_loss(views, lambd=0.05, off_diagonal_target=target, **options)


def definition(name: str, views: list[Tensor], permutation: Tensor) -> tuple[Tensor, ...]:
    if name == "vicreg" or name == "vcreg":
        return reference_losses.vicreg(views, (20.0, 10.0, 3.0))
    if name == "frossl":
        return reference_losses.frossl(views, 1.4)
    if name == "mixed":
        return reference_losses.mixed_barlow_twins(views, permutation, WEIGHTS)
    return reference_losses.barlow_twins(views, 0.05, target=-1.0 if name == "target" else 0.0)


def embeddings(name: str, samples: tuple[int, ...], d: int) -> tuple[list[Tensor], list[Tensor]]:
    """(Views of all ranks' samples, a permutation of each rank's own)."""
    n, count = sum(samples), 1 if name == "vcreg" else 3
    first, second = draw("correlated", n, d, seed=3, dtype=torch.float64)
    views = [first * (1 + v) + v * second.roll(v, 0) + v for v in range(count)]
    generator = torch.Generator().manual_seed(n)
    return views, [torch.randperm(own, generator=generator) for own in samples]


def computed(group, name, samples, d, options):
    """(loss, terms, gradients of this rank's samples)."""
    views, permutations = embeddings(name, samples, d)
    leaves = [own(z, samples, group.rank()) for z in views]
    loss, terms = ours(name, leaves, permutations[group.rank()], process_group=group, **options)
    return loss.detach(), list(terms), list(torch.autograd.grad(loss, leaves))


def whole(name, samples, d):
    views, permutations = embeddings(name, samples, d)
    first, rows = 0, []
    for permutation in permutations:
        rows.append(permutation + first)
        first += len(permutation)
    leaves = [z.clone().requires_grad_() for z in views]
    loss, *terms = definition(name, leaves, torch.cat(rows))
    return loss.detach(), terms, torch.autograd.grad(loss, leaves)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).norm()) <= BOUND * max(float(want.norm()), 1.0)


def assert_equal(found, name, samples, d, factor=1.0):
    loss, terms, grads = whole(name, samples, d)
    for rank in found:
        assert_close(rank[0], loss)
        for got, want in zip(rank[1], terms, strict=False):
            assert_close(got, want.detach())
    for view, want in enumerate(grads):
        mean = torch.cat([rank[2][view] for rank in found]) / len(found)
        assert_close(mean, factor * want)


@pytest.mark.parametrize("layout", ["features", "correlation"])
@pytest.mark.parametrize(
    ("samples", "d"),
    [((5, 9), 37), ((4, 7, 5), 6), ((3, 0, 6, 2), 17), ((6, 4, 5), 2)],
    ids=str,
)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_one_process(name, samples, d, layout, pool):
    found = pool.run(computed, len(samples), name, samples, d, {"layout": layout})
    assert_equal(found, name, samples, d)


@pytest.mark.parametrize("form", ["auto", "gram", "correlation"])
@pytest.mark.parametrize("name", LOSSES)
def test_automatic_layout(name, form, pool):
    found = pool.run(computed, 2, name, (5, 6), 13, {"form": form})
    assert_equal(found, name, (5, 6), 13)


@pytest.mark.parametrize("name", ["vicreg", "mixed"])
def test_the_official_gradient_is_smaller_by_the_number_of_ranks(name, pool):
    found = pool.run(computed, 2, name, (5, 6), 13, {"gradient": "official"})
    assert_equal(found, name, (5, 6), 13, factor=0.5)


def refused(group, what):
    views, _ = embeddings("vicreg", (5, 5), 6)
    leaves = [own(z, (5, 5), group.rank()) for z in views]
    first = group.rank() == 0
    try:
        if what == "weights":
            vicreg_loss(leaves, None, 1.0 + group.rank(), process_group=group)
        elif what == "losses":
            (vicreg_loss if first else frossl_loss)(leaves, process_group=group)
        elif what == "views":
            vicreg_loss(leaves[: 2 + group.rank()], process_group=group)
        elif what == "a bad view":
            vicreg_loss(leaves if first else [z.long() for z in leaves], process_group=group)
        elif what == "rows":
            frossl_loss(leaves, process_group=group, layout="rows")
        else:
            barlow_twins_loss(leaves, process_group=group, statistics="local")
    except (TypeError, ValueError) as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "called differently: weights"),
        ("losses", "called differently: loss"),
        ("views", "called differently: views"),
        ("a bad view", r"views\[0\] must be float64"),
        ("rows", "is for two views"),
        ("local", "take statistics='global' alone"),
    ],
)
def test_what_ranks_refuse_together(what, words, pool):
    for message in pool.run(refused, 2, what):
        assert re.search(words, message), message
