"""Which layout is cheapest: operations, bytes and messages of each, and seconds on a network.

Pure: numbers in, numbers out, the same on every rank. The bytes are exact (a test compares them
with what is counted on the wire); the seconds are a model, and only their order matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..arguments import FORM_OF_LAYOUT, LAYOUTS, check_layout
from ..kernels import tiles
from ..kernels.precision import OPERAND_DTYPE, accumulation_dtype
from . import slices, wire

DESCRIPTION = {
    "features": "features for samples by all-to-all, N x N summed as tiles",
    "rows": "embeddings gathered, N x N by rows",
    "correlation": "D x D summed over ranks",
}


@dataclass(frozen=True)
class Network:
    """What ranks are made of and joined by, as far as the choice of a layout goes."""

    bandwidth: float  # bytes per second that a rank sends to others while it receives as many
    shared_bandwidth: float  # the same in rings and trees, which use all links of a machine at once
    latency: float  # seconds before the first byte of an exchange, or of a step of a tree
    per_rank: float  # further seconds for each rank that an exchange addresses
    matmul: float  # operations per second of a rank's matrix products
    memory: float  # bytes per second of a rank's memory
    use_all_reduce: bool = False  # for sums over ranks, as between machines

    def __post_init__(self) -> None:
        for name in ("bandwidth", "shared_bandwidth", "matmul", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("latency", "per_rank"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


# Operations per second, by precision: 16-bit as measured on an H100, the others at the data sheet's
# ratio to it (TF32 a half, float64 a fifteenth; fp32 is three TF32 products).
_GPU_MATMUL = {"bf16": 790e12, "fp16": 790e12, "tf32": 395e12, "fp32": 130e12, "fp64": 52e12}
# All ranks must assume the same, and their CPUs may differ: for bf16 twice fp32's rate, as AVX-512
# BF16 has it, between CPUs without products of bfloat16 (fp32's) and those with BFMMLA or AMX (four
# times and more). tf32 is executed with AMX alone, as three products of bfloat16.
_CPU_MATMUL = {"bf16": 200e9, "fp16": 100e9, "tf32": 200e9, "fp32": 100e9, "fp64": 50e9}


def network_of(device_type: str, nodes: int, precision: str) -> Network:
    """What is assumed of a group: NVLink within a machine (450 GB/s each way by the data sheet,
    three quarters of it in use); between machines 400 Gbit/s per GPU, of eight GPUs together for
    rings and trees; a loopback or Ethernet, and a few cores per rank, on CPUs."""
    if device_type != "cuda":
        return Network(1e9, 1e9, 1e-4, 2e-5, _CPU_MATMUL[precision], 10e9)
    matmul = _GPU_MATMUL[precision]
    if nodes <= 1:
        return Network(340e9, 340e9, 15e-6, 0.5e-6, matmul, 3e12)
    return Network(40e9, 320e9, 25e-6, 1.5e-6, matmul, 3e12, use_all_reduce=True)


@dataclass(frozen=True)
class LayoutCost:
    """One forward + backward pass of one rank in one layout."""

    flops: float  # operations of the matrix products
    exchanged: int  # bytes that the rank sends in all-to-alls
    spread: int  # bytes that it sends in all-gathers and sums
    exchanges: int  # all-to-alls and all-gathers: every rank is addressed by every other
    sums: int  # over all ranks, by trees where there are any
    kept: int  # bytes held from forward to backward, beside the inputs

    @property
    def sent(self) -> int:
        """All bytes that the rank sends to others."""
        return self.exchanged + self.spread

    def seconds(self, network: Network, ranks: int) -> float:
        """What the model makes of it: nothing overlaps; what is kept is written and read twice."""
        return (
            self.flops / network.matmul
            + self.exchanged / network.bandwidth
            + self.spread / network.shared_bandwidth
            + self.exchanges * (network.latency + (ranks - 1) * network.per_rank)
            + self.sums * network.latency * (1 + math.log2(ranks))
            + 4 * self.kept / network.memory
        )

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e9:.4g} GFLOP, {self.sent / 2**20:.4g} MiB sent in {self.exchanges} "
            f"exchanges and {self.sums} sums, {self.kept / 2**20:.4g} MiB kept, per rank"
        )


def cost(
    layout: str,
    samples: tuple[int, ...],
    d: int,
    dtype: torch.dtype,
    precision: str,
    rank: int = 0,
    statistics: str = "global",
    use_all_reduce: bool = False,
) -> LayoutCost:
    """The cost of a layout for `rank`, with both inputs' gradients wanted.

    Args:
        samples: samples of each rank.
        d: embedding dimensions.
        dtype: dtype of the embeddings.
        statistics: 'global' or 'local'.
        use_all_reduce: for sums over ranks, as between machines.
    """
    ranks, n, own = len(samples), sum(samples), samples[rank]
    width, others, is_global = slices.widths(d, ranks)[rank], ranks - 1, statistics == "global"
    matrix = wire.matrix_dtype(precision).itemsize
    wide, operand = accumulation_dtype(precision).itemsize, OPERAND_DTYPE[precision].itemsize

    def summed(values: int) -> int:
        """Bytes of a sum of float64 vectors."""
        return 2 * others * 8 * values // ranks if use_all_reduce else 8 * values * others

    scale = summed(1)
    moments = 5 * 8 * (d - width)
    if layout == "features":
        b, count = tiles.side(n, precision), tiles.count(n, precision)
        share = -(-count * b // ranks) * b
        embedding = operand  # local statistics have standardised them
        if is_global:
            embedding = wire.embedding_dtype(dtype, precision).itemsize
        gradient = wire.gradient_dtype(dtype, precision, statistics).itemsize
        exchanged = moments + 2 * own * (d - width) * embedding + 2 * (n - own) * width * gradient
        spread = summed(7) + scale
        kept = 2 * n * width * dtype.itemsize + 2 * ranks * share * matrix
        flops = 6.0 * n * n * width
        if use_all_reduce:
            spread += 2 * 2 * others * share * wide
            return LayoutCost(flops, exchanged, spread, 5, 4, kept)
        exchanged += 2 * others * share * matrix
        spread += 2 * others * share * matrix
        return LayoutCost(flops, exchanged, spread, 8, 2, kept)
    if use_all_reduce:
        exchanged, exchanges, sums = 0, 0, 2 if is_global else 1
        spread = (summed(2 * d) + summed(3 * d)) if is_global else summed(3 * d)
    else:
        # The (7, D) statistics are gathered, from each rank its columns; of local ones only C_ii.
        exchanged, exchanges, sums = moments, 2, 0
        spread = (7 if is_global else 1) * wide * max(slices.widths(d, ranks)) * others
    if layout == "rows":
        most = max(samples)
        spread += 2 * others * most * d * operand + summed(5) + scale
        spread += summed(2 * d) if is_global else 0  # projections: own ones are known at home
        kept = 2 * ranks * most * d * operand + 2 * own * ranks * most * operand
        flops = 8.0 * own * ranks * most * d
        sums += 3 if is_global else 2
        return LayoutCost(flops, exchanged, spread, exchanges + 2, sums, kept)
    share = -(-d // ranks) * d
    flops, kept = 6.0 * own * d * d, ranks * share * matrix
    if use_all_reduce:
        spread += 2 * others * share * wide + scale
        return LayoutCost(flops, exchanged, spread, exchanges, sums + 2, kept)
    exchanged += others * share * matrix
    spread += others * share * matrix + summed(3 + d) + -(-d // ranks) * 8 * others + scale
    return LayoutCost(flops, exchanged, spread, exchanges + 3, sums + 2, kept)


def choose_layout(
    layout: str,
    form: str,
    samples: tuple[int, ...],
    d: int,
    dtype: torch.dtype,
    precision: str,
    network: Network,
    statistics: str = "global",
) -> str:
    """`layout` unless it is 'auto', else the one of the form ('auto': of any) that the model finds
    fastest.

    Raises:
        ValueError: a layout that does not belong to the form.
    """
    check_layout(layout, form)
    if layout != "auto":
        return layout
    fitting = [x for x in LAYOUTS if form in ("auto", FORM_OF_LAYOUT[x])]
    # For the rank with most samples, which all ranks know.
    most = samples.index(max(samples))

    def seconds(candidate: str) -> float:
        each = cost(
            candidate, samples, d, dtype, precision, most, statistics, network.use_all_reduce
        )
        return each.seconds(network, len(samples))

    return min(fitting, key=seconds)
