"""dL/dz of one view from C, with the diagonal term and the norm's backward, written once.

    G_a = coefficient z_hat_b C^T + w z_hat_b        G_b = coefficient z_hat_a C + w z_hat_a
    dL/dz = rstd (G - z_hat (coefficient squares + w C_ii)) grad_scale

(kernels/README.md, equations 8 and 9: the projection comes from the sums that C was built with.)
z_hat of the other view is made on its way into the product ('fused'), or stored first and read from
there ('stored').
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import GradientInputs
from . import configurations
from .arithmetic import (
    Gradient,
    Output,
    View,
    Weights,
    halves,
    load_block,
    load_columns,
    meta,
    multiply,
    store_gradient,
    stored,
    to_operand,
)
from .launch import addressable, cdiv, device_of, launch
from .standardise import operand


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
def _step(
    value, other, hat_ptr, left, matrix_ptr, stride, columns, first, D, META,
    TRANSPOSED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """value + the product over the block of columns at `first`."""
    k = first + tl.arange(0, META.BLOCK_K)
    if hat_ptr is None:
        x = to_operand(load_columns(other, left, k, D, EVEN), META.PRECISION)
    else:
        x = stored(tl.load(hat_ptr + left + k[None, :]))
    y = _right(matrix_ptr, stride, k, columns, D, TRANSPOSED)
    return multiply(x, y, value, META.PRECISION)


@triton.jit(do_not_specialize=["N"])
def correlation_gradients_kernel(
    own,
    other,
    output,
    hat_ptr,
    matrix_ptr,
    squares_ptr,
    N,
    D,
    stride_hat,
    stride_matrix,
    weights,
    META,
    TRANSPOSED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A tile of dL/dz.

    hat_ptr: z_hat of the other view as `operand` stores it, or None; stride_hat: of its rows, or of
    z. squares_ptr: this view's row of the squared sums, (D,) float64.
    """
    BLOCK_M: tl.constexpr = META.BLOCK_M
    BLOCK_N: tl.constexpr = META.BLOCK_N
    column_tiles = tl.cdiv(D, BLOCK_N)
    row = (tl.program_id(0) // column_tiles) * BLOCK_M
    column = (tl.program_id(0) % column_tiles) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * stride_hat

    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, D, META.BLOCK_K):
        product = _step(
            product, other, hat_ptr, left, matrix_ptr, stride_matrix, columns, k, D, META,
            TRANSPOSED, EVEN,
        )  # fmt: skip

    gradient = Gradient(own, other, output)
    left_half, right_half = halves(product, BLOCK_M, BLOCK_N)
    for half in tl.static_range(2):
        part = left_half if half == 0 else right_half
        at = column + half * (BLOCK_N // 2)
        columns = at + tl.arange(0, BLOCK_N // 2)
        squares = tl.load(squares_ptr + columns, mask=columns < D, other=0.0)
        rest = (weights.product * squares).to(tl.float32)
        hat = load_block(own, row, at, N, D, BLOCK_M, BLOCK_N // 2)
        store_gradient(
            gradient, weights, 1.0, part, hat, rest, row, at, N, D, BLOCK_M, BLOCK_N // 2
        )


def correlation_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b; the contract's primitive. One launch for each that is needed."""
    statistics, (matrix, squares) = inputs.statistics, inputs.matrices
    n, d = inputs.z_a.shape
    row = configurations.correlation_gradients(
        device_of(inputs.z_a), d, inputs.z_a.dtype, inputs.precision
    )
    views = [
        View(z, z.stride(0), statistics[3 * view : 3 * view + 3])
        for view, z in enumerate((addressable(inputs.z_a), addressable(inputs.z_b)))
    ]
    weights = Weights(*map(float, inputs.coefficients[:3]))
    grads = []
    for view, own in enumerate(views):
        shape = (n, d) if inputs.need[view] else (0,)
        grad = torch.empty(shape, dtype=own.ptr.dtype, device=own.ptr.device)
        grads.append(grad)
        if not inputs.need[view]:
            continue
        output, other = Output(statistics[6], inputs.grad_scale, grad), views[1 - view]
        hat, stride_hat, moved = None, other.stride, 0
        if row.path == "stored":
            hat = operand(other.ptr, other.statistics_ptr, inputs.precision)
            stride_hat, moved = hat.stride(0), hat.nbytes
        launch(
            correlation_gradients_kernel, (cdiv(n, row.block_m) * cdiv(d, row.block_n),),
            own, other, output, hat, matrix, squares[view], n, d, stride_hat, matrix.shape[1],
            weights,
            meta(row.block_m, row.block_n, row.block_k, inputs.precision),
            TRANSPOSED=view == 0, EVEN=d % row.block_k == 0, warps=row.warps, stages=row.stages,
            flops=2.0 * n * d * d, moved=3 * n * d * grad.element_size() + moved + matrix.nbytes,
        )  # fmt: skip
    return grads[0], grads[1]
