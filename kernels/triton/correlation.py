"""C = z_hat_a^T z_hat_b / N with a zeroed diagonal, and its squared row and column sums.

Both views are standardised on their way into the product: C is built where N > D, so inputs are
read about once and their bytes take the time. Tiles of the last, incomplete wave are split over N
(at D = 256 all of them are), and a second kernel adds their parts in a fixed order. The last
program in a row or a column of tiles adds up the squared sums of that row or column.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Layout
from ..precision import OPERAND_DTYPE
from . import configurations
from .arithmetic import (
    Pair,
    cast,
    meta,
    multiply,
    norm_of,
    share_of,
    standardised,
    to_operand,
    to_tf32,
)
from .arrival import arrived, counters
from .launch import addressable, cdiv, device_of, launch, round_up
from .table import OPERAND_ALIGNMENT


class Matrix(NamedTuple):
    """Where C is stored, and its squared sums.

    row_squares_ptr: (column tiles, D) float32. column_squares_ptr: (row tiles * strips, D) float32;
    a full tile writes its column sums once and zeros for the other strips. squares_ptr: (2, D)
    float64, their sums. counters_ptr: of strips, for each row and for each column of tiles.
    """

    ptr: Any  # (D, W) in the operand type
    stride: Any  # W
    row_squares_ptr: Any
    column_squares_ptr: Any
    squares_ptr: Any
    counters_ptr: Any


SHARES = tl.constexpr(8)  # rows of squared sums that are added at a time


@triton.jit
def _finish(value, matrix, rows, columns, N, D, column_tile, share, PRECISION: tl.constexpr):
    """Stores (a strip of) a tile of C and its sums of squares; `value` is N times the tile."""
    inside = (rows < D)[:, None] & (columns < D)[None, :]
    c = tl.where(inside & (rows[:, None] != columns[None, :]), value / N, 0.0)
    kept = to_tf32(c) if PRECISION == "tf32" else c
    tl.store(
        matrix.ptr + rows.to(tl.int64)[:, None] * matrix.stride + columns[None, :],
        cast(kept, matrix.ptr.dtype.element_ty),
        mask=(rows < D)[:, None] & (columns < matrix.stride)[None, :],
    )
    squares = c * c
    at = matrix.row_squares_ptr + column_tile.to(tl.int64) * D + rows
    tl.store(at, tl.sum(squares, axis=1), mask=rows < D)
    at = matrix.column_squares_ptr + share.to(tl.int64) * D + columns
    tl.store(at, tl.sum(squares, axis=0), mask=columns < D)


@triton.jit
def _sum_of_shares(out_ptr, ptr, shares, first, D, COLUMNS: tl.constexpr):
    """Stores the float64 sum of float32 rows (shares, D), for the columns from `first` on."""
    columns = first + tl.arange(0, COLUMNS)
    value = tl.zeros([SHARES, COLUMNS], tl.float64)
    for start in tl.range(0, shares, SHARES, loop_unroll_factor=4):
        share = start + tl.arange(0, SHARES)
        mask = (share < shares)[:, None] & (columns < D)[None, :]
        at = ptr + share.to(tl.int64)[:, None] * D + columns[None, :]
        value += tl.load(at, mask=mask, other=0.0).to(tl.float64)
    tl.store(out_ptr + columns, tl.sum(value, axis=0), mask=columns < D)


@triton.jit
def _sum_squares(matrix, i, j, strips, D, META, STRIPS: tl.constexpr):
    """Counts `strips` finished strips of tile (i, j); the last of a row or a column of tiles adds
    up its shares."""
    row_tiles, column_tiles = tl.cdiv(D, META.BLOCK_M), tl.cdiv(D, META.BLOCK_N)
    at = matrix.counters_ptr
    if arrived(at + i, strips, column_tiles * STRIPS):
        _sum_of_shares(
            matrix.squares_ptr, matrix.row_squares_ptr, column_tiles, i * META.BLOCK_M, D,
            META.BLOCK_M,
        )  # fmt: skip
    if arrived(at + row_tiles + j, strips, row_tiles * STRIPS):
        _sum_of_shares(
            matrix.squares_ptr + D, matrix.column_squares_ptr, row_tiles * STRIPS,
            j * META.BLOCK_N, D, META.BLOCK_N,
        )  # fmt: skip


@triton.jit
def _block(ptr, norm, offsets, inside, height, PRECISION: tl.constexpr):
    x = standardised(tl.load(ptr + offsets, mask=inside[None, :], other=0.0), norm)
    return to_operand(tl.where(height[:, None], x, 0.0), PRECISION)


@triton.jit
def _step(value, pair, norm_a, norm_b, rows, columns, k, last, N, D, META):
    """value + the product over the block of samples at k."""
    samples = k + tl.arange(0, META.BLOCK_K)
    height = samples < last
    at = tl.minimum(samples, N - 1).to(tl.int64)[:, None]
    at_a, at_b = at * pair.stride_a + rows[None, :], at * pair.stride_b + columns[None, :]
    x = _block(pair.ptr_a, norm_a, at_a, rows < D, height, META.PRECISION)
    y = _block(pair.ptr_b, norm_b, at_b, columns < D, height, META.PRECISION)
    return multiply(tl.trans(x), y, value, META.PRECISION)


@triton.jit(do_not_specialize=["N", "full_tiles", "splits", "k_blocks_per_split"])
def correlation_kernel(
    pair,
    matrix,
    workspace_ptr,
    N,
    D,
    full_tiles,
    splits,
    k_blocks_per_split,
    META,
    STRIPS: tl.constexpr,
    FINISH: tl.constexpr,
):
    """One full tile of C, or one part of the sum over N of a split-K tile.

    workspace_ptr: (split-K tiles, splits, BLOCK_M, BLOCK_N) float32.
    """
    full, slot, tile, first, last = share_of(
        tl.program_id(0), full_tiles, splits, k_blocks_per_split, N, META
    )
    column_tiles = tl.cdiv(D, META.BLOCK_N)
    i = tile // column_tiles
    j = tile % column_tiles
    rows = i * META.BLOCK_M + tl.arange(0, META.BLOCK_M)
    columns = j * META.BLOCK_N + tl.arange(0, META.BLOCK_N)
    norm_a = norm_of(pair.statistics_ptr, rows, D, False)
    norm_b = norm_of(pair.statistics_ptr + 3 * D, columns, D, False)

    value = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    for k in range(first, last, META.BLOCK_K):
        value = _step(value, pair, norm_a, norm_b, rows, columns, k, last, N, D, META)

    if FINISH:  # noqa: SIM102 (decided when compiled, unlike the next)
        if full:
            share = i * STRIPS
            _finish(value, matrix, rows, columns, N, D, j, share, META.PRECISION)
            for strip in tl.static_range(1, STRIPS):
                at = matrix.column_squares_ptr + (share + strip).to(tl.int64) * D + columns
                tl.store(at, tl.zeros([META.BLOCK_N], tl.float32), mask=columns < D)
            _sum_squares(matrix, i, j, STRIPS, D, META, STRIPS)
    if not full:
        local_rows, local_columns = tl.arange(0, META.BLOCK_M), tl.arange(0, META.BLOCK_N)
        at = workspace_ptr + slot.to(tl.int64) * META.BLOCK_M * META.BLOCK_N
        tl.store(at + (local_rows[:, None] * META.BLOCK_N + local_columns[None, :]), value)


@triton.jit(do_not_specialize=["N", "full_tiles", "splits"])
def correlation_finish_kernel(
    workspace_ptr, matrix, N, D, full_tiles, splits, META, STRIP: tl.constexpr
):
    """Adds the parts of STRIP rows of a split-K tile, in order, and stores them."""
    STRIPS: tl.constexpr = META.BLOCK_M // STRIP
    # Parts are loaded at once where each takes a few registers.
    UNROLL: tl.constexpr = 4 if STRIP * META.BLOCK_N <= 2048 else 1
    split = tl.program_id(0) // STRIPS
    strip = tl.program_id(0) % STRIPS
    column_tiles = tl.cdiv(D, META.BLOCK_N)
    i = (full_tiles + split) // column_tiles
    j = (full_tiles + split) % column_tiles
    local_rows = strip * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, META.BLOCK_N)
    at = workspace_ptr + (split * splits).to(tl.int64) * META.BLOCK_M * META.BLOCK_N
    at = at + local_rows[:, None] * META.BLOCK_N + local_columns[None, :]
    value = tl.zeros([STRIP, META.BLOCK_N], tl.float32)
    for part in tl.range(0, splits, loop_unroll_factor=UNROLL):
        value += tl.load(at + part * META.BLOCK_M * META.BLOCK_N)
    rows = i * META.BLOCK_M + local_rows
    columns = j * META.BLOCK_N + local_columns
    _finish(value, matrix, rows, columns, N, D, j, i * STRIPS + strip, META.PRECISION)
    _sum_squares(matrix, i, j, 1, D, META, STRIPS)


def correlation_layout(d: int, precision: str) -> Layout:
    """Shape and dtype of a stored C: rows are padded to whole blocks, with zeros where those are
    summed over."""
    return (d, round_up(d, OPERAND_ALIGNMENT)), OPERAND_DTYPE[precision]


def correlation(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """(C, squares): the contract's primitive."""
    z_a, z_b = addressable(z_a), addressable(z_b)
    (n, d), device = z_a.shape, z_a.device
    plan = configurations.correlation(device_of(z_a), n, d, z_a.dtype, precision)
    shape, dtype = correlation_layout(d, precision)
    out = torch.empty(shape, dtype=dtype, device=device)
    strips = plan.block_m // plan.strip
    row_shares, column_shares = cdiv(d, plan.block_n), cdiv(d, plan.block_m) * strips
    row_squares = torch.empty((row_shares, d), dtype=torch.float32, device=device)
    column_squares = torch.empty((column_shares, d), dtype=torch.float32, device=device)
    squares = torch.empty((2, d), dtype=torch.float64, device=device)
    slots = plan.split_tiles * plan.splits
    workspace = torch.empty((slots, plan.block_m, plan.block_n), dtype=torch.float32, device=device)
    pair = Pair(z_a, z_b, z_a.stride(0), z_b.stride(0), statistics)
    tiles = cdiv(d, plan.block_m) + row_shares
    matrix = Matrix(out, shape[1], row_squares, column_squares, squares, counters(device, tiles))
    product = meta(plan.block_m, plan.block_n, plan.block_k, precision)
    sums = 2 * (row_squares.nbytes + column_squares.nbytes) + squares.nbytes
    finished = out.nbytes + sums
    written = finished if plan.full_tiles else workspace.nbytes
    launch(
        correlation_kernel, (plan.full_tiles + slots,), pair, matrix, workspace, n, d,
        plan.full_tiles, plan.splits, plan.k_blocks_per_split, product,
        STRIPS=strips, FINISH=plan.full_tiles > 0, warps=plan.warps, stages=plan.stages,
        flops=2.0 * n * d * d, moved=2 * n * d * z_a.element_size() + written,
    )  # fmt: skip
    if plan.split_tiles:
        launch(
            correlation_finish_kernel, (plan.split_tiles * strips,), workspace, matrix, n, d,
            plan.full_tiles, plan.splits, product, STRIP=plan.strip,
            warps=4, moved=workspace.nbytes + (0 if plan.full_tiles else finished),
        )  # fmt: skip
    return out, squares
