"""A model of one step on groups of H100s: `barlow_fast` against the all-reduce of C.

Nothing here has run. Operations and bytes are exact; rates are assumed (the suite lists
them). Both are charged by the same network: an all-reduce leaves a machine through all of its
links at once and takes the steps of a tree. C travels in two bytes.
"""

from __future__ import annotations

from typing import Any

import torch

from barlow_fast.distributed import LayoutCost, Network, cost
from bench.ranks import implementations, official
from bench.results import rounded

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


def network(gpus: int) -> Network:
    """What `barlow_fast` itself assumes of such a group when it chooses a layout."""
    return cost.network_of("cuda", -(-gpus // GPUS_PER_NODE), PRECISION)


def _step(found: LayoutCost, gpus: int) -> dict[str, Any]:
    """One forward and backward pass of one rank, in the columns of a row."""
    seconds = rounded(found.seconds(network(gpus), gpus))
    return {"seconds": seconds, "flops": found.flops, "sent": found.sent}


def ours(gpus: int, n: int, d: int) -> dict[str, Any]:
    """`layout="auto"`, by the model with which it chooses."""
    rows, net = tuple(implementations.split(n, gpus)), network(gpus)
    layout = cost.choose_layout("auto", "auto", rows, d, DTYPE, PRECISION, net)
    found = cost.cost(layout, rows, d, DTYPE, PRECISION, use_all_reduce=net.use_all_reduce)
    return _step(found, gpus) | {"layout": layout, "fits": True}


def all_reduce(gpus: int, n: int, d: int) -> dict[str, Any]:
    """C in two bytes an element: products, passes through memory, the ring and the sums."""
    matrix = DTYPE.itemsize * d * d
    sent = official.wire_bytes(d, gpus, DTYPE.itemsize)
    # What is kept counts as four passes.
    found = LayoutCost(6.0 * n / gpus * d * d, 0, sent, 0, SUMS, PASSES * matrix // 4)
    return _step(found, gpus) | {"layout": None, "fits": MATRICES * matrix <= MEMORY}
