"""Which layout is cheapest: operations, bytes and messages of each, and seconds on a network.

Pure: numbers in, numbers out, the same on every rank. The bytes are exact (a test compares them
with what is counted on the wire); the seconds are a model, and only their order matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..kernels import tiles
from ..kernels.precision import OPERAND_DTYPE, accumulation_dtype
from . import shards, wire

LAYOUTS = ("features", "rows", "correlation")
FORM_OF_LAYOUT = {"features": "gram", "rows": "gram", "correlation": "correlation"}

DESCRIPTION = {
    "features": "features for samples by all-to-all, N x N summed as tiles",
    "rows": "embeddings gathered, N x N by rows",
    "correlation": "D x D summed over ranks",
}


@dataclass(frozen=True)
class Network:
    """What ranks are made of and joined by, as far as the choice of a layout goes."""

    bandwidth: float  # bytes per second that a rank sends while it receives as many
    latency: float  # seconds before the first byte of an exchange, or of a step of a tree
    per_rank: float  # further seconds for each rank that an exchange addresses
    matmul: float  # operations per second of a rank's matrix products
    memory: float  # bytes per second of a rank's memory

    def __post_init__(self) -> None:
        for name in ("bandwidth", "matmul", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("latency", "per_rank"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


# Operations per second, by precision: 16-bit as measured on an H100, the others at the data sheet's
# ratio to it (TF32 a half, float64 a fifteenth; fp32 is three TF32 products).
_GPU_MATMUL = {"bf16": 790e12, "fp16": 790e12, "tf32": 395e12, "fp32": 130e12, "fp64": 52e12}
_CPU_MATMUL = {"bf16": 200e9, "fp16": 100e9, "tf32": 100e9, "fp32": 100e9, "fp64": 50e9}


def network_of(device_type: str, nodes: int, precision: str) -> Network:
    """What is assumed of a group: NVLink within a machine (450 GB/s each way by the data sheet,
    three quarters of it in use), 400 Gbit/s per GPU between machines; a loopback or Ethernet, and a
    few cores per rank, on CPUs."""
    if device_type != "cuda":
        return Network(1e9, 1e-4, 2e-5, _CPU_MATMUL[precision], 10e9)
    if nodes <= 1:
        return Network(340e9, 15e-6, 0.5e-6, _GPU_MATMUL[precision], 3e12)
    return Network(40e9, 25e-6, 1.5e-6, _GPU_MATMUL[precision], 3e12)


@dataclass(frozen=True)
class LayoutCost:
    """One forward + backward pass of one rank in one layout."""

    flops: float  # operations of the matrix products
    sent: int  # bytes that the rank sends to others
    exchanges: int  # all-to-alls and all-gathers: every rank addresses every other
    sums: int  # of a few numbers over all ranks: trees
    kept: int  # bytes held from forward to backward, beside the inputs

    def seconds(self, network: Network, ranks: int) -> float:
        """What the model makes of it: nothing overlaps; what is kept is written and read twice."""
        return (
            self.flops / network.matmul
            + self.sent / network.bandwidth
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
    rows: tuple[int, ...],
    d: int,
    dtype: torch.dtype,
    precision: str,
    rank: int = 0,
    statistics: str = "global",
) -> LayoutCost:
    """The cost of a layout for `rank`, with both inputs' gradients wanted.

    Args:
        rows: samples of each rank.
        d: embedding dimensions.
        dtype: dtype of the embeddings.
        statistics: 'global' or 'local'.
    """
    ranks, n, own = len(rows), sum(rows), rows[rank]
    widths = shards.widths(d, ranks)
    width, others = widths[rank], ranks - 1
    matrix = wire.matrix_dtype(precision).itemsize
    wide, operand = accumulation_dtype(precision).itemsize, OPERAND_DTYPE[precision].itemsize
    moments = 5 * 8 * (d - width)
    # Where rows are standardised at home, the (7, D) statistics are gathered, from each rank its
    # columns; of local ones only C_ii.
    is_global = statistics == "global"
    gathered = (7 if is_global else 1) * wide * max(widths) * others
    if layout == "features":
        b = tiles.side(n, precision)
        share = -(-tiles.count(n, precision) * b // ranks) * b * matrix
        embedding = operand  # local statistics have standardised them
        if is_global:
            embedding = wire.embedding_dtype(dtype, precision).itemsize
        gradient = wire.gradient_dtype(dtype, precision, statistics).itemsize
        sent = moments + 2 * own * (d - width) * embedding + 2 * (n - own) * width * gradient
        sent += 2 * others * share + 2 * others * share + 7 * 8 * others + 8 * others
        kept = 2 * n * width * dtype.itemsize + 2 * ranks * share
        return LayoutCost(6.0 * n * n * width, sent, 8, 2, kept)
    if layout == "rows":
        most = max(rows)
        sent = moments + gathered + 2 * others * most * d * operand
        sent += 5 * 8 * others + 8 * others
        sent += 2 * 8 * d * others if is_global else 0  # projections: own ones are known at home
        kept = 2 * ranks * most * d * operand + 2 * own * ranks * most * operand
        return LayoutCost(8.0 * own * ranks * most * d, sent, 4, 3 if is_global else 2, kept)
    share = -(-d // ranks) * d * matrix
    sent = moments + gathered + 2 * others * share + 8 * (3 + d) * others
    sent += -(-d // ranks) * 8 * others + 8 * others
    return LayoutCost(6.0 * own * d * d, sent, 5, 2, ranks * share)


def choose_layout(
    layout: str,
    form: str,
    rows: tuple[int, ...],
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
    check(layout, form)
    if layout != "auto":
        return layout
    fitting = [x for x in LAYOUTS if form in ("auto", FORM_OF_LAYOUT[x])]
    # For the rank with most rows, which all ranks know.
    most = rows.index(max(rows))

    def seconds(candidate: str) -> float:
        each = cost(candidate, rows, d, dtype, precision, most, statistics)
        return each.seconds(network, len(rows))

    return min(fitting, key=seconds)


def check(layout: str, form: str) -> None:
    """ValueError unless `layout` is 'auto' or a layout of the form."""
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout must be one of {('auto', *LAYOUTS)}, got {layout!r}")
    if layout != "auto" and form not in ("auto", FORM_OF_LAYOUT[layout]):
        raise ValueError(
            f"layout={layout!r} computes the {FORM_OF_LAYOUT[layout]} form, but form={form!r}"
        )
