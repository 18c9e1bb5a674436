"""A model of one step on groups of H100s: `barlow_fast` against the all-reduce of C.

Nothing here has run. Operations and bytes are exact; rates are assumed (the suite lists
them). Both are charged by the same network: an all-reduce leaves a machine through all of its
links at once and takes the steps of a tree. C travels in two bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from barlow_fast.distributed import Network, cost
from bench.ranks import implementations, official

GPUS_PER_NODE = 8
# (GPUs, samples of all of them): the paper's 2048, then at least 32 on each GPU, then 2048 again.
GROUPS = ((8, 2048), (64, 2048), (512, 16384), (512, 2048))
DIMENSIONS = (8192, 16384, 32768, 65536, 131072, 262144)
PRECISION, DTYPE = "bf16", torch.bfloat16

PASSES = 26  # over D x D in memory, beside the matrix products
MATRICES = 3  # D x D ones in two bytes, alive at once
MEMORY = 80e9  # bytes of a GPU
# Of C, and of the statistics of two views, forward and backward (SyncBatchNorm), whose bytes are
# left out.
SUMS = 5


@dataclass(frozen=True)
class Step:
    """One forward and backward pass of one rank."""

    seconds: float
    flops: float
    sent: int
    layout: str | None = None
    fits: bool = True


def network(gpus: int) -> Network:
    """What `barlow_fast` itself assumes of such a group when it chooses a layout."""
    return cost.network_of("cuda", -(-gpus // GPUS_PER_NODE), PRECISION)


def ours(gpus: int, n: int, d: int) -> Step:
    """`layout="auto"`, by the model with which it chooses."""
    rows, net = tuple(implementations.split(n, gpus)), network(gpus)
    layout = cost.choose_layout("auto", "auto", rows, d, DTYPE, PRECISION, net)
    found = cost.cost(layout, rows, d, DTYPE, PRECISION, use_all_reduce=net.use_all_reduce)
    return Step(found.seconds(net, gpus), found.flops, found.sent, layout)


def all_reduce(gpus: int, n: int, d: int) -> Step:
    """C in two bytes an element: products, passes through memory and the ring, one by one."""
    net = network(gpus)
    flops = 6.0 * n / gpus * d * d
    sent = official.wire_bytes(d, gpus, DTYPE.itemsize)
    matrix = DTYPE.itemsize * d * d
    seconds = (
        flops / net.matmul
        + PASSES * matrix / net.memory
        + sent / net.shared_bandwidth
        + SUMS * net.latency * (1 + math.log2(gpus))
    )
    return Step(seconds, flops, sent, fits=MATRICES * matrix <= MEMORY)
