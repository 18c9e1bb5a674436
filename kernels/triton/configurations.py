"""How each kernel is launched for a shape: blocks, warps and stages, and how work is cut to fill a
device.

Nothing is timed when a loss is called. A row of the table (`table.py`), or one that was tuned for
this device (`tuned.py`), and a shape make a configuration. The functions are cached and access no
device.
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import torch
import triton

from .. import tiles
from ..precision import OPERAND_DTYPE
from . import tuned
from .launch import Device, cdiv, round_up
from .table import LARGE, SUM_ALIGNMENT, TABLE, Key, Product, row_of

# Rows that one program takes the moments of; the accuracy of its pivot rests on it (moments.py).
MOST_PART_ROWS = 2048

# Rows whose mean is the pivot of a part.
PIVOT_ROWS = 32

# Blocks of rows that the moments have loaded or are loading, 8 KiB each: enough bytes in flight on
# an SM with one program.
MOMENTS_STAGES = 4

# Registers of a thread for the sums of all pairs of views, of which so many share a launch.
SUMS_REGISTERS = 96
MOST_VIEWS = 12

# Columns of up to so many rows are read by one program: their statistics take one launch.
MOST_UNDIVIDED_ROWS = 512

# Products by torch come in pieces of this size, small beside a second-level cache, and programs own
# so many of their columns.
LIBRARY_CHUNK_BYTES = 16 << 20
OWNED_COLUMNS = 32

# Triton 3.6 fails in its tensor-memory passes on a tile that may be finished in place or not; 3.9
# compiles it. Versions in between are untested.
TRITON = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
FINISHES_ON_BLACKWELL = (3, 9)

# Parts of split sums go through memory: at most this share of the inputs, or what never matters.
WORKSPACE_SHARE = 0.5
CORRELATION_WORKSPACE_SHARE = 1.0  # small beside what N > D samples take elsewhere in a model
SMALL_WORKSPACE = 2 << 20
MOST_STATISTICS_BYTES = 32  # of a column

# Programs of split-K tiles that keep so large a share of the SMs busy are enough.
EVEN = 0.95


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


class Plan(NamedTuple):
    """A product whose tiles may be split along K.

    One program sums each of `full_tiles`. `splits` programs sum each of `split_tiles`,
    `k_blocks_per_split` blocks of the sum each, and their parts are added by programs that take
    `strip` rows of a tile.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    path: str
    strip: int
    full_tiles: int
    split_tiles: int
    splits: int
    k_blocks_per_split: int


STANDARDISE = Elementwise(16, 128, 4)
PROJECT_ROWS = 32  # of a stripe of columns, at a time
LINEAR = Elementwise(32, 64, 8)
COLOURS = Colours(512, 32, 4)
BLUR = Elementwise(32, 32, 4)  # square: neighbours on either side are read once more
FINISH_STRIP = 16  # rows of a tile of K that one program finishes, at most
UNPACK_STRIP = 32  # rows of a tile that one program takes to its place

# Rows on trial, used before all others (tuning.py).
override: dict[Key, Product] = {}


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
    row = override.get(key) or tuned.rows_of(device.name).get(key) or TABLE[key]
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
    Hopper on; before, one stage is in registers), and there once more as they enter the product.
    Paths that standardise on the way load the inputs' type, the others the operand type."""
    operand = OPERAND_DTYPE[precision].itemsize
    loaded = max(operand, dtype.itemsize) if row.path in ("fused", "owned") else operand
    block = (row.block_m + row.block_n) * row.block_k
    if architecture < 90:
        return block * loaded * max(row.stages - 1, 1)
    return block * (row.stages * loaded + (operand if loaded > operand else 0))


def views_together(row: Product, device: Device, precision: str, dtype: torch.dtype) -> bool:
    """Whether one launch of `correlation_gradients` serves both views: the compiler may give the
    products of its two branches buffers of their own. Before Hopper operands leave shared memory a
    stage early; so do inputs of another type than the operand's, later too."""
    operand = OPERAND_DTYPE[precision].itemsize
    early = max(row.stages - 1, 1)
    late = early if device.architecture < 90 else row.stages
    left = row.block_m * dtype.itemsize * (early if dtype.itemsize > operand else late)
    both = 2 * row.block_k * (left + row.block_n * operand * late)
    return both <= device.shared_memory


def forget_plans() -> None:
    """Clears the cached configurations, after a change of the table or `override`."""
    for cached in (
        moments, view_moments, gram, gram_gradients, correlation, correlation_gradients,
    ):  # fmt: skip
        cached.cache_clear()


@functools.lru_cache(maxsize=256)
def moments(device: Device, n: int, d: int, dtype: torch.dtype) -> Moments:
    """128 bytes of a row per program; rows are split where columns alone do not fill the device,
    and then blocks of half precision are half as wide: there are fewer parts to merge."""
    # With 4 warps float16 rows spill on Hopper under Triton 3.8.
    warps = 8 if dtype == torch.float16 else 4
    if dtype.itemsize != 2:
        return _moments(device, n, d, PIVOT_ROWS, 32, warps)
    if n <= MOST_UNDIVIDED_ROWS:
        return _moments(device, n, d, PIVOT_ROWS, 64, warps)
    return _moments(device, n, d, 2 * PIVOT_ROWS, 32, warps)


@functools.lru_cache(maxsize=256)
def view_moments(device: Device, n: int, d: int, dtype: torch.dtype, views: int) -> Moments:
    """As many rows at once as leave room for the sums of all pairs of views in registers."""
    sums, columns, warps = views * (views + 3) // 2, 32, 4
    registers = 2 if dtype == torch.float64 else 1
    each = 1
    while 2 * each * registers * sums <= SUMS_REGISTERS:
        each *= 2
    return _moments(device, n, d, each * 32 * warps // columns, columns, warps)


def _moments(device: Device, n: int, d: int, rows: int, columns: int, warps: int) -> Moments:
    """Moments by blocks of (rows, columns)."""
    programs = cdiv(d, columns)
    parts = 1
    if n > MOST_UNDIVIDED_ROWS and programs < 2 * device.num_sms:
        parts = min(cdiv(2 * device.num_sms, programs), cdiv(n, 4 * rows))
    # Smaller blocks have longer sums in float32.
    parts = max(parts, cdiv(n, max(MOST_PART_ROWS * min(rows, PIVOT_ROWS) // PIVOT_ROWS, 1)))
    rows_per_part = round_up(cdiv(n, parts), rows)
    return Moments(rows, columns, warps, MOMENTS_STAGES, cdiv(n, rows_per_part), rows_per_part)


@functools.lru_cache(maxsize=256)
def gram(
    device: Device, n: int, d: int, dtype: torch.dtype, precision: str, packed: bool = False
) -> Plan:
    """Tiles of the lower triangle, cut so that the last wave is full. `packed`: of one view, all
    split-K tiles, in the blocks of `tiles.py`."""
    row = blocks("gram", device, precision, dtype, n, tiles.side(n, precision) if packed else None)
    side, fused = cdiv(n, row.block_m), row.path == "fused"
    unfinished = device.architecture == 100 and TRITON < FINISHES_ON_BLACKWELL
    room = int(WORKSPACE_SHARE * 2 * n * d * dtype.itemsize)
    if not fused:  # z_hat of a view takes the rest, and the parts of both stay beside K'
        operand = OPERAND_DTYPE[precision].itemsize
        room -= 2 * n * round_up(n, SUM_ALIGNMENT) * operand + MOST_STATISTICS_BYTES * d
    views = 2 if fused and not packed else 1
    plan = _plan(
        row, device, side * (side + 1) // 2, d if fused else round_up(d, SUM_ALIGNMENT),
        room if fused or packed else room // 2, views,
        split_all=packed or (unfinished and not fused),
    )  # fmt: skip
    # Fused, full tiles are finished by the same launch as split-K tiles: many programs in any case.
    many = fused and plan.full_tiles > 0
    return plan._replace(strip=FINISH_STRIP if many else min(plan.strip, FINISH_STRIP))


@functools.cache
def sums(parts: int) -> Elementwise:
    """Blocks of sums over `parts` rows: as many rows at once as there are, at most 64, so that
    their loads do not wait for each other."""
    rows = min(triton.next_power_of_2(parts), 64)
    columns = min(512 // rows, 64)
    return Elementwise(rows, columns, max(rows * columns // 128, 1))


def _plan(
    row: Product,
    device: Device,
    tiles: int,
    k: int,
    workspace: int,
    views: int = 1,
    split_all: bool = False,
) -> Plan:
    """How `tiles` tiles of each view's product, sums over `k` each, are cut. The parts of the views
    in a launch take up to `workspace` bytes."""
    sms = device.num_sms
    full = 0 if split_all else tiles // sms * sms
    split = tiles - full
    if not split_all and (split == 0 or split > 0.75 * sms or full >= 4 * sms):
        return Plan(*row, row.block_m, tiles, 0, 1, cdiv(k, row.block_k))
    room = max(workspace, SMALL_WORKSPACE)
    most = min(k // (4 * row.block_k), room // (views * split * row.block_m * row.block_n * 4))
    k_blocks = _k_blocks(row, sms, views * split, k, max(most, 1))
    strip = row.block_m
    while strip > 4 and split * (row.block_m // strip) < sms:
        strip //= 2
    return Plan(*row, strip, full, split, cdiv(k, k_blocks * row.block_k), k_blocks)


def _k_blocks(row: Product, sms: int, tiles: int, k: int, most: int) -> int:
    """Blocks of the sum over `k` that one program takes, where each of `tiles` is split in at most
    `most`: the fewest splits whose programs fill the SMs about evenly, else those that do it best.

    Two programs of 4 warps share an SM, one of 8 has it alone; more splits only cost traffic.
    """
    best, found = 0.0, 1
    resident = max(8 // row.warps, 1)
    for splits in range(1, most + 1):
        k_blocks = cdiv(cdiv(k, splits), row.block_k)
        each = tiles * cdiv(k, k_blocks * row.block_k) / sms
        filled = min(each / resident, each / math.ceil(each))
        if filled > best:
            best, found = filled, k_blocks
        if filled >= EVEN:
            break
    return found


@functools.lru_cache(maxsize=256)
def gram_gradients(device: Device, n: int, dtype: torch.dtype, precision: str) -> Product:
    """The row of the table."""
    return blocks("gram_gradients", device, precision, dtype, n)


def view_gradients(device: Device, n: int, dtype: torch.dtype, precision: str) -> Product:
    """The row of `gram_gradients`. Of 4 warps on Ampere ptxas wants so few registers that some of
    these kernels spill: half as many columns need fewer."""
    row = gram_gradients(device, n, dtype, precision)
    if row.path != "owned":  # a product of z_hat in memory, stored in float32 whatever z is
        return gram_gradients(device, LARGE, torch.float32, precision)
    half = OPERAND_DTYPE[precision].itemsize == 2
    if device.architecture == 80 and half and row.block_m <= 128:
        row = row._replace(block_n=32)
    return row


@functools.lru_cache(maxsize=256)
def correlation(device: Device, n: int, d: int, dtype: torch.dtype, precision: str) -> Plan:
    """Tiles of C; where they are few, they are split over N."""
    row = blocks("correlation", device, precision, dtype, d)
    tiles = cdiv(d, row.block_m) * cdiv(d, row.block_n)
    workspace = int(CORRELATION_WORKSPACE_SHARE * 2 * n * d * dtype.itemsize)
    plan = _plan(row, device, tiles, n, workspace)
    # Each strip has column sums of its own: few strips where columns are many.
    few = d > 2048 and plan.split_tiles > 0
    return plan._replace(strip=max(plan.strip, plan.block_m // 4)) if few else plan


@functools.lru_cache(maxsize=256)
def correlation_gradients(device: Device, d: int, dtype: torch.dtype, precision: str) -> Product:
    """The row of the table."""
    return blocks("correlation_gradients", device, precision, dtype, d)
