"""Which blocks, warps and stages each kernel uses: a static table, and how work is cut to fill a
device.

Nothing is timed when a loss is called. `TABLE` holds a row per kernel, architecture, operand type
and size bucket; `tuning.py` can replace rows for one device from measurements, on request. The
functions below turn a row and a shape into a configuration: pure, cached, no device touched.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import torch
import triton

from .. import tiles
from ..precision import OPERAND_DTYPE
from .launch import Device, cdiv, round_up

SUM_ALIGNMENT = 64  # the largest BLOCK_K: stored matrices are zero up to a multiple of it
OPERAND_ALIGNMENT = 256  # the largest BLOCK_N: blocks of a stored operand never leave its rows
MERGE_COLUMNS = 64

# Rows that one program takes the moments of; the accuracy of its pivot rests on it (moments.py).
MOST_PART_ROWS = 2048

# Columns of up to so many rows are read by one program: their statistics take one launch.
MOST_UNDIVIDED_ROWS = 512

# Products that torch makes come in pieces of this size, small beside a second-level cache, and
# programs own so many of their columns.
LIBRARY_CHUNK_BYTES = 16 << 20
OWNED_COLUMNS = 32

# Triton 3.6 fails in its tensor-memory passes on a tile that may be finished in place or not; 3.9
# compiles it. Versions in between have not been tried.
TRITON = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
FINISHES_ON_BLACKWELL = (3, 9)

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


class Colours(NamedTuple):
    """`pixels` that one program takes at a time; at most so many `parts` of an image, a power of
    two, are summed apart."""

    pixels: int
    parts: int
    warps: int


class Product(NamedTuple):
    """A row of the table: the blocks of one product, and how it gets its operands.

    Paths of `gram`: 'fused' (z is standardised on its way into the product, both views in one
    launch), 'stored' (z_hat is stored first, view by view), 'bulk' (stored, and copied to shared
    memory by Hopper's copy engine), 'cublas' (stored, and multiplied by torch). Paths of
    `gram_gradients`: 'owned' (a program owns all rows of its columns; block_m is the padded N),
    'tiles', 'bulk', 'persistent' (bulk, and a program takes tile after tile), 'cublas'. The
    correlation kernels have one path.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    path: str


class Gram(NamedTuple):
    """`whole` tiles are summed by one program, `split` tiles by `splits`, `depth` blocks each."""

    block: int
    block_k: int
    warps: int
    stages: int
    chunk: int
    path: str
    strip: int
    whole: int
    split: int
    splits: int
    depth: int


class GramGradients(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    path: str
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


STANDARDISE = Elementwise(16, 128, 4)
PROJECT = Elementwise(32, 128, 4)
COLOURS = Colours(512, 32, 4)
BLUR = Elementwise(32, 32, 4)  # square: neighbours on either side are read once more
UNPACK_STRIP = 32  # rows of a tile that one program takes to its place

# Operand families; MIXED: half-precision operands made from float32 inputs, where it has a row of
# its own.
HALF, MIXED, SINGLE, SPLIT_SINGLE = "half", "mixed", "tf32", "fp32"
FAMILIES = {"bf16": HALF, "fp16": HALF, "tf32": SINGLE, "fp32": SPLIT_SINGLE}

# (kernel, architecture, family, bucket) -> blocks. Buckets of the Gram kernels are the largest N
# they serve, of the correlation kernels the largest D; `LARGE` has no bound.
LARGE = 1 << 62
TABLE: dict[tuple[str, int, str, int], Product] = {}

# Rows on trial, used before all others: `tuning`.
override: dict[tuple[str, int, str, int], Product] = {}


def _rows(
    kernel: str, architectures: tuple[int, ...], family: str, path: str, **buckets: tuple
) -> None:
    for architecture in architectures:
        for bucket, blocks in buckets.items():
            size = LARGE if bucket == "large" else int(bucket[1:])
            TABLE[kernel, architecture, family, size] = Product(*blocks, path)


ALL = (80, 90, 100)

# Where every element of z_hat would be made many times over, it is stored once.
_rows("gram", (80,), HALF, "fused", _256=(64, 64, 64, 4, 3), _1024=(128, 128, 64, 8, 3))
_rows("gram", (90, 100), HALF, "fused", _256=(64, 64, 64, 4, 4), _1024=(128, 128, 64, 8, 4))
_rows("gram", (80,), HALF, "stored", large=(128, 128, 64, 8, 3))
_rows("gram", (90, 100), HALF, "bulk", large=(128, 128, 64, 8, 4))
_rows("gram", (80, 90), SINGLE, "fused", _256=(64, 64, 32, 4, 3), _1024=(128, 128, 32, 8, 3))
_rows("gram", (100,), SINGLE, "fused", _256=(64, 64, 32, 8, 3), _1024=(128, 128, 32, 8, 3))
_rows("gram", (80,), SINGLE, "stored", large=(128, 128, 32, 8, 3))
_rows("gram", (90, 100), SINGLE, "bulk", large=(128, 128, 32, 8, 4))
# Of three TF32 products, 32 deep, Ampere's operands alone fill all 255 registers, and which version
# of the compiler then spills is chance.
_rows("gram", (80,), SPLIT_SINGLE, "fused", large=(64, 64, 16, 4, 4))
_rows("gram", (90,), SPLIT_SINGLE, "fused", large=(64, 64, 32, 4, 3))
_rows("gram", (100,), SPLIT_SINGLE, "fused", large=(64, 64, 32, 8, 3))

_rows(
    "gram_gradients",
    (90, 100),
    HALF,
    "owned",
    _64=(64, 64, 64, 4, 2),
    _128=(128, 64, 64, 8, 3),
    _256=(256, 64, 64, 8, 3),
    _512=(512, 32, 64, 8, 3),
)
# Of 8 warps at N = 128 ptxas wants 128 registers each, and may spill to get there.
_rows(
    "gram_gradients",
    (80,),
    HALF,
    "owned",
    _64=(64, 64, 64, 4, 2),
    _128=(128, 64, 64, 4, 3),
    _256=(256, 64, 64, 8, 3),
    _512=(512, 32, 64, 8, 3),
)
_rows(
    "gram_gradients",
    ALL,
    SINGLE,
    "owned",
    _64=(64, 64, 32, 4, 2),
    _128=(128, 64, 32, 4, 3),
    _256=(256, 64, 32, 8, 3),
    _512=(512, 32, 32, 8, 2),
)
_rows(
    "gram_gradients",
    ALL,
    SPLIT_SINGLE,
    "owned",
    _64=(64, 32, 32, 4, 2),
    _128=(128, 32, 32, 4, 2),
    _256=(256, 32, 32, 8, 2),
)
_rows("gram_gradients", (80,), HALF, "tiles", large=(128, 128, 64, 8, 3))
_rows("gram_gradients", (90, 100), HALF, "bulk", large=(128, 256, 64, 8, 4))
_rows("gram_gradients", (90, 100), MIXED, "bulk", large=(128, 128, 64, 8, 4))
_rows("gram_gradients", (80,), SINGLE, "tiles", large=(128, 128, 32, 8, 3))
_rows("gram_gradients", (90, 100), SINGLE, "bulk", large=(128, 128, 32, 8, 4))
_rows("gram_gradients", (80, 90), SPLIT_SINGLE, "tiles", large=(64, 64, 32, 4, 3))
_rows("gram_gradients", (100,), SPLIT_SINGLE, "tiles", large=(64, 64, 32, 8, 3))

_rows("correlation", ALL, HALF, "fused", _128=(64, 64, 64, 4, 3), large=(128, 128, 64, 8, 3))
_rows("correlation", (100,), MIXED, "fused", large=(128, 128, 32, 8, 4))
_rows("correlation", ALL, SINGLE, "fused", _128=(64, 64, 32, 4, 3), large=(128, 128, 32, 8, 3))
_rows("correlation", ALL, SPLIT_SINGLE, "fused", large=(64, 64, 32, 4, 3))

_rows(
    "correlation_gradients",
    ALL,
    HALF,
    "fused",
    _64=(128, 64, 64, 4, 3),
    large=(128, 128, 64, 8, 3),
)
_rows("correlation_gradients", ALL, MIXED, "fused", large=(128, 64, 64, 8, 3))
_rows(
    "correlation_gradients",
    ALL,
    SINGLE,
    "fused",
    _64=(128, 64, 32, 4, 3),
    large=(128, 128, 32, 8, 3),
)
_rows("correlation_gradients", (80,), SPLIT_SINGLE, "fused", large=(64, 64, 16, 4, 4))
_rows("correlation_gradients", (90, 100), SPLIT_SINGLE, "fused", large=(64, 64, 32, 4, 3))


def row_of(
    kernel: str, architecture: int, precision: str, dtype: torch.dtype, size: int
) -> tuple[str, int, str, int]:
    """The key of the table for inputs of `dtype` whose N (Gram) or D (correlation) is `size`."""
    family = FAMILIES[precision]
    families = (HALF, MIXED) if family == HALF and dtype.itemsize > 2 else (family,)
    # The smallest bucket that fits; of two families, the more special one.
    fitting = {b: f for f in families for b in buckets(kernel, architecture, f) if b >= size}
    bucket = min(fitting)
    return kernel, architecture, fitting[bucket], bucket


def blocks(
    kernel: str,
    device: Device,
    precision: str,
    dtype: torch.dtype,
    size: int,
    side: int | None = None,
) -> Product:
    """The row for a device: a tuned one where there is one (with `side`, one of so many rows), else
    the table's; cut to size where the device has less shared memory than the architecture's largest
    part."""
    key = row_of(kernel, device.architecture, precision, dtype, size)
    row = override.get(key) or tuned(device.name).get(key) or TABLE[key]
    if side not in (None, row.block_m):
        row = TABLE[key]
    while shared_memory(row, device.architecture, precision, dtype) > device.shared_memory:
        if row.block_k > 16:
            row = row._replace(block_k=row.block_k // 2)
        elif row.stages > 1:
            row = row._replace(stages=row.stages - 1)
        else:
            break
    return row


def shared_memory(row: Product, architecture: int, precision: str, dtype: torch.dtype) -> int:
    """Bytes that a row takes, at most: both operands as they are loaded, in every stage (from
    Hopper on; before, one stage is in registers), and there once more as they enter the product."""
    operand = OPERAND_DTYPE[precision].itemsize
    loaded = max(operand, dtype.itemsize)
    block = (row.block_m + row.block_n) * row.block_k
    if architecture < 90:
        return block * loaded * max(row.stages - 1, 1)
    return block * (row.stages * loaded + (operand if loaded > operand else 0))


@functools.cache
def tuned(device_name: str) -> dict[tuple[str, int, str, int], Product]:
    """Rows that `tuning` measured on a device of this name and stored; none by default."""
    from . import tuning

    return tuning.load(device_name)


def forget_plans() -> None:
    """For whoever changes the table or `override`: plans are cached."""
    for cached in (moments, gram, gram_gradients, correlation, correlation_gradients):
        cached.cache_clear()


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
    if n > MOST_UNDIVIDED_ROWS and programs < 2 * device.processors:
        parts = min(cdiv(2 * device.processors, programs), cdiv(n, 4 * rows))
    parts = max(parts, cdiv(n, MOST_PART_ROWS))
    rows_per_part = round_up(cdiv(n, parts), rows)
    # With 4 warps float16 rows spill on Hopper under Triton 3.8.
    warps = 8 if dtype == torch.float16 else 4
    return Moments(rows, columns, warps, 2, cdiv(n, rows_per_part), rows_per_part)


@functools.lru_cache(maxsize=256)
def gram(
    device: Device, n: int, d: int, dtype: torch.dtype, precision: str, packed: bool = False
) -> Gram:
    """Tiles of the lower triangle, cut so that the last wave is full. `packed`: of one view, and
    all of them go through memory, in the blocks of `tiles.py`."""
    row = blocks("gram", device, precision, dtype, n, tiles.side(n, precision) if packed else None)
    block, fused = row.block_m, row.path == "fused"
    side = cdiv(n, block)
    depth_of_sum = d if fused else round_up(d, SUM_ALIGNMENT)
    # Fused, both views meet where the parts are added up, so every tile goes that way.
    unfinished = device.architecture == 100 and TRITON < FINISHES_ON_BLACKWELL
    whole, split, splits, depth = _cut(
        side * (side + 1) // 2, 2 if fused and not packed else 1, depth_of_sum, row.block_k,
        block * block * 4, 2 * n * d * dtype.itemsize, device.processors,
        split_all=packed or fused or unfinished,
    )  # fmt: skip
    strip = _strip(block, split, device.processors)
    return Gram(
        block, row.block_k, row.warps, row.stages, _chunk(precision), row.path, strip,
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
    """The table's row as it is."""
    return GramGradients(*blocks("gram_gradients", device, precision, dtype, n), _chunk(precision))


@functools.lru_cache(maxsize=256)
def correlation(device: Device, n: int, d: int, dtype: torch.dtype, precision: str) -> Correlation:
    """Square tiles of C; few of them are split over N."""
    row = blocks("correlation", device, precision, dtype, d)
    tiles = cdiv(d, row.block_m) * cdiv(d, row.block_n)
    whole, split, splits, depth = _cut(
        tiles, 1, n, row.block_k, row.block_m * row.block_n * 4, 2 * n * d * dtype.itemsize,
        device.processors,
    )  # fmt: skip
    strip = _strip(row.block_m, split, device.processors) if split else row.block_m
    # Strips each have column sums of their own: few of them where columns are many.
    strip = max(strip, row.block_m // 4) if d > 2048 else strip
    return Correlation(*row[:5], _chunk(precision), strip, whole, split, splits, depth)


@functools.lru_cache(maxsize=256)
def correlation_gradients(
    device: Device, n: int, d: int, dtype: torch.dtype, precision: str
) -> CorrelationGradients:
    row = blocks("correlation_gradients", device, precision, dtype, d)
    return CorrelationGradients(*row[:5], _chunk(precision))
