"""Micro-batches on several ranks against one process with all samples."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from barlow_fast import BarlowTwinsLoss
from barlow_fast.microbatch import backward_in_microbatches

ROWS = (10, 7)
# 3 and 2 micro-batches; sharded parameters need as many on all ranks.
SIZE, SHARDED_SIZE = 4, 5
LAMBDA = 0.1


class Network(nn.Module):
    """The buffer that multiplies is rank 0's once DDP has broadcast it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            layers = nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 12, bias=False)
            self.layers = nn.Sequential(*layers).double()
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.layers(a) * self.factor, self.layers(b)


def samples(rank: int | None = None) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(6)
    a = torch.randn(sum(ROWS), 6, dtype=torch.float64, generator=generator)
    b = a + 0.5 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    return (a, b) if rank is None else tuple(v.split(list(ROWS))[rank] for v in (a, b))


def data_parallel(group) -> dict[str, Tensor]:
    """Two steps without an update, and how often gradients crossed between ranks."""
    model = Network()
    wrapped = DistributedDataParallel(model, process_group=group)
    exchanged = [0]

    def hook(state, bucket):
        exchanged[0] += 1
        done = dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
        return done.then(lambda future: future.value()[0] / group.size())

    wrapped.register_comm_hook(None, hook)
    # Only a broadcast, in both passes, makes the ranks agree.
    model.factor.fill_(1.0 if group.rank() == 0 else 7.0)
    criterion = BarlowTwinsLoss(lambd=LAMBDA, process_group=group)
    for _ in range(2):
        wrapped.zero_grad()
        loss = backward_in_microbatches(wrapped, samples(group.rank()), criterion, SIZE)
    found = {name: p.grad for name, p in model.named_parameters()}
    return {**found, "loss": loss, "exchanged": exchanged[0], "calls": model.calls}


def sharded(group) -> dict[str, Tensor]:
    model = Network()
    fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    criterion = BarlowTwinsLoss(lambd=LAMBDA, process_group=group)
    loss = backward_in_microbatches(model, samples(group.rank()), criterion, SHARDED_SIZE)
    found = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    return {**found, "loss": loss}


@pytest.mark.parametrize("wrap", [data_parallel, sharded], ids=["ddp", "fsdp2"])
def test_ranks_get_the_gradient_of_all_samples(wrap, pool):
    alone = Network()
    loss = BarlowTwinsLoss(lambd=LAMBDA)(*alone(*samples()))
    loss.backward()
    loss = loss.detach()
    results = pool.run(wrap, 2)
    for found in results:
        assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-12)
        for name, p in alone.named_parameters():
            assert float((found[name] - p.grad).norm()) <= 1e-12 * float(p.grad.norm()), name
    if wrap is data_parallel:
        # One bucket, once per step; 3 and 2 micro-batches, the count as on rank 0 when the second
        # step began.
        assert [found["exchanged"] for found in results] == [2, 2]
        assert [int(found["calls"]) for found in results] == [6, 5]
