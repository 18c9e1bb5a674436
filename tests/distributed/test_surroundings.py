"""Inside what training scripts wrap around a loss: accumulation, FSDP, compiled models,
checkpointed activations, AMP."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from test_parameters import (
    BOUND,
    FEATURES,
    UNEQUAL,
    D,
    alone,
    assert_equal,
    encoder,
    images,
    outcome,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from whole import EPS, LAMBDA, LAYOUTS, terms

from barlow_fast import BarlowTwinsLoss, barlow_twins_loss


def loss_of(z, group, layout, **options):
    return barlow_twins_loss(
        *z.chunk(2), LAMBDA, eps=EPS, process_group=group, layout=layout, **options
    )


def accumulated(group, samples, layout):
    """Two steps' gradients, of which only the second is averaged by DDP with both in it."""
    model = DistributedDataParallel(encoder(), process_group=group)
    x = torch.cat(images(samples, group.rank()))
    with model.no_sync():
        loss_of(model(x), group, layout).backward()
    loss_of(model(2 * x), group, layout).backward()
    return [p.grad for p in model.parameters()]


def test_gradient_accumulation(layout, pool):
    samples = UNEQUAL[:3]
    model = encoder()
    for factor in (1, 2):
        loss, *_ = terms(*(model(factor * x) for x in images(samples)), samples, "global")
        loss.backward()
    for grads in pool.run(accumulated, 3, samples, layout):
        for got, p in zip(grads, model.parameters(), strict=True):
            assert float((got - p.grad).norm()) < BOUND * float(p.grad.norm())


def sharded(group, samples, layout):
    from torch.distributed.fsdp import fully_shard

    model = encoder()
    mesh = DeviceMesh.from_group(group, "cpu")
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = loss_of(model(torch.cat(images(samples, group.rank()))), mesh, layout)
    loss.backward()
    return loss.detach(), *(p.grad.full_tensor() for p in model.parameters())


def test_fully_sharded_parameters(layout, pool):
    if not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    samples = UNEQUAL[:2]
    assert_equal(pool.run(sharded, 2, samples, layout), alone(samples, "global"), 1.0)


def compiled(group, samples, layout, backend, whole):
    """One step of a compiled model, or of model and loss compiled together."""
    torch.compiler.reset()
    model = DistributedDataParallel(encoder(), process_group=group)

    def step(x):
        return loss_of(model(x), group, layout)

    run = torch.compile(step, backend=backend) if whole else step
    if not whole:
        model = torch.compile(model, backend=backend)
    return outcome(run(torch.cat(images(samples, group.rank()))), model)


# Every layout and both ways in `make test`, all of their pairs in `make test-all`.
@pytest.mark.parametrize(
    ("layout", "whole"),
    [
        pytest.param(
            layout,
            whole,
            marks=() if whole == (number % 2 == 0) else pytest.mark.slow,
            id=f"{layout}-{'model and loss' if whole else 'model'}",
        )
        for number, layout in enumerate(LAYOUTS)
        for whole in (False, True)
    ],
)
def test_compiled(layout, whole, pool):
    samples = UNEQUAL[:2]
    found = pool.run(compiled, 2, samples, layout, "aot_eager", whole)
    assert_equal(found, alone(samples, "global"), 1.0)


@pytest.mark.slow
def test_compiled_by_inductor(pool):
    samples = UNEQUAL[:2]
    found = pool.run(compiled, 2, samples, "features", "inductor", True)
    assert_equal(found, alone(samples, "global"), 1.0)


def checkpointed(group, samples, layout, with_loss):
    """The encoder is run again in the backward pass; with the loss, all of its exchanges are."""
    model = DistributedDataParallel(encoder(), process_group=group)
    x = torch.cat(images(samples, group.rank()))

    def step(x):
        return loss_of(model.module(x), group, layout)

    if not with_loss:
        return outcome(loss_of(checkpoint(model, x, use_reentrant=False), group, layout), model)
    found = outcome(checkpoint(step, x, use_reentrant=False), model)
    for grad in found[1:]:
        dist.all_reduce(grad, group=group)
        grad /= group.size()
    return found


@pytest.mark.parametrize("with_loss", [False, True], ids=["model", "model and loss"])
def test_checkpointed_activations(layout, with_loss, pool):
    samples = UNEQUAL[:2]
    found = pool.run(checkpointed, 2, samples, layout, with_loss)
    assert_equal(found, alone(samples, "global"), 1.0)


def with_scaler(group, layout):
    """Losses of some steps in float16 under a GradScaler; parameters at the end."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(FEATURES, 4 * D), process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    criterion = BarlowTwinsLoss(LAMBDA, process_group=group, layout=layout)
    x_a, x_b = (view.float() for view in images((24, 40), group.rank()))
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.float16):
            loss = criterion(model(x_a), model(x_b))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, scaler.get_scale(), [p.detach() for p in model.parameters()]


def test_grad_scaler_trains(layout, pool):
    (losses, scale, parameters), other = pool.run(with_scaler, 2, layout)
    assert scale >= 2048
    assert losses[-1] < losses[0]
    assert (losses, scale) == other[:2]
    for mine, theirs in zip(parameters, other[2], strict=True):
        assert torch.equal(mine, theirs)


def without_data(group, layout):
    """What a rank that runs out of data does: it takes part with no samples."""
    model = DistributedDataParallel(encoder(), process_group=group)
    samples = (6, 0, 7)
    return outcome(loss_of(model(torch.cat(images(samples, group.rank()))), group, layout), model)


def test_a_rank_that_has_run_out_of_data(layout, pool):
    assert_equal(pool.run(without_data, 3, layout), alone((6, 0, 7), "global"), 1.0)
