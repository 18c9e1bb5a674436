"""Adapters whose peers have a loss of all ranks: value on each rank, and each rank's gradient.

With C = sum over ranks of C_r, the derivative of the one loss has a part on each rank. A peer that
adds up without autograd's knowledge has that part ('official'), one that adds up with it has W
times the part ('exact'), because every rank's loss depends on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from embeddings import draw
from formulas import (
    LAMBDA,
    SCALE,
    batch_norm,
    official_model,
    outcome,
    penalty,
    unbiased,
    variance_covariance,
    vicreg_model,
)
from torch import Tensor, nn

from barlow_fast.adapters import lightly, mmpretrain, solo_learn, stable_pretraining, vissl
from barlow_fast.adapters.mmselfsup import LatentCrossCorrelationHead
from barlow_fast.models.batch_norm import SyncBatchNorm

W, N = 4, 5
UNEQUAL = (4, 7, 5, 3)
DIMENSIONS = (3, 37)  # the correlation is added up; rows are gathered


def views(rows: tuple[int, ...], d: int) -> tuple[list[Tensor], list[Tensor]]:
    z_a, z_b = draw("correlated", sum(rows), d, 1, torch.float64)
    return list(z_a.split(rows)), list((z_b + 0.3).split(rows))


def _head(kind: type[nn.Module], d: int, **options: str) -> nn.Module:
    return kind(d, {"type": "CrossCorrelationLoss", "lambd": LAMBDA}, **options).double()


def _synchronised(d: int, batch_size: int, **options: str) -> nn.Module:
    model = official_model(d, batch_size, torch.float64, **options)
    model.bn = SyncBatchNorm(d, affine=False).double()
    return model


def _vissl(d: int, **options: str) -> Callable[[Tensor, Tensor], Tensor]:
    criterion = vissl.BarlowTwinsCriterion(LAMBDA, SCALE, d, **options)
    return lambda a, b: criterion(torch.cat((a, b)))


class _OwnLoss(nn.Module):
    def forward(self, matrix: Tensor) -> Tensor:
        return penalty(matrix, LAMBDA)


ADAPTERS: dict[str, Callable[..., Callable[[Tensor, Tensor], Tensor]]] = {
    "lightly": lambda d, **o: lightly.BarlowTwinsLoss(LAMBDA, True, **o),
    "lightly_alone": lambda d, **o: lightly.BarlowTwinsLoss(LAMBDA, **o),
    "solo_learn": lambda d, **o: lambda a, b: solo_learn.barlow_loss_func(a, b, LAMBDA, SCALE, **o),
    "mmpretrain": lambda d, **o: _head(mmpretrain.LatentCrossCorrelationHead, d, **o).loss,
    "mmselfsup": lambda d, **o: _head(LatentCrossCorrelationHead, d, **o),
    "mm_own_loss": lambda d, **o: (
        mmpretrain.LatentCrossCorrelationHead(d, _OwnLoss(), **o).double().loss
    ),
    "official": lambda d, **o: _synchronised(d, W * N, **o),
    "official_short_batch": lambda d, **o: _synchronised(d, 2 * W * N, **o),
    "official_local": lambda d, **o: official_model(d, W * N, torch.float64, **o),
    "stable_pretraining": lambda d, **o: stable_pretraining.BarlowTwinsLoss(LAMBDA, **o),
    "vissl": lambda d, **o: _vissl(d, **o),
}

# Those with the gradient of autograd-aware sums by default.
EXACT_BY_DEFAULT = {"lightly", "stable_pretraining"}
# What ranks of different sizes make of each, where it has an exact answer.
UNEQUAL_TOO = (
    "mmpretrain", "mm_own_loss", "official", "official_short_batch", "stable_pretraining", "vissl",
)  # fmt: skip


def formula(name: str, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The loss of all ranks' views."""
    whole_a, whole_b = torch.cat(a), torch.cat(b)
    if name.startswith("official") and name != "official_local":
        divisor = 2 * W * N if name == "official_short_batch" else W * N
        return penalty(batch_norm(whole_a).T @ batch_norm(whole_b) / divisor, LAMBDA)
    if name == "vissl":
        both = torch.stack([torch.cat(pair).mean(0) for pair in zip(a, b, strict=True)])
        mean = both.mean(0)
        centred = [torch.cat(pair) - mean for pair in zip(a, b, strict=True)]
        variance = torch.stack([z.square().mean(0) for z in centred]).mean(0)
        us = [(z / (variance + 1e-5).sqrt()).chunk(2) for z in centred]
        c = sum(x.T @ y / x.shape[0] for x, y in us) / W
        return penalty(c, LAMBDA, scale=SCALE)
    norm = batch_norm
    if name == "stable_pretraining":
        norm = functools.partial(unbiased, outside=1e-5)
    divisors = [W * N if name == "official_local" else W * len(z) for z in a]
    c = sum(norm(x).T @ norm(y) / m for x, y, m in zip(a, b, divisors, strict=True))
    return penalty(c, LAMBDA, scale=SCALE if name == "solo_learn" else 1.0)


def run_all(group, rows: list[int], names: list[str], dimensions: list[int]):
    """{name, gradient, D: (loss, grad_a, grad_b)} of this rank."""
    found = {}
    for d in dimensions:
        a, b = (part[group.rank()] for part in views(tuple(rows), d))
        for name in names:
            for gradient in ("default", "exact", "official"):
                options = {} if gradient == "default" else {"gradient": gradient}
                found[f"{name} {gradient} {d}"] = outcome(ADAPTERS[name](d, **options), a, b)
    return found


def expected(name: str, gradient: str, rows: tuple[int, ...], d: int):
    """(loss, grad_a, grad_b) of each rank."""
    a, b = ([z.clone().requires_grad_() for z in part] for part in views(rows, d))
    if name == "lightly_alone":
        losses = [
            penalty(batch_norm(x).T @ batch_norm(y) / len(x), LAMBDA)
            for x, y in zip(a, b, strict=True)
        ]
        sum(losses).backward()
        factor = 1
    else:
        losses = [formula(name, a, b)] * len(rows)
        losses[0].backward()
        factor = 1 if gradient == "official" else W
        if gradient == "default":
            factor = W if name in EXACT_BY_DEFAULT else 1
    return [
        (loss.detach(), factor * x.grad, factor * y.grad)
        for loss, x, y in zip(losses, a, b, strict=True)
    ]


def compare(found: list[dict], rows: tuple[int, ...]) -> None:
    for key in found[0]:
        name, gradient, d = key.split()
        for rank, exact in enumerate(expected(name, gradient, rows, int(d))):
            # VISSL's backward averages ranks' averages, exact for equal ranks only: so does ours.
            judged = 1 if name == "vissl" and len(set(rows)) > 1 else 3
            for x, y in zip(found[rank][key][:judged], exact[:judged], strict=True):
                error = float((x - y).norm() / y.norm())
                assert error <= 1e-10, (key, rank, error)


def test_loss_and_gradients_of_all_ranks(pool):
    found = pool.run(run_all, W, [N] * W, list(ADAPTERS), list(DIMENSIONS))
    assert len(found[0]) == len(ADAPTERS) * 3 * len(DIMENSIONS)
    compare(found, (N,) * W)


def test_ranks_of_different_sizes(pool):
    found = pool.run(run_all, W, list(UNEQUAL), list(UNEQUAL_TOO), list(DIMENSIONS))
    compare(found, UNEQUAL)


def refused(group, names: list[str]) -> dict[str, str]:
    """What this rank says of views of which rank 1 has two of different numbers of samples."""
    errors = {}
    for name in names:
        a, b = (part[group.rank()] for part in views((N,) * W, 6))
        try:
            ADAPTERS[name](6)(a, b[:-1] if group.rank() == 1 else b)
        except Exception as error:
            errors[name] = str(error)
    return errors


def test_what_one_rank_refuses_all_ranks_report(pool):
    names = [name for name in ADAPTERS if name != "lightly_alone"]
    first, *rest = pool.run(refused, W, names)
    assert list(first) == names
    for name, text in first.items():
        assert text.startswith("rank 1 of process_group: "), (name, text)
        own = rest[0][name]
        assert text == f"rank 1 of process_group: {own}", (name, text)
        assert "9 should be divisible" in own if name == "vissl" else "4" in own, own
        assert all(others[name] == text for others in rest[1:])


def installed_lightly(group):
    """lightly's own loss and ours, on this rank's rows."""
    from lightly.loss import BarlowTwinsLoss

    a, b = (part[group.rank()] for part in views((N,) * W, 11))
    kinds = (BarlowTwinsLoss, lightly.BarlowTwinsLoss)
    return [outcome(kind(LAMBDA, gather_distributed=True), a, b) for kind in kinds]


def test_the_installed_lightly_across_ranks(pool):
    pytest.importorskip("lightly")
    for theirs, ours in pool.run(installed_lightly, W):
        for x, y in zip(ours, theirs, strict=True):
            assert float((x - y).norm()) <= 1e-10 * float(y.norm())


def running_statistics(group):
    """Buffers of a synchronised norm of the official module, and of the norm called twice."""
    a, b = (part[group.rank()] for part in views(UNEQUAL, 6))
    model = _synchronised(6, sum(UNEQUAL))
    norm = SyncBatchNorm(6, affine=False).double()
    model(a, b)
    norm(a)
    norm(b)
    return dict(model.bn.state_dict()), dict(norm.state_dict())


def test_running_statistics_of_all_ranks(pool):
    for ours, theirs in pool.run(running_statistics, W):
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-12, atol=1e-13)


def differing(group):
    loss = stable_pretraining.BarlowTwinsLoss(LAMBDA)
    with pytest.raises(ValueError, match=r"ranks of process_group were called differently"):
        loss(*torch.randn(2, N, 3 + group.rank() // 2))
    return torch.zeros(1)


def test_ranks_that_differ_are_reported(pool):
    assert len(pool.run(differing, W)) == W


def half_precision(group):
    """Relative errors of bfloat16 embeddings' losses and gradients, both ways of exchange."""
    errors = []
    for d in DIMENSIONS:
        whole = [[z.bfloat16() for z in part] for part in views((N,) * W, d)]
        exact = [[z.double().requires_grad_() for z in part] for part in whole]
        truth = formula("stable_pretraining", *exact)
        truth.backward()
        pair = [part[group.rank()].clone().requires_grad_() for part in whole]
        with torch.autocast("cpu", torch.bfloat16):
            loss = stable_pretraining.BarlowTwinsLoss(LAMBDA)(*pair)
        loss.backward()
        assert loss.dtype == torch.float32
        errors.append(abs(float(loss - truth)) / float(truth))
        for z, part in zip(pair, exact, strict=True):
            assert z.grad.dtype == torch.bfloat16
            want = W * part[group.rank()].grad
            errors.append(float((z.grad - want).norm() / want.norm()))
    return torch.tensor(errors)


def test_half_precision_across_ranks(pool):
    for errors in pool.run(half_precision, W):
        assert float(errors.max()) <= 8 * torch.finfo(torch.bfloat16).eps


# --- VICReg: each rank's invariance, statistics of all ranks -------------------------------------

Weights = tuple[float, float, float]
# What gives the loss of D dimensions, its weights, and the batch that covariances are divided by.
GATHERED: dict[str, tuple[Callable[[int], Callable], Weights, int | None]] = {
    "lightly": (lambda d: lightly.VICRegLoss(gather_distributed=True), (25.0, 25.0, 1.0), None),
    "solo_learn": (lambda d: solo_learn.vicreg_loss_func, (25.0, 50.0, 1.0), None),
    "stable_pretraining": (
        lambda d: stable_pretraining.VICRegLoss(), (25.0, 25.0, 1.0), None,
    ),
    "vcreg": (lambda d: _vcreg_of_both, (0.0, 25.0, 1.0), None),
    "vicreg": (
        lambda d: vicreg_model(d, torch.float64, batch_size=W * N + 3),
        (25.0, 25.0, 1.0),
        W * N + 3,
    ),
}  # fmt: skip
ALONE: dict[str, Callable] = {
    "lightly": lightly.VICRegLoss(),
    "solo_learn": functools.partial(solo_learn.vicreg_loss_func, gather_distributed=False),
}


def _vcreg_of_both(z_i: Tensor, z_j: Tensor) -> Tensor:
    loss = stable_pretraining.VCRegLoss()
    return loss(z_i) + loss(z_j)


def run_gathered(group, dimensions: list[int]) -> dict[str, tuple[Tensor, ...]]:
    found = {}
    for d in dimensions:
        pair = [part[group.rank()] for part in views((N,) * W, d)]
        for name, (made, _, _) in GATHERED.items():
            found[f"{name} {d}"] = outcome(made(d), *pair)
        for name, loss in ALONE.items():
            found[f"alone {name} {d}"] = outcome(loss, *pair)
    return found


def test_variances_and_covariances_of_all_ranks(pool):
    """The gradients of each rank are those of the sum of all ranks' losses, of which
    DistributedDataParallel takes the mean."""
    found = pool.run(run_gathered, W, list(DIMENSIONS))
    for d in DIMENSIONS:
        for name, (_, (pull, *rest), batch) in GATHERED.items():
            a, b = ([z.clone().requires_grad_() for z in part] for part in views((N,) * W, d))
            shared = variance_covariance((0.0, *rest), batch=batch)(torch.cat(a), torch.cat(b))
            losses = [shared + pull * (x - y).square().mean() for x, y in zip(a, b, strict=True)]
            sum(losses).backward()
            for rank, loss in enumerate(losses):
                exact = (loss.detach(), a[rank].grad, b[rank].grad)
                assert_close(found[rank][f"{name} {d}"], exact)
        for name in ALONE:
            formula = variance_covariance(GATHERED[name][1])
            for rank, pair in enumerate(zip(*views((N,) * W, d), strict=True)):
                assert_close(found[rank][f"alone {name} {d}"], outcome(formula, *pair))


def assert_close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    for x, y in zip(found, exact, strict=True):
        assert float((x - y).norm()) <= 1e-10 * float(y.norm())


def installed_vicreg(group):
    """lightly's own VICReg and ours, on this rank's rows."""
    from lightly.loss import VICRegLoss

    pair = [part[group.rank()] for part in views((N,) * W, 11)]
    kinds = (VICRegLoss, lightly.VICRegLoss)
    return [outcome(kind(gather_distributed=True), *pair) for kind in kinds]


def test_the_installed_vicreg_across_ranks(pool):
    pytest.importorskip("lightly")
    for theirs, ours in pool.run(installed_vicreg, W):
        assert_close(ours, theirs)


def refused_vicreg(group) -> dict[str, str]:
    """What this rank says of views of which rank 1 has one of another shape."""
    errors = {}
    for name, (made, _, _) in GATHERED.items():
        a, b = (part[group.rank()] for part in views((N,) * W, 6))
        if group.rank() == 1:
            b = b[None] if name == "vcreg" else b[:-1]
        try:
            made(6)(a, b)
        except Exception as error:
            errors[name] = str(error)
    return errors


def test_what_one_rank_refuses_of_vicreg_all_ranks_report(pool):
    first, *rest = pool.run(refused_vicreg, W)
    assert list(first) == list(GATHERED)
    for name, text in first.items():
        own = rest[0][name]
        assert text == f"rank 1 of process_group: {own}", (name, text)
        assert all(others[name] == text for others in rest[1:])
