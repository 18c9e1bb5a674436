"""dL/dz of one view from C, with the diagonal term and the norm's backward, written once.

    G_a = coefficient z_hat_b C^T + w z_hat_b        G_b = coefficient z_hat_a C + w z_hat_a
    dL/dz = rstd (G - z_hat (coefficient squares + w C_ii)) grad_scale

(kernels/README.md, equations 8 and 9: the projection comes from the sums that C was built with.)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Coefficients
from . import configurations
from .arithmetic import (
    halves,
    multiply,
    rows_of,
    standardised,
    store_rows,
    stored,
    to_operand,
)
from .launch import cdiv, device_of, launch


@triton.jit
def _left(z, at, columns, d, statistics, PRECISION: tl.constexpr, EVEN: tl.constexpr):
    """A block of the other view's z_hat as the left operand; zero beyond column D."""
    if EVEN:
        x = standardised(
            tl.load(z + at + columns[None, :]),
            tl.load(statistics + columns),
            tl.load(statistics + d + columns),
            tl.load(statistics + 2 * d + columns),
        )
    else:
        inside = columns < d
        x = standardised(
            tl.load(z + at + columns[None, :], mask=inside[None, :], other=0.0),
            tl.load(statistics + columns, mask=inside, other=0.0),
            tl.load(statistics + d + columns, mask=inside, other=0.0),
            tl.load(statistics + 2 * d + columns, mask=inside, other=0.0),
        )
    return to_operand(x, PRECISION)


@triton.jit
def _right(matrix, depths, columns, d, width, TRANSPOSED: tl.constexpr):
    """A block (depths, columns) of C, or of its transpose.

    Rows of C are clamped to its D: what lies beyond meets zeros of the left operand, or makes
    columns that are not stored.
    """
    if TRANSPOSED:
        at = tl.minimum(columns, d - 1).to(tl.int64)[:, None] * width + depths[None, :]
        x = tl.trans(tl.load(matrix + at))
    else:
        at = tl.minimum(depths, d - 1).to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(matrix + at)
    return stored(x)


@triton.jit
def _half(
    product,
    z,
    other,
    statistics,
    other_statistics,
    diagonal,
    squares,
    grad,
    row,
    column,
    n,
    d,
    stride,
    other_stride,
    coefficient,
    slope,
    offset,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    c = tl.load(diagonal + columns, mask=inside, other=0.0)
    weight = slope * c + offset
    sums = tl.load(squares + columns, mask=inside, other=0.0)
    projection = (coefficient * sums).to(tl.float32) + weight * c
    own = rows_of(z, statistics, row, column, n, d, stride, ROWS, COLUMNS)
    theirs = rows_of(other, other_statistics, row, column, n, d, other_stride, ROWS, COLUMNS)
    factor = tl.load(statistics + d + columns, mask=inside, other=0.0) * scale
    g = coefficient * product + weight[None, :] * theirs - own * projection[None, :]
    store_rows(grad, g * factor[None, :], row, column, n, d, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["n"])
def correlation_gradients_kernel(
    z,
    other,
    statistics,
    other_statistics,
    diagonal,
    squares,
    matrix,
    grad_scale,
    grad,
    n,
    d,
    stride,
    other_stride,
    width,
    coefficient,
    slope,
    offset,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A tile of dL/dz. `squares`: this view's row of the squared sums, (D,) float64."""
    column_tiles = tl.cdiv(d, BLOCK_N)
    row = (tl.program_id(0) // column_tiles) * BLOCK_M
    column = (tl.program_id(0) % column_tiles) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    left = tl.minimum(rows, n - 1).to(tl.int64)[:, None] * other_stride

    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if CHUNK == 0:
        for k in range(0, d, BLOCK_K):
            depths = k + tl.arange(0, BLOCK_K)
            x = _left(other, left, depths, d, other_statistics, PRECISION, EVEN)
            y = _right(matrix, depths, columns, d, width, TRANSPOSED)
            product = multiply(x, y, product, PRECISION)
    else:
        for c in range(0, d, CHUNK):
            chunk = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for k in range(c, tl.minimum(c + CHUNK, d), BLOCK_K):
                depths = k + tl.arange(0, BLOCK_K)
                x = _left(other, left, depths, d, other_statistics, PRECISION, EVEN)
                y = _right(matrix, depths, columns, d, width, TRANSPOSED)
                chunk = multiply(x, y, chunk, PRECISION)
            product += chunk

    scale = tl.load(grad_scale).to(tl.float32)
    left_half, right_half = halves(product, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        part = left_half if half == 0 else right_half
        _half(
            part, z, other, statistics, other_statistics, diagonal, squares, grad, row,
            column + half * (BLOCK_N // 2), n, d, stride, other_stride, coefficient, slope, offset,
            scale, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip


def correlation_gradients(
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    matrix: Tensor,
    squares: Tensor,
    grad_scale: Tensor,
    coefficients: Coefficients,
    precision: str,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b; the contract's primitive. One launch for each that is needed."""
    n, d = z_a.shape
    config = configurations.correlation_gradients(device_of(z_a), n, d, z_a.dtype, precision)
    grads = []
    for view, (z, other) in enumerate(((z_a, z_b), (z_b, z_a))):
        grad = torch.empty((n, d) if need[view] else (0,), dtype=z.dtype, device=z.device)
        grads.append(grad)
        if not need[view]:
            continue
        launch(
            correlation_gradients_kernel,
            (cdiv(n, config.block_m) * cdiv(d, config.block_n),),
            z,
            other,
            statistics[3 * view : 3 * view + 3],
            statistics[3 - 3 * view : 6 - 3 * view],
            statistics[6],
            squares[view],
            matrix,
            grad_scale,
            grad,
            n,
            d,
            z.stride(0),
            other.stride(0),
            matrix.shape[1],
            *coefficients[:3],
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            CHUNK=config.chunk,
            PRECISION=precision,
            TRANSPOSED=view == 0,
            EVEN=d % config.block_k == 0,
            warps=config.warps,
            stages=config.stages,
            flops=2.0 * n * d * d,
            moved=3 * n * d * z.element_size() + matrix.nbytes,
        )
    return grads[0], grads[1]
