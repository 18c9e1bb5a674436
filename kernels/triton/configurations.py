"""Which blocks, warps and stages each kernel uses: a static table, and how work is cut to fill a
device.

Nothing is timed when a loss is called. `TABLE` holds a row per kernel, architecture, operand type
and size bucket; `tuning.py` can replace rows for one device from measurements, on request. The
functions below turn a row and a shape into a configuration: pure, cached, no device touched.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .launch import Device, cdiv, round_up

SUM_ALIGNMENT = 64  # the largest BLOCK_K: stored matrices are zero up to a multiple of it
OPERAND_ALIGNMENT = 128  # the largest BLOCK_N: blocks of a stored operand never leave its rows
MERGE_COLUMNS = 64

# Rows that one program takes the moments of; the accuracy of its pivot rests on it (moments.py).
MOST_PART_ROWS = 2048

# Where the columns of a program hold all rows of a gradient; above, its accumulator would not fit.
MOST_OWNED_ROWS = 512

# Up to here the Gram product standardises its operands itself; above, where every element of z_hat
# would be made many times over, they are stored once.
MOST_FUSED_SAMPLES = 1024

# Accumulators of tensor cores truncate. Sums of float32 quality add up chunks of so many elements
# in the ordinary, rounding units.
FLOAT32_CHUNK = 256

# Parts of split sums go through memory: at most this share of the inputs, or what never matters.
WORKSPACE_SHARE = 0.5
SMALL_WORKSPACE = 2 << 20


class Moments(NamedTuple):
    rows: int
    columns: int
    warps: int
    stages: int
    parts: int
    rows_per_part: int


class Elementwise(NamedTuple):
    rows: int
    columns: int
    warps: int


class Product(NamedTuple):
    """A row of the table: the blocks of one product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


class Gram(NamedTuple):
    """`whole` tiles are summed by one program, `split` tiles by `splits`, `depth` blocks each."""

    block: int
    block_k: int
    warps: int
    stages: int
    chunk: int
    stored: bool
    strip: int
    whole: int
    split: int
    splits: int
    depth: int


class GramGradients(NamedTuple):
    rows: int | None  # of the program that owns whole columns; None: tiles
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    chunk: int


class Correlation(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    chunk: int
    strip: int
    whole: int
    split: int
    splits: int
    depth: int


class CorrelationGradients(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    chunk: int


STANDARDISE = Elementwise(32, 128, 4)
PROJECT = Elementwise(32, 128, 4)

# Operand families; MIXED: half-precision operands made from float32 inputs, where it has a row of
# its own.
HALF, MIXED, SINGLE, SPLIT_SINGLE = "half", "mixed", "tf32", "fp32"
FAMILIES = {"bf16": HALF, "fp16": HALF, "tf32": SINGLE, "fp32": SPLIT_SINGLE}

# (kernel, architecture, family, bucket) -> blocks. Buckets of the Gram kernels are the largest N
# they serve, of the correlation kernels the largest D; `LARGE` has no bound.
LARGE = 1 << 62
TABLE: dict[tuple[str, int, str, int], Product] = {}


def _rows(kernel: str, architectures: tuple[int, ...], family: str, **buckets: tuple) -> None:
    for architecture in architectures:
        for bucket, blocks in buckets.items():
            size = LARGE if bucket == "large" else int(bucket[1:])
            TABLE[kernel, architecture, family, size] = Product(*blocks)


_rows("gram", (80,), HALF, _256=(64, 64, 64, 4, 3), large=(128, 128, 64, 8, 3))
_rows("gram", (90, 100), HALF, _256=(64, 64, 64, 4, 4), large=(128, 128, 64, 8, 4))
_rows("gram", (80, 90), SINGLE, _256=(64, 64, 32, 4, 3), large=(128, 128, 32, 8, 3))
_rows("gram", (100,), SINGLE, _256=(64, 64, 32, 8, 3), large=(128, 128, 32, 8, 3))
_rows("gram", (80, 90), SPLIT_SINGLE, large=(64, 64, 32, 4, 3))
_rows("gram", (100,), SPLIT_SINGLE, large=(64, 64, 32, 8, 3))

# The first block is the padded N itself in the buckets up to MOST_OWNED_ROWS.
_rows(
    "gram_gradients",
    (80, 90, 100),
    HALF,
    _64=(64, 64, 64, 4, 2),
    _128=(128, 64, 64, 8, 3),
    _256=(256, 64, 64, 8, 3),
    _512=(512, 32, 64, 8, 3),
    large=(128, 128, 64, 8, 3),
)
_rows(
    "gram_gradients",
    (80, 90, 100),
    SINGLE,
    _64=(64, 64, 32, 4, 2),
    _128=(128, 64, 32, 4, 3),
    _256=(256, 32, 32, 8, 3),
    _512=(512, 32, 32, 8, 2),
    large=(128, 128, 32, 8, 3),
)
_rows(
    "gram_gradients",
    (80, 90, 100),
    SPLIT_SINGLE,
    _64=(64, 32, 32, 4, 2),
    _128=(128, 32, 32, 4, 2),
    _256=(256, 32, 32, 8, 2),
    large=(64, 64, 32, 4, 3),
)

_rows("correlation", (80, 90, 100), HALF, _128=(64, 64, 64, 4, 3), large=(128, 128, 64, 8, 3))
_rows("correlation", (80, 90, 100), SINGLE, _128=(64, 64, 32, 4, 3), large=(128, 128, 32, 8, 3))
_rows("correlation", (80, 90, 100), SPLIT_SINGLE, _128=(64, 64, 32, 4, 3), large=(64, 64, 32, 4, 3))

_rows(
    "correlation_gradients",
    (80, 90, 100),
    HALF,
    _64=(128, 64, 64, 4, 3),
    large=(128, 128, 64, 8, 3),
)
_rows("correlation_gradients", (80, 90, 100), MIXED, large=(128, 64, 64, 8, 3))
_rows(
    "correlation_gradients",
    (80, 90, 100),
    SINGLE,
    _64=(128, 64, 32, 4, 3),
    large=(128, 128, 32, 8, 3),
)
_rows("correlation_gradients", (80, 90, 100), SPLIT_SINGLE, large=(64, 64, 32, 4, 3))


def row_of(
    kernel: str, architecture: int, precision: str, dtype: torch.dtype, size: int
) -> tuple[str, int, str, int]:
    """The key of the table for inputs of `dtype` whose N (Gram) or D (correlation) is `size`."""
    family = FAMILIES[precision]
    families = (MIXED, HALF) if family == HALF and dtype.itemsize > 2 else (family,)
    for candidate in families:
        fitting = [b for b in buckets(kernel, architecture, candidate) if b >= size]
        if fitting:
            return kernel, architecture, candidate, min(fitting)
    raise KeyError((kernel, architecture, precision, size))


def blocks(
    kernel: str, architecture: int, precision: str, dtype: torch.dtype, size: int
) -> Product:
    """The row of the table at `row_of`."""
    return TABLE[row_of(kernel, architecture, precision, dtype, size)]


def buckets(kernel: str, architecture: int, family: str) -> list[int]:
    """The size buckets of a kernel, an architecture and a family."""
    return [b for k, a, f, b in TABLE if (k, a, f) == (kernel, architecture, family)]


def _chunk(precision: str) -> int:
    return FLOAT32_CHUNK if precision == "fp32" else 0


@functools.lru_cache(maxsize=256)
def moments(device: Device, n: int, d: int, dtype: torch.dtype) -> Moments:
    """128 bytes of a row per program; rows are split where columns alone do not fill the device."""
    columns = 64 if dtype.itemsize == 2 else 32
    rows = 32
    programs = cdiv(d, columns)
    parts = 1
    if n > MOST_OWNED_ROWS and programs < 2 * device.processors:
        parts = min(cdiv(2 * device.processors, programs), cdiv(n, 4 * rows))
    parts = max(parts, cdiv(n, MOST_PART_ROWS))
    rows_per_part = round_up(cdiv(n, parts), rows)
    return Moments(rows, columns, 4, 2, cdiv(n, rows_per_part), rows_per_part)


@functools.lru_cache(maxsize=256)
def gram(device: Device, n: int, d: int, dtype: torch.dtype, precision: str) -> Gram:
    """Tiles of the lower triangle, cut so that the last wave is full."""
    row = blocks("gram", device.architecture, precision, dtype, n)
    block, block_k = row.block_m, row.block_k
    side = cdiv(n, block)
    tiles = side * (side + 1) // 2
    stored = n > MOST_FUSED_SAMPLES and precision != "fp32"
    depth_of_sum = round_up(d, OPERAND_ALIGNMENT) if stored else d
    inputs = 2 * n * d * dtype.itemsize
    if stored:
        whole, split, splits, depth = _cut(
            tiles, 1, depth_of_sum, block_k, block * block * 4, inputs, device.processors
        )
    else:
        # Both views meet where the parts are added up, so every tile goes that way.
        _, split, splits, depth = _cut(
            tiles, 2, depth_of_sum, block_k, block * block * 4, inputs, device.processors, True
        )
        whole = 0
    strip = _strip(block, split, device.processors)
    return Gram(
        block, block_k, row.warps, row.stages, _chunk(precision), stored, strip,
        whole, split, splits, depth,
    )  # fmt: skip


def _cut(
    tiles: int,
    views: int,
    depth_of_sum: int,
    block_k: int,
    tile_bytes: int,
    input_bytes: int,
    processors: int,
    split_all: bool = False,
) -> tuple[int, int, int, int]:
    """(whole tiles, split tiles, parts of each split tile, blocks of the sum in a part)."""
    whole = 0 if split_all else tiles // processors * processors
    split = tiles - whole
    if not split_all and (split == 0 or split > 0.75 * processors or whole >= 4 * processors):
        return tiles, 0, 1, cdiv(depth_of_sum, block_k)
    room = max(int(WORKSPACE_SHARE * input_bytes), SMALL_WORKSPACE)
    most = min(depth_of_sum // (4 * block_k), room // (views * split * tile_bytes))
    # Two programs share a processor; more parts than that only cost traffic.
    splits = max(1, min(most, 2 * processors // (views * split)))
    depth = cdiv(cdiv(depth_of_sum, splits), block_k)
    return whole, split, cdiv(depth_of_sum, depth * block_k), depth


def _strip(block: int, split: int, processors: int) -> int:
    """Rows of a split tile that one program adds up: enough programs to fill the device."""
    strip = block
    while strip > 4 and split * (block // strip) < processors:
        strip //= 2
    return strip


@functools.lru_cache(maxsize=256)
def gram_gradients(
    device: Device, n: int, d: int, dtype: torch.dtype, precision: str
) -> GramGradients:
    row = blocks("gram_gradients", device.architecture, precision, dtype, n)
    owned = n <= _owned_rows(device.architecture, precision)
    return GramGradients(row.block_m if owned else None, *row, _chunk(precision))


def _owned_rows(architecture: int, precision: str) -> int:
    """The largest N whose gradient programs own whole columns: the largest bounded bucket."""
    bounded = set(buckets("gram_gradients", architecture, FAMILIES[precision])) - {LARGE}
    return max(bounded, default=0)


@functools.lru_cache(maxsize=256)
def correlation(device: Device, n: int, d: int, dtype: torch.dtype, precision: str) -> Correlation:
    """Square tiles of C; few of them are split over N."""
    row = blocks("correlation", device.architecture, precision, dtype, d)
    tiles = cdiv(d, row.block_m) * cdiv(d, row.block_n)
    whole, split, splits, depth = _cut(
        tiles, 1, n, row.block_k, row.block_m * row.block_n * 4, 2 * n * d * dtype.itemsize,
        device.processors,
    )  # fmt: skip
    strip = _strip(row.block_m, split, device.processors) if split else row.block_m
    # Strips each have column sums of their own: few of them where columns are many.
    strip = max(strip, row.block_m // 4) if d > 2048 else strip
    return Correlation(*row, _chunk(precision), strip, whole, split, splits, depth)


@functools.lru_cache(maxsize=256)
def correlation_gradients(
    device: Device, n: int, d: int, dtype: torch.dtype, precision: str
) -> CorrelationGradients:
    row = blocks("correlation_gradients", device.architecture, precision, dtype, d)
    return CorrelationGradients(*row, _chunk(precision))
