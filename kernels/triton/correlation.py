"""C = z_hat_a^T z_hat_b / N with a zeroed diagonal, and its squared row and column sums.

Both views are standardised on their way into the product: C is built where N > D, so inputs are
read about once and are what the time goes to. Tiles of the last, incomplete wave are split over N
(at D = 256 that is all of them), and a second kernel adds their parts in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import OPERAND_DTYPE
from . import configurations
from .arithmetic import cast, multiply, standardised, to_operand, to_tf32
from .launch import cdiv, device_of, launch, round_up


@triton.jit
def _finish(
    value,
    matrix,
    row_squares,
    column_squares,
    rows,
    columns,
    n,
    d,
    width,
    column_tile,
    share,
    ROUND: tl.constexpr,
):
    """Stores (a strip of) a tile of C and its sums of squares; `value` is N times the tile."""
    inside = (rows < d)[:, None] & (columns < d)[None, :]
    c = tl.where(inside & (rows[:, None] != columns[None, :]), value / n, 0.0)
    kept = to_tf32(c) if ROUND else c
    tl.store(
        matrix + rows.to(tl.int64)[:, None] * width + columns[None, :],
        cast(kept, matrix.dtype.element_ty),
        mask=(rows < d)[:, None] & (columns < width)[None, :],
    )
    squares = c * c
    at = row_squares + column_tile.to(tl.int64) * d + rows
    tl.store(at, tl.sum(squares, axis=1), mask=rows < d)
    at = column_squares + share.to(tl.int64) * d + columns
    tl.store(at, tl.sum(squares, axis=0), mask=columns < d)


@triton.jit
def _block(z, at, mean, rstd, shift, inside, height, PRECISION: tl.constexpr):
    x = standardised(tl.load(z + at, mask=inside[None, :], other=0.0), mean, rstd, shift)
    return to_operand(tl.where(height[:, None], x, 0.0), PRECISION)


@triton.jit(do_not_specialize=["n", "whole", "splits", "depth"])
def correlation_kernel(
    z_a,
    z_b,
    statistics,
    matrix,
    row_squares,
    column_squares,
    workspace,
    n,
    d,
    stride_a,
    stride_b,
    width,
    whole,
    splits,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    STRIPS: tl.constexpr,
    PRECISION: tl.constexpr,
    FINISH: tl.constexpr,
):
    """One tile of C, or one part of the sum over N of a split tile.

    row_squares: (column tiles, D) and column_squares: (row tiles * STRIPS, D) float32; a whole tile
    writes its column sums once and zeros for the other strips.
    workspace: (split tiles, splits, BLOCK_M, BLOCK_N) float32.
    """
    program = tl.program_id(0)
    is_whole = program < whole
    rest = program - whole
    tile = tl.where(is_whole, program, whole + rest // splits)
    part = tl.where(is_whole, 0, rest % splits)
    first = part * depth * BLOCK_K
    last = tl.where(is_whole, n, tl.minimum(first + depth * BLOCK_K, n))
    column_tiles = tl.cdiv(d, BLOCK_N)
    i = tile // column_tiles
    j = tile % column_tiles
    rows = i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_a, inside_b = rows < d, columns < d
    mean_a = tl.load(statistics + rows, mask=inside_a, other=0.0)
    rstd_a = tl.load(statistics + d + rows, mask=inside_a, other=0.0)
    shift_a = tl.load(statistics + 2 * d + rows, mask=inside_a, other=0.0)
    mean_b = tl.load(statistics + 3 * d + columns, mask=inside_b, other=0.0)
    rstd_b = tl.load(statistics + 4 * d + columns, mask=inside_b, other=0.0)
    shift_b = tl.load(statistics + 5 * d + columns, mask=inside_b, other=0.0)

    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if CHUNK == 0:
        for k in range(first, last, BLOCK_K):
            depths = k + tl.arange(0, BLOCK_K)
            height = depths < last
            at = tl.minimum(depths, n - 1).to(tl.int64)[:, None]
            at_a, at_b = at * stride_a + rows[None, :], at * stride_b + columns[None, :]
            x = _block(z_a, at_a, mean_a, rstd_a, shift_a, inside_a, height, PRECISION)
            y = _block(z_b, at_b, mean_b, rstd_b, shift_b, inside_b, height, PRECISION)
            value = multiply(tl.trans(x), y, value, PRECISION)
    else:
        for c in range(first, last, CHUNK):
            chunk = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for k in range(c, tl.minimum(c + CHUNK, last), BLOCK_K):
                depths = k + tl.arange(0, BLOCK_K)
                height = depths < last
                at = tl.minimum(depths, n - 1).to(tl.int64)[:, None]
                at_a, at_b = at * stride_a + rows[None, :], at * stride_b + columns[None, :]
                x = _block(z_a, at_a, mean_a, rstd_a, shift_a, inside_a, height, PRECISION)
                y = _block(z_b, at_b, mean_b, rstd_b, shift_b, inside_b, height, PRECISION)
                chunk = multiply(tl.trans(x), y, chunk, PRECISION)
            value += chunk

    if FINISH:  # noqa: SIM102 (decided when compiled, unlike the next)
        if is_whole:
            share = i * STRIPS
            _finish(
                value,
                matrix,
                row_squares,
                column_squares,
                rows,
                columns,
                n,
                d,
                width,
                j,
                share,
                PRECISION == "tf32",
            )
            for strip in tl.static_range(1, STRIPS):
                at = column_squares + (share + strip).to(tl.int64) * d + columns
                tl.store(at, tl.zeros([BLOCK_N], tl.float32), mask=columns < d)
    if not is_whole:
        local = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(workspace + rest.to(tl.int64) * BLOCK_M * BLOCK_N + local, value)


@triton.jit(do_not_specialize=["n", "whole", "splits"])
def correlation_finish_kernel(
    workspace,
    matrix,
    row_squares,
    column_squares,
    n,
    d,
    width,
    whole,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Adds the parts of STRIP rows of a split tile, in order, and stores them."""
    STRIPS: tl.constexpr = BLOCK_M // STRIP
    split = tl.program_id(0) // STRIPS
    strip = tl.program_id(0) % STRIPS
    column_tiles = tl.cdiv(d, BLOCK_N)
    i = (whole + split) // column_tiles
    j = (whole + split) % column_tiles
    local_rows = strip * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, BLOCK_N)
    at = workspace + (split * splits).to(tl.int64) * BLOCK_M * BLOCK_N
    at = at + local_rows[:, None] * BLOCK_N + local_columns[None, :]
    value = tl.zeros([STRIP, BLOCK_N], tl.float32)
    for part in range(splits):
        value += tl.load(at + part * BLOCK_M * BLOCK_N)
    rows = i * BLOCK_M + local_rows
    columns = j * BLOCK_N + local_columns
    share = i * STRIPS + strip
    _finish(
        value, matrix, row_squares, column_squares, rows, columns, n, d, width, j, share, ROUND
    )  # fmt: skip


@triton.jit(do_not_specialize=["row_shares", "column_shares"])
def squares_kernel(
    row_squares, column_squares, squares, d, row_shares, column_shares, COLUMNS: tl.constexpr
):
    """squares (2, D) float64: the shares of the row and the column sums, added in order."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    value = tl.zeros([COLUMNS], tl.float64)
    at = row_squares + columns
    for _ in range(row_shares):
        value += tl.load(at, mask=inside, other=0.0).to(tl.float64)
        at += d
    tl.store(squares + columns, value, mask=inside)
    value = tl.zeros([COLUMNS], tl.float64)
    at = column_squares + columns
    for _ in range(column_shares):
        value += tl.load(at, mask=inside, other=0.0).to(tl.float64)
        at += d
    tl.store(squares + d + columns, value, mask=inside)


def layout(d: int, precision: str) -> tuple[tuple[int, int], torch.dtype]:
    """Shape and dtype of a stored C: rows are padded to whole blocks, with zeros where those are
    summed over."""
    return (d, round_up(d, configurations.OPERAND_ALIGNMENT)), OPERAND_DTYPE[precision]


def correlation(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """(C, squares): the contract's primitive."""
    n, d = z_a.shape
    device = z_a.device
    config = configurations.correlation(device_of(z_a), n, d, z_a.dtype, precision)
    shape, dtype = layout(d, precision)
    matrix = torch.empty(shape, dtype=dtype, device=device)
    strips = config.block_m // config.strip
    row_shares, column_shares = cdiv(d, config.block_n), cdiv(d, config.block_m) * strips
    row_squares = torch.empty((row_shares, d), dtype=torch.float32, device=device)
    column_squares = torch.empty((column_shares, d), dtype=torch.float32, device=device)
    squares = torch.empty((2, d), dtype=torch.float64, device=device)
    slots = config.split * config.splits
    workspace = torch.empty(
        (slots, config.block_m, config.block_n), dtype=torch.float32, device=device
    )
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    launch(
        correlation_kernel,
        (config.whole + slots,),
        z_a,
        z_b,
        statistics,
        matrix,
        row_squares,
        column_squares,
        workspace,
        n,
        d,
        z_a.stride(0),
        z_b.stride(0),
        shape[1],
        config.whole,
        config.splits,
        config.depth,
        **blocks,
        BLOCK_K=config.block_k,
        CHUNK=config.chunk,
        STRIPS=strips,
        PRECISION=precision,
        FINISH=config.whole > 0,
        warps=config.warps,
        stages=config.stages,
        flops=2.0 * n * d * d,
        moved=2 * n * d * z_a.element_size()
        + (matrix.nbytes if config.whole else workspace.nbytes),
    )
    if config.split:
        launch(
            correlation_finish_kernel,
            (config.split * strips,),
            workspace,
            matrix,
            row_squares,
            column_squares,
            n,
            d,
            shape[1],
            config.whole,
            config.splits,
            **blocks,
            STRIP=config.strip,
            ROUND=precision == "tf32",
            warps=4,
            moved=workspace.nbytes + (0 if config.whole else matrix.nbytes),
        )
    launch(
        squares_kernel,
        (cdiv(d, configurations.MERGE_COLUMNS),),
        row_squares,
        column_squares,
        squares,
        d,
        row_shares,
        column_shares,
        COLUMNS=configurations.MERGE_COLUMNS,
        warps=1,
        moved=row_squares.nbytes + column_squares.nbytes + squares.nbytes,
    )
    return matrix, squares
