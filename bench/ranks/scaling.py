"""A model of one step on groups of H100s: `barlow_fast` against the all-reduce of C.

Nothing here has run. Operations and bytes are exact; rates are assumed (`ASSUMPTIONS` says them in
words). Where there was a choice, it favours the all-reduce: its ring runs through all network links
of a machine at once, its C travels in two bytes, and it needs no latency beyond one.
"""

from __future__ import annotations

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


def ring_bandwidth(gpus: int) -> float:
    """Bytes per second that each rank of a ring sends.

    Between machines, the rings of a collective library leave a machine through all of its links
    at once, and each byte only once: eight times what a rank's own link carries, or what the links
    within the machine carry if that is less.
    """
    inside = network(GPUS_PER_NODE).bandwidth
    if gpus <= GPUS_PER_NODE:
        return inside
    return min(inside, GPUS_PER_NODE * network(gpus).bandwidth)


def ours(gpus: int, n: int, d: int) -> Step:
    """`layout="auto"`, by the model with which it chooses."""
    rows, net = tuple(implementations.split(n, gpus)), network(gpus)
    layout = cost.choose_layout("auto", "auto", rows, d, DTYPE, PRECISION, net)
    found = cost.cost(layout, rows, d, DTYPE, PRECISION)
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
        + sent / ring_bandwidth(gpus)
        + net.latency
    )
    return Step(seconds, flops, sent, fits=MATRICES * matrix <= MEMORY)
