"""Gradients of parameters as DistributedDataParallel averages them, against one process, against
the original implementation and against peers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.parallel import DistributedDataParallel
from whole import EPS, LAMBDA, terms

from barlow_fast import barlow_twins_loss

FEATURES, D = 11, 22
EQUAL, UNEQUAL = (8, 8, 8, 8), (3, 9, 7, 5)
BOUND = 1e-12


def encoder() -> nn.Module:
    """The same on all ranks."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, D, bias=False)
        return nn.Sequential(*layers).double()


def images(samples: tuple[int, ...], rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Both views of all samples, or of one rank's."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(sum(samples), FEATURES, dtype=torch.float64, generator=generator)
    pair = x, x + 0.3 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    return pair if rank is None else tuple(view.split(list(samples))[rank] for view in pair)


class AddedUp(torch.autograd.Function):
    """A sum over ranks whose gradient is summed too: what SyncBatchNorm does with its moments."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class InPlaceAddedUp(torch.autograd.Function):
    """dist.all_reduce(c) as autograd does not see it: the gradient passes."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.mark_dirty(x)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def synchronised(z: Tensor, group) -> Tensor:
    """SyncBatchNorm without affine parameters, which torch has on GPUs alone."""
    n = AddedUp.apply(z.new_tensor(float(len(z))), group)
    centred = z - AddedUp.apply(z.sum(0), group) / n
    return centred * (AddedUp.apply(centred.square().sum(0), group) / n + EPS).rsqrt()


def off_diagonal(c: Tensor) -> Tensor:
    return c.flatten()[:-1].view(D - 1, D + 1)[:, 1:].flatten()


def of_correlation(c: Tensor) -> Tensor:
    return torch.diagonal(c).add(-1).pow(2).sum() + LAMBDA * off_diagonal(c).pow(2).sum()


def official(z_a: Tensor, z_b: Tensor, group, n: int) -> Tensor:
    """facebookresearch/barlowtwins, main.py, with its BatchNorm1d converted to SyncBN."""
    c = synchronised(z_a, group).T @ synchronised(z_b, group)
    return of_correlation(InPlaceAddedUp.apply(c.div_(n), group))


def solo_learn(z_a: Tensor, z_b: Tensor, group, n: int) -> Tensor:
    """vturrisi/solo-learn, losses/barlow.py, whose norm is made anew in each call: local."""
    hat_a, hat_b = (batch_norm(z, None, None, training=True, eps=EPS) for z in (z_a, z_b))
    c = InPlaceAddedUp.apply(hat_a.T @ hat_b / len(z_a), group)
    return of_correlation(c / group.size())


def lightly(z_a: Tensor, z_b: Tensor, group, n: int) -> Tensor:
    """lightly's class itself, whose ranks are always the world's."""
    from lightly.loss import BarlowTwinsLoss

    return BarlowTwinsLoss(lambda_param=LAMBDA, gather_distributed=True)(z_a, z_b)


PEERS = {"official": official, "solo_learn": solo_learn, "lightly": lightly}


def trained(group, samples, peer, options):
    """(loss, gradients of all parameters) of one backward pass under DDP."""
    model = DistributedDataParallel(encoder(), process_group=group)
    z_a, z_b = model(torch.cat(images(samples, group.rank()))).chunk(2)
    if peer is None:
        loss = barlow_twins_loss(z_a, z_b, LAMBDA, eps=EPS, process_group=group, **options)
    else:
        loss = PEERS[peer](z_a, z_b, group, sum(samples))
    return outcome(loss, model)


def outcome(loss: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """(loss, gradients of all parameters) after a backward pass."""
    loss.backward()
    return loss.detach(), *(p.grad for p in model.parameters())


def alone(samples: tuple[int, ...], statistics: str) -> tuple[Tensor, ...]:
    model = encoder()
    return outcome(terms(*(model(x) for x in images(samples)), samples, statistics)[0], model)


def assert_equal(found: list, exact: Sequence[Tensor], factor: float, bound: float = BOUND) -> None:
    """The same loss, and `factor` times the gradients, on every rank."""
    for values in found:
        assert abs(float(values[0]) - float(exact[0])) < bound * float(exact[0])
        for got, want in zip(values[1:], exact[1:], strict=True):
            assert float((got - factor * want).norm()) < bound * float(factor * want.norm())


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("samples", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_parameters_get_the_gradient_of_the_global_loss(layout, statistics, samples, ranks, pool):
    options = {"layout": layout, "statistics": statistics}
    samples = samples[:ranks]
    exact = alone(samples, statistics)
    assert_equal(pool.run(trained, ranks, samples, None, options), exact, 1.0)
    options["gradient"] = "official"
    assert_equal(pool.run(trained, ranks, samples, None, options), exact, 1 / ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_official(layout, ranks, pool):
    """The original implementation ends up with 1/W of the gradient; so does `official`."""
    samples = EQUAL[:ranks]
    theirs = pool.run(trained, ranks, samples, "official", {})
    assert_equal(theirs, alone(samples, "global"), 1 / ranks)
    options = {"layout": layout, "gradient": "official"}
    assert_equal(pool.run(trained, ranks, samples, None, options), theirs[0], 1.0)


@pytest.mark.parametrize(
    ("peer", "ranks", "gradient"),
    [*(("solo_learn", ranks, "official") for ranks in (2, 3, 4)), ("lightly", 4, "exact")],
)
def test_local_statistics_are_those_of_peers(layout, peer, ranks, gradient, pool):
    if peer == "lightly":
        version = pytest.importorskip("lightly").__version__
        if tuple(map(int, version.split(".")[:3])) < (1, 5, 26):
            gradient = "official"  # its all-reduce was not differentiated before
    samples = EQUAL[:ranks]
    theirs = pool.run(trained, ranks, samples, peer, {})
    options = {"layout": layout, "statistics": "local", "gradient": gradient}
    assert_equal(pool.run(trained, ranks, samples, None, options), theirs[0], 1.0)


def two_forward_passes(group, samples, options):
    """As the original implementation calls its network: once for each view."""
    model = DistributedDataParallel(encoder(), process_group=group)
    z_a, z_b = (model(x) for x in images(samples, group.rank()))
    loss = barlow_twins_loss(z_a, z_b, LAMBDA, eps=EPS, process_group=group, **options)
    return outcome(loss, model)


def test_two_forward_passes_of_a_wrapped_model(layout, pool):
    samples = UNEQUAL[:2]
    found = pool.run(two_forward_passes, 2, samples, {"layout": layout})
    assert_equal(found, alone(samples, "global"), 1.0)
