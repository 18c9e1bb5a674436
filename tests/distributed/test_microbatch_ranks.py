"""Micro-batches on several ranks against one process with all samples."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from barlow_fast import BarlowTwinsLoss
from barlow_fast.distributed.micro_batches import number_of, split
from barlow_fast.microbatch import backward_in_microbatches
from barlow_fast.models.batch_norm import synchronise

SAMPLES = (10, 7)
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
    a = torch.randn(sum(SAMPLES), 6, dtype=torch.float64, generator=generator)
    b = a + 0.5 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    return (a, b) if rank is None else tuple(v.split(list(SAMPLES))[rank] for v in (a, b))


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
        # One bucket, once per step; 3 micro-batches each, since one rank needs so many.
        assert [found["exchanged"] for found in results] == [2, 2]
        assert [int(found["calls"]) for found in results] == [6, 6]


class Normed(nn.Module):
    """With a batch norm of pixels and one of features, or none."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        norms = (nn.BatchNorm2d(3), nn.BatchNorm1d(10)) if batch_norm else (nn.Identity(),) * 2
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = nn.Sequential(
                nn.Conv2d(2, 3, 3), norms[0], nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                nn.Linear(12, 10), norms[1], nn.GELU(), nn.Linear(10, 12),
            ).double()  # fmt: skip
        # So that DDP has something to broadcast.
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(a) * self.factor, self.layers(b)


# Which batch norm, and how the ranks share the model.
KINDS = {
    "ddp": ("none", "ddp"),
    "ddp, batch norm": ("own", "ddp"),
    "ddp, SyncBatchNorm": ("of all", "ddp"),
    "fsdp2": ("none", "fsdp2"),
    "fsdp2, SyncBatchNorm": ("of all", "fsdp2"),
}
STEPS = 3


def random_cases(norm: str, count: int = 12) -> list[tuple[tuple[int, int], int]]:
    """(Samples of two ranks, micro_batch_size). A batch norm of each rank's own takes two."""
    generator = torch.Generator().manual_seed(len(norm))
    least = 2 if norm == "own" else 1
    drawn = torch.randint(least, 41, (count, 2), generator=generator).tolist()
    sizes = torch.randint(4, 12, (count,), generator=generator).tolist()
    # The pair of the first report, and one in which a rank has fewer samples than micro-batches.
    return [((10, 11), 10), ((least, 40), 4), *zip(map(tuple, drawn), sizes, strict=True)]


def drawn(samples: tuple[int, int], step: int) -> list[tuple[Tensor, Tensor]]:
    """Both views of each rank."""
    generator = torch.Generator().manual_seed(100 + step)
    a = torch.randn(sum(samples), 2, 6, 6, dtype=torch.float64, generator=generator)
    b = a + 0.5 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    return list(zip(a.split(list(samples)), b.split(list(samples)), strict=True))


def steps_of_ranks(group, norm: str, wrap: str, cases) -> list[list[dict[str, Tensor]]]:
    """Gradients and losses of each step of each case."""
    found = []
    criterion = BarlowTwinsLoss(lambd=LAMBDA, process_group=group)
    for samples, size in cases:
        model = Normed(norm != "none")
        if norm == "of all":
            model = synchronise(model, "cpu", group)
        if wrap == "fsdp2":
            fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
        wrapped = model if wrap == "fsdp2" else DistributedDataParallel(model, process_group=group)
        steps = []
        for step in range(STEPS):
            wrapped.zero_grad()
            own = drawn(samples, step)[group.rank()]
            loss = backward_in_microbatches(wrapped, own, criterion, size)
            gradients = {name: p.grad for name, p in model.named_parameters()}
            if wrap == "fsdp2":
                gradients = {name: g.full_tensor() for name, g in gradients.items()}
            steps.append({name: g.clone() for name, g in gradients.items()} | {"loss": loss})
            descend(model)
        found.append(steps)
    return found


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad


def steps_alone(norm: str, samples: tuple[int, int], size: int) -> list[dict[str, Tensor]]:
    """The same on one device, with the graphs of all micro-batches at once."""
    model = Normed(norm != "none")
    wanted = [-(-n // size) for n in samples]
    if norm == "of all" or min(samples) >= 2 * max(wanted):
        wanted = [max(wanted)] * 2
    steps = []
    for step in range(STEPS):
        model.zero_grad()
        views = drawn(samples, step)
        # [rank][view][part]
        parts = [
            [view.split(split(n, count, before)) for view in pair]
            for n, count, before, pair in zip(samples, wanted, (0, samples[0]), views, strict=True)
        ]
        if norm == "of all":
            batches = [[torch.cat(same) for same in zip(*pair, strict=True)]
                       for pair in zip(*parts, strict=True)]  # fmt: skip
        else:
            batches = [[part for rank in parts for part in rank[view]] for view in (0, 1)]
        embedded = [model(a, b) for a, b in zip(*batches, strict=True)]
        loss = BarlowTwinsLoss(lambd=LAMBDA)(*map(torch.cat, zip(*embedded, strict=True)))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        steps.append(gradients | {"loss": loss.detach()})
        descend(model)
    return steps


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) if k == "fsdp2, SyncBatchNorm" else k for k in KINDS],
)
def test_ranks_with_any_samples_get_the_gradients_of_one_device(kind, pool):
    norm, wrap = KINDS[kind]
    cases = random_cases(norm)
    results = pool.run(steps_of_ranks, 2, norm, wrap, cases)
    for case, *found in zip(cases, *results, strict=True):
        for step, wanted in enumerate(steps_alone(norm, *case)):
            largest = max(float(value.norm()) for value in wanted.values())
            for steps in found:
                for name, value in wanted.items():
                    error = float((steps[step][name] - value).norm())
                    assert error <= 1e-10 * largest, (case, step, name, error, largest)


def refused(group, what: str) -> str:
    """What a rank says of a step of which one rank, or all, cannot do its part."""
    samples = {"one sample": (1, 9), "few for shards": (3, 40)}.get(what, SAMPLES)
    model = Normed(batch_norm="one" in what or "few" in what)
    if what == "few for shards":
        fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    else:
        model = DistributedDataParallel(
            model, process_group=group, static_graph=what == "static graph"
        )
    views: list = list(drawn(samples, 0)[group.rank()])
    size = 4
    if what == "a view" and group.rank() == 1:
        views[1] = views[1][:-1]
    if what == "a size" and group.rank() == 0:
        size = 0
    if what == "a forward" and group.rank() == 1:
        model.module.register_forward_pre_hook(fail)
    try:
        backward_in_microbatches(model, views, BarlowTwinsLoss(process_group=group), size)
    except (ValueError, RuntimeError) as error:
        reported = f"{type(error).__name__}: {error}"
    # All ranks are at the same exchange, so that later calls match.
    dist.barrier(group)
    return reported


def fail(module: nn.Module, inputs: tuple) -> None:
    raise RuntimeError("out of something")


@pytest.mark.parametrize(
    ("what", "who", "words"),
    [
        ("a view", 1, r"ValueError: views must have the same number of samples"),
        ("a size", 0, r"ValueError: micro_batch_size must be at least 1, got 0"),
        ("a forward", 1, r"RuntimeError: out of something"),
        ("one sample", 0, r"ValueError: micro_batch_size 4 leaves a micro-batch of one sample"),
        ("static graph", None, r"ValueError: DistributedDataParallel\(static_graph=True\)"),
        ("few for shards", None, r"ValueError: all ranks need 10 micro-batches.*rank 0 has 3"),
    ],
)
def test_what_one_rank_refuses_all_ranks_report(what, who, words, pool):
    for rank, text in enumerate(pool.run(refused, 2, what)):
        kind, words_alone = words.split(": ", 1)
        reported_by = "" if who in (None, rank) else f"rank {who} of process_group: "
        assert re.match(f"{kind}: {reported_by}{words_alone}", text), text


def crossed(group) -> str:
    """One rank goes to the loss at once, the other by way of micro-batches."""
    model = DistributedDataParallel(Normed(False), process_group=group, broadcast_buffers=False)
    views = drawn(SAMPLES, 0)[group.rank()]
    criterion = BarlowTwinsLoss(process_group=group)
    try:
        if group.rank() == 0:
            criterion(*model(*views))
        else:
            backward_in_microbatches(model, views, criterion, 4)
    except ValueError as error:
        return str(error)


def test_ranks_that_came_to_different_exchanges_say_so(pool):
    for text in pool.run(crossed, 2):
        assert "different exchanges: the loss on rank 0, micro-batches on rank 1" in text


def test_parts_of_all_ranks_are_as_equal_as_they_can_be():
    for samples in ((1, 40, 7), (10, 11, 0), (3, 3, 3), (1, 0, 1)):
        for size in range(2, 12):
            for n in (1, 2, 3, 7, 10, 40):
                assert min(split(n, number_of(n, size))) >= min(n, 2)
                assert max(split(n, number_of(n, size))) <= max(size, 3)
        for count in range(1, 12):
            parts = [split(n, count, sum(samples[:rank])) for rank, n in enumerate(samples)]
            assert [sum(sizes) for sizes in parts] == list(samples)
            for sizes in (*parts, [sum(same) for same in zip(*parts, strict=True)]):
                assert max(sizes) - min(sizes) <= 1, (samples, count, parts)
