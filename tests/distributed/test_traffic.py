"""Bytes: the model against those counted, and those counted against the loopback device's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from whole import own, views

from barlow_fast import barlow_twins_loss
from barlow_fast.distributed import cost, count_traffic

# Samples of four ranks (the first W of them count) and D: also several tiles of each side.
SHAPES = (
    ((8, 8, 8, 8), 40), ((3, 7, 2, 5), 61), ((9, 30, 4, 11), 3),
    ((70, 64, 65, 81), 300), ((140, 160, 120, 3), 96),
)  # fmt: skip
TYPES = (
    *((torch.float64, precision) for precision in ("fp64", "fp32", "bf16", "fp16")),
    *((torch.float32, precision) for precision in ("fp64", "fp32", "bf16", "fp16")),
    *((torch.bfloat16, precision) for precision in ("bf16", "fp32")),
    (torch.float16, "fp16"),
)
TRANSMITTED = Path("/sys/class/net/lo/statistics/tx_bytes")


def sent(group, samples, d, dtype, options):
    pair = [own(z, samples, group.rank()) for z in views("random", samples, d, dtype=dtype)]
    with count_traffic() as traffic:
        barlow_twins_loss(*pair, process_group=group, **options).backward()
    return dict(traffic.by_step), traffic.sent


def sent_of_all(group, layout, statistics):
    options = {"layout": layout, "statistics": statistics}
    return [
        sent(group, samples[: group.size()], d, dtype, options | {"precision": precision})
        for samples, d in SHAPES
        for dtype, precision in TYPES
    ]


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_model_is_exact(layout, statistics, ranks, pool):
    cases = [(samples[:ranks], d, *types) for samples, d in SHAPES for types in TYPES]
    for rank, counted in enumerate(pool.run(sent_of_all, ranks, layout, statistics)):
        for (samples, d, dtype, precision), (by_step, total) in zip(cases, counted, strict=True):
            assert sum(by_step.values()) == total
            model = cost.cost(layout, samples, d, dtype, precision, rank, statistics).sent
            assert total == model, (rank, samples, d, dtype, precision, by_step)


def step_of(group, samples, d, options):
    """Bytes of a step whose messages are large."""
    generator = torch.Generator().manual_seed(group.rank())
    n = samples[group.rank()]
    pair = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]
    with count_traffic() as traffic:
        barlow_twins_loss(*pair, process_group=group, **options).backward()
    return traffic.sent


@pytest.mark.parametrize(
    ("layout", "samples", "d"),
    [("features", (192, 128), 6000), ("rows", (192, 128), 6000), ("correlation", (24, 16), 1500)],
)
def test_the_loopback_device_counts_the_same(layout, samples, d, pool):
    """Between processes of one machine, all that is sent goes through it, headers included."""
    try:
        TRANSMITTED.read_text()
    except OSError as problem:
        pytest.skip(f"no counter of the loopback device: {problem}")
    options = {"layout": layout, "backend": "aten"}
    pool.run(step_of, 2, samples, d, options)
    measured = []
    for _ in range(10):  # others may be sending too
        before = int(TRANSMITTED.read_text())
        counted = sum(pool.run(step_of, 2, samples, d, options))
        measured.append(int(TRANSMITTED.read_text()) - before)
        if measured[-1] < 1.03 * counted:
            break
    assert counted > 1e7
    assert counted <= min(measured) < 1.03 * counted
