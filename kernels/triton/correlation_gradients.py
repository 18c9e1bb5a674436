"""dL/dz of one view from C, with the diagonal term and the norm's backward, written once.

    G_a = coefficient z_hat_b C^T + w z_hat_b        G_b = coefficient z_hat_a C + w z_hat_a
    dL/dz = rstd (G - z_hat (coefficient squares + w C_ii)) grad_scale

(kernels/README.md, equations 8 and 9: the projection comes from the sums that C was built with.)
z_hat of the other view is made on its way into the product ('fused'), or stored first and read from
there ('stored'). Of bfloat16 inputs z itself is the operand, and C is scaled ('raw').
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import GradientInputs
from . import configurations
from .arithmetic import (
    Gradient,
    Output,
    Pair,
    Weights,
    halves,
    load_block,
    load_columns,
    meta,
    multiply,
    store_gradient,
    stored,
    to_operand,
    view_of,
)
from .launch import addressable, aligned, cdiv, device_of, launch
from .standardise import operand


class Outputs(NamedTuple):
    """`Output` of both views."""

    diagonal_ptr: Any
    scale_ptr: Any
    ptr_a: Any
    ptr_b: Any


@triton.jit
def _right(matrix_ptr, stride, k, columns, D, TRANSPOSED: tl.constexpr):
    """A block (k, columns) of C, or of its transpose.

    Rows of C are clamped to its D: beyond it, they meet zeros of the left operand, or make columns
    that are not stored.
    """
    if TRANSPOSED:
        at = tl.minimum(columns, D - 1).to(tl.int64)[:, None] * stride + k[None, :]
        x = tl.trans(tl.load(matrix_ptr + at))
    else:
        at = tl.minimum(k, D - 1).to(tl.int64)[:, None] * stride + columns[None, :]
        x = tl.load(matrix_ptr + at)
    return stored(x)


@triton.jit
def _scaled(y, taken, norm_ptr, k, D, PRECISION: tl.constexpr):
    """(rstd C, taken + mean * that) for the columns k of the other view, so that
    z_hat C = z (rstd C) - sum_k mean rstd C, whose operand z is exact. The means multiply the
    rounded operand, so what rounding it loses is not multiplied by them; they include the shift."""
    inside = k < D
    mean = tl.load(norm_ptr + k, mask=inside, other=0.0)
    rstd = tl.load(norm_ptr + D + k, mask=inside, other=1.0)
    shift = tl.load(norm_ptr + 2 * D + k, mask=inside, other=0.0)
    y = to_operand(y.to(tl.float32) * rstd[:, None], PRECISION)
    return y, taken + (mean + shift / rstd)[:, None] * y.to(tl.float32)


@triton.jit
def _product(
    other, hat_ptr, matrix_ptr, stride, left, columns, D, META,
    TRANSPOSED: tl.constexpr, EVEN: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """z_hat of the other view times C, or its transpose: a tile. `left`: where its rows begin."""
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    taken = tl.zeros([META.BLOCK_K, META.BLOCK_N], tl.float32)
    for first in range(0, D, META.BLOCK_K):
        k = first + tl.arange(0, META.BLOCK_K)
        y = _right(matrix_ptr, stride, k, columns, D, TRANSPOSED)
        if RAW:
            at = other.ptr + left + k[None, :]
            x = stored(tl.load(at) if EVEN else tl.load(at, mask=(k < D)[None, :], other=0.0))
            y, taken = _scaled(y, taken, other.statistics_ptr, k, D, META.PRECISION)
        elif hat_ptr is None:
            x = to_operand(load_columns(other, left, k, D, EVEN), META.PRECISION)
        else:
            x = stored(tl.load(hat_ptr + left + k[None, :]))
        product = multiply(x, y, product, META.PRECISION)
    if RAW:
        product -= tl.sum(taken, axis=0)[None, :]
    return product


@triton.jit(do_not_specialize=["N"])
def correlation_gradients_kernel(
    pair,
    output,
    hat_ptr,
    matrix_ptr,
    squares_ptr,
    N,
    D,
    stride_matrix,
    weights,
    META,
    FIRST: tl.constexpr,
    VIEWS: tl.constexpr,
    EVEN: tl.constexpr,
    RAW: tl.constexpr,
):
    """A tile of dL/dz of one of VIEWS views, the first of which is FIRST. Tiles of the same rows
    follow each other: what all of them read is in the second-level cache.

    hat_ptr: z_hat of the other view as `operand` stores it, in rows as long as those of C, or None.
    squares_ptr: the squared sums, (2, D) float64. RAW: the operand is z as it lies in memory, and C
    is scaled instead.
    """
    BLOCK_M: tl.constexpr = META.BLOCK_M
    BLOCK_N: tl.constexpr = META.BLOCK_N
    view = FIRST if VIEWS == 1 else tl.program_id(0) % 2
    tile = tl.program_id(0) // VIEWS
    column_tiles = tl.cdiv(D, BLOCK_N)
    row = (tile // column_tiles) * BLOCK_M
    column = (tile % column_tiles) * BLOCK_N
    rows = tl.minimum(row + tl.arange(0, BLOCK_M), N - 1).to(tl.int64)[:, None]
    columns = column + tl.arange(0, BLOCK_N)
    own, other = view_of(pair, view, D), view_of(pair, 1 - view, D)
    left = rows * (other.stride if hat_ptr is None else stride_matrix)
    if view == 0:
        product = _product(
            other, hat_ptr, matrix_ptr, stride_matrix, left, columns, D, META, True, EVEN, RAW
        )
    else:
        product = _product(
            other, hat_ptr, matrix_ptr, stride_matrix, left, columns, D, META, False, EVEN, RAW
        )

    out_ptr = tl.where(view == 0, output.ptr_a, output.ptr_b)
    gradient = Gradient(own, other, Output(output.diagonal_ptr, output.scale_ptr, out_ptr))
    left_half, right_half = halves(product, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        part = left_half if half == 0 else right_half
        at = column + half * (BLOCK_N // 2)
        columns = at + tl.arange(0, BLOCK_N // 2)
        squares = tl.load(squares_ptr + view * D + columns, mask=columns < D, other=0.0)
        rest = (weights.product * squares).to(tl.float32)
        hat = load_block(own, row, at, N, D, BLOCK_M, BLOCK_N // 2)
        store_gradient(
            gradient, weights, 1.0, part, hat, rest, row, at, N, D, BLOCK_M, BLOCK_N // 2
        )


def correlation_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b; the contract's primitive. One launch, but one for each view where z_hat is
    stored, where shared memory does not hold the blocks of both, or where rows do not begin at 16
    bytes: registers go to addresses then, and neither both views nor what scales C would fit."""
    statistics, (matrix, squares) = inputs.statistics, inputs.matrices
    z_a, z_b = addressable(inputs.z_a), addressable(inputs.z_b)
    (n, d), precision = z_a.shape, inputs.precision
    device = device_of(z_a)
    row = configurations.correlation_gradients(device, d, z_a.dtype, precision)
    pair = Pair(z_a, z_b, z_a.stride(0), z_b.stride(0), statistics)
    grads = [
        torch.empty((n, d) if needed else (0,), dtype=z_a.dtype, device=z_a.device)
        for needed in inputs.need
    ]
    output = Outputs(statistics[6], inputs.grad_scale, *grads)
    wanted = [view for view in range(2) if inputs.need[view]]
    wide = aligned(z_a, z_b)
    path = "stored" if row.path == "raw" and not wide else row.path
    fits = configurations.views_together(row, device, precision, z_a.dtype)
    together = wide and path != "stored" and fits
    for views in filter(None, [wanted] if together else ([view] for view in wanted)):
        hat, moved = None, 0
        if path == "stored":
            other = 1 - views[0]
            hat = operand((z_a, z_b)[other], statistics[3 * other : 3 * other + 3], precision)
            moved = hat.nbytes
        launch(
            correlation_gradients_kernel,
            (len(views) * cdiv(n, row.block_m) * cdiv(d, row.block_n),),
            pair, output, hat, matrix, squares, n, d, matrix.shape[1],
            Weights(*map(float, inputs.coefficients[:3])),
            meta(row.block_m, row.block_n, row.block_k, precision),
            FIRST=views[0], VIEWS=len(views), EVEN=d % row.block_k == 0,
            RAW=path == "raw" and z_a.dtype == torch.bfloat16,
            warps=row.warps, stages=row.stages, flops=2.0 * len(views) * n * d * d,
            moved=(2 + len(views)) * n * d * z_a.element_size() + moved + matrix.nbytes,
        )  # fmt: skip
    return grads[0], grads[1]
