"""dL/dz of both views from K'_a and K'_b, with the diagonal term and the norm's backward.

    G = coefficient K' z_hat + w z_hat_other                      w = slope C_ii + offset
    dL/dz = rstd (G - z_hat p) grad_scale
    p = coefficient q + w C_ii - coefficient c eps rstd^2         q = mean_n (K' z_hat * z_hat)

(kernels/README.md, equations 4 to 6; mean_n(z_hat_other * z_hat) is C_ii, so that only q needs the
product.) Up to a few hundred samples a program owns all rows of its columns: q is a sum over its
own accumulator, and one launch writes the gradient once. Above that, tiles write the gradient
without the part of q, and their column sums; the last program of a stripe of columns takes that
part out. Without the norm's backward, p = -coefficient c, which centring took out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import GradientInputs
from ..precision import gram_scale
from . import configurations
from .arithmetic import (
    Gradient,
    Output,
    Pair,
    View,
    Weights,
    cast,
    halves,
    load_block,
    load_columns,
    meta,
    multiply,
    norm_of,
    standardised,
    store_gradient,
    stored,
    to_operand,
    view_of,
)
from .arrival import arrived, counters
from .gram import library_product
from .launch import addressable, aligned, cdiv, device_of, launch, tma_descriptor
from .standardise import operand, transposed_operand
from .table import LARGE, Product


class Projection(NamedTuple):
    """The floats of p. Like `Weights`, floats, so that no value of them compiles another kernel."""

    projected: Any  # 1 or 0
    centring: Any  # the product's factor times eps, or 0 if not projected
    returned: Any  # 0, or if not projected the product's factor


@triton.jit
def centre_part(projection, centre, rstd):
    """What p lacks of the part that centring took out of K."""
    return centre * (projection.centring * rstd * rstd + projection.returned)


@triton.jit
def _gradient_of(pair, grads, scale_ptr, index, D):
    """The gradient of one view; `grads`: pointers to both."""
    out_ptr = tl.where(index == 0, grads[0], grads[1])
    output = Output(pair.statistics_ptr + 6 * D, scale_ptr, out_ptr)
    return Gradient(view_of(pair, index, D), view_of(pair, 1 - index, D), output)


@triton.jit
def fused_product(own, gram_ptr, stride_gram, rows, columns, N, D, META):
    """A tile of K' z_hat, z standardised on its way into the product."""
    norm = norm_of(own.statistics_ptr, columns, D, False)
    inside = columns < D
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * stride_gram
    for first in range(0, N, META.BLOCK_K):
        k = first + tl.arange(0, META.BLOCK_K)
        # K' is padded with zeros, so that rows of z beyond N do not count; they must be finite.
        x = tl.load(gram_ptr + left + k[None, :])
        at = tl.minimum(k, N - 1).to(tl.int64)[:, None] * own.stride + columns[None, :]
        y = standardised(tl.load(own.ptr + at, mask=inside[None, :], other=0.0), norm)
        product = multiply(stored(x), to_operand(y, META.PRECISION), product, META.PRECISION)
    return product


@triton.jit(do_not_specialize=["N", "first_view"])
def gram_columns_kernel(
    pair,
    grams_ptr,
    centres_ptr,
    scale_ptr,
    grads,
    N,
    D,
    stride_gram,
    first_view,
    weights,
    projection,
    META,
):
    """All N <= BLOCK_M rows of BLOCK_N columns of one view's gradient.

    grads: pointers to both gradients.
    """
    ROWS: tl.constexpr = META.BLOCK_M
    COLUMNS: tl.constexpr = META.BLOCK_N
    index = first_view + tl.program_id(1)
    column = tl.program_id(0) * COLUMNS
    gradient = _gradient_of(pair, grads, scale_ptr, index, D)
    # The gradient of one view takes the other view's matrix.
    gram_ptr = grams_ptr + (1 - index) * N.to(tl.int64) * stride_gram
    product = fused_product(
        gradient.own, gram_ptr, stride_gram, tl.arange(0, ROWS), column + tl.arange(0, COLUMNS),
        N, D, META,
    )  # fmt: skip
    centre = tl.load(centres_ptr + 1 - index)
    left_half, right_half = halves(product, ROWS, COLUMNS)
    for half in tl.static_range(2):
        part = left_half if half == 0 else right_half
        at = column + half * (COLUMNS // 2)
        _column_half(part, gradient, weights, projection, centre, at, N, D, ROWS, COLUMNS // 2)


@triton.jit
def _column_half(
    product, gradient, weights, projection, centre, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.zeros([], tl.int32)
    columns = column + tl.arange(0, COLUMNS)
    height = (tl.arange(0, ROWS) < N)[:, None]
    own = load_block(gradient.own, row, column, N, D, ROWS, COLUMNS)
    q = tl.sum(tl.where(height, product * own, 0.0), axis=0) / N
    rstd = tl.load(gradient.own.statistics_ptr + D + columns, mask=columns < D, other=0.0)
    rest = projection.projected * weights.product * q - centre_part(projection, centre, rstd)
    store_gradient(
        gradient, weights, projection.projected, product, own, rest, row, column, N, D,
        ROWS, COLUMNS,
    )  # fmt: skip


class Operands(NamedTuple):
    """K' of the other view and z_hat in the operand type, as `operand` stores it."""

    gram_ptr: Any
    hat_ptr: Any
    stride_gram: Any
    stride_hat: Any


@triton.jit
def _tma_product(gram_descriptor, hat_descriptor, row, column, N, META):
    """A tile of K' z_hat."""
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    for k in range(0, N, META.BLOCK_K):
        x = stored(gram_descriptor.load([row, k]))
        if META.PRECISION == "tf32":
            y = tl.trans(stored(hat_descriptor.load([column, k])))
        else:
            y = stored(hat_descriptor.load([k, column]))
        product = multiply(x, y, product, META.PRECISION)
    return product


@triton.jit
def _loaded_product(operands, row, column, N, META):
    """The same by ordinary loads; K' is zero where rows of z_hat beyond N are copies."""
    rows = row + tl.arange(0, META.BLOCK_M)
    columns = column + tl.arange(0, META.BLOCK_N)
    left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * operands.stride_gram
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    for first in range(0, N, META.BLOCK_K):
        k = first + tl.arange(0, META.BLOCK_K)
        x = tl.load(operands.gram_ptr + left + k[None, :])
        at = tl.minimum(k, N - 1).to(tl.int64)[:, None] * operands.stride_hat + columns[None, :]
        y = tl.load(operands.hat_ptr + at)
        product = multiply(stored(x), stored(y), product, META.PRECISION)
    return product


@triton.jit
def _tile_piece(
    product, gradient, weights, projected, sums_ptr, row, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = column + tl.arange(0, COLUMNS)
    height = (row + tl.arange(0, ROWS) < N)[:, None]
    own = load_block(gradient.own, row, column, N, D, ROWS, COLUMNS)
    q = tl.sum(tl.where(height, product * own, 0.0), axis=0)
    tl.store(sums_ptr + columns, q, mask=columns < D)
    store_gradient(
        gradient, weights, projected, product, own, None, row, column, N, D, ROWS, COLUMNS
    )


@triton.jit
def _tile_pieces(
    product, gradient, weights, projected, sums_ptr, row, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Finishes a tile in pieces of PIECE columns, which fit into registers beside the rest."""
    if COLUMNS > PIECE:
        left, right = halves(product, ROWS, COLUMNS)
        _tile_pieces(
            left, gradient, weights, projected, sums_ptr, row, column, N, D, ROWS,
            COLUMNS // 2, PIECE,
        )  # fmt: skip
        _tile_pieces(
            right, gradient, weights, projected, sums_ptr, row,
            column + COLUMNS // 2, N, D, ROWS, COLUMNS // 2, PIECE,
        )  # fmt: skip
    else:
        _tile_piece(
            product, gradient, weights, projected, sums_ptr, row, column, N, D, ROWS,
            COLUMNS,
        )  # fmt: skip


@triton.jit
def _project(
    own, output, centre_ptr, sums_ptr, row_tiles, column, N, D, weights, projection,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Takes z_hat (coefficient q - c (centring rstd^2 + returned)) out of the gradient of COLUMNS
    columns; the coefficient is 0 if not projected.

    What other programs stored is loaded past the first-level cache.
    """
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < D
    q = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, row_tiles, 16):
        tile = first + tl.arange(0, 16)
        at = sums_ptr + tile[:, None] * D + columns[None, :]
        mask = (tile < row_tiles)[:, None] & inside[None, :]
        q += tl.sum(tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), axis=0)
    norm = norm_of(own.statistics_ptr, columns, D, False)
    taken = weights.product * projection.projected * (q / N)
    taken -= centre_part(projection, tl.load(centre_ptr), norm.rstd)
    taken *= norm.rstd * tl.load(output.scale_ptr).to(tl.float32)
    # One SM does this alone: two blocks of rows are loaded ahead.
    for row in tl.range(0, N, ROWS, num_stages=3):
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        valid = (rows < N) & inside[None, :]
        at = output.ptr + rows * D + columns[None, :]
        g = tl.load(at, mask=valid, other=0.0, cache_modifier=".cg").to(tl.float32)
        x = tl.load(own.ptr + rows * own.stride + columns[None, :], mask=valid, other=0.0)
        g -= standardised(x, norm) * taken[None, :]
        tl.store(at, cast(g, output.ptr.dtype.element_ty), mask=valid)


# The number of one view is aligned, that of the other is not: one kernel for both.
@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["centre_ptr"])
def gram_tiles_kernel(
    own,
    other,
    output,
    operands,
    gram_descriptor,
    hat_descriptor,
    sums_ptr,
    counters_ptr,
    centre_ptr,
    N,
    D,
    weights,
    projection,
    META,
    ROWS: tl.constexpr,
):
    """A tile of rstd (coefficient K' z_hat + w (z_hat_other - C_ii z_hat)) grad_scale, in the final
    type, and the tile's column sums of K' z_hat * z_hat; the last tile of a stripe of columns
    projects it, ROWS rows at a time.

    gram_descriptor, hat_descriptor: the operands are read with TMA (Hopper and later) unless these
    are None. sums_ptr: (row tiles, D) float32. counters_ptr: one for each stripe; None leaves out
    what p takes out of the gradient. Where `projection.projected` is 0 there is no term of C_ii.
    """
    BLOCK_M: tl.constexpr = META.BLOCK_M
    BLOCK_N: tl.constexpr = META.BLOCK_N
    row_tiles = tl.cdiv(N, BLOCK_M)
    row_tile = tl.program_id(0) % row_tiles
    stripe = tl.program_id(0) // row_tiles
    row = row_tile * BLOCK_M
    column = stripe * BLOCK_N
    if gram_descriptor is not None:
        product = _tma_product(gram_descriptor, hat_descriptor, row, column, N, META)
    else:
        product = _loaded_product(operands, row, column, N, META)
    _tile_pieces(
        product, Gradient(own, other, output), weights, projection.projected,
        sums_ptr + row_tile * D, row, column, N, D, BLOCK_M, BLOCK_N, min(BLOCK_N // 2, 32),
    )  # fmt: skip
    if counters_ptr is not None:  # noqa: SIM102 (decided when compiled, unlike the next)
        if arrived(counters_ptr + stripe, 1, row_tiles):
            _project(
                own, output, centre_ptr, sums_ptr, row_tiles, column, N, D, weights, projection,
                ROWS, BLOCK_N,
            )  # fmt: skip


@triton.jit(do_not_specialize=["N", "first_view", "views"])
def gram_stripes_kernel(
    pair,
    grams_ptr,
    centres_ptr,
    scale_ptr,
    grads,
    sums_ptr,
    counters_ptr,
    N,
    D,
    stride_gram,
    first_view,
    views,
    weights,
    projection,
    META,
    ROWS: tl.constexpr,
):
    """What `gram_tiles_kernel` makes, of `views` views in one launch, the first of which is
    `first_view`, with z standardised on its way into the product. Tiles of the same columns, of
    either view, follow each other: what they read of z is in the second-level cache.

    grads: pointers to both gradients. sums_ptr: (2, row tiles, D) float32. counters_ptr: for each
    view one for each stripe of columns.
    """
    BLOCK_M: tl.constexpr = META.BLOCK_M
    BLOCK_N: tl.constexpr = META.BLOCK_N
    row_tiles = tl.cdiv(N, BLOCK_M)
    row_tile = tl.program_id(0) % row_tiles
    stripe = tl.program_id(0) // row_tiles
    index = first_view + stripe % views
    row = row_tile * BLOCK_M
    column = stripe // views * BLOCK_N
    gradient = _gradient_of(pair, grads, scale_ptr, index, D)
    gram_ptr = grams_ptr + (1 - index) * N.to(tl.int64) * stride_gram
    product = fused_product(
        gradient.own, gram_ptr, stride_gram, row + tl.arange(0, BLOCK_M),
        column + tl.arange(0, BLOCK_N), N, D, META,
    )  # fmt: skip
    sums_ptr += index * row_tiles * D
    _tile_pieces(
        product, gradient, weights, projection.projected, sums_ptr + row_tile * D, row, column, N,
        D, BLOCK_M, BLOCK_N, 4096 // BLOCK_M,
    )  # fmt: skip
    if arrived(counters_ptr + stripe, 1, row_tiles):
        _project(
            gradient.own, gradient.output, centres_ptr + 1 - index, sums_ptr, row_tiles, column, N,
            D, weights, projection, ROWS, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "first"])
def gram_product_kernel(
    own,
    other,
    output,
    product_ptr,
    centre_ptr,
    N,
    D,
    stride_product,
    first,
    weights,
    projection,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of COLUMNS columns from a finished K' z_hat: one pass for q, one that writes.

    product_ptr: (N, width) float32, the columns of K' z_hat from `first` on, few enough to stay in
    the second-level cache between both passes.
    """
    local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    columns = first + local
    inside = columns < D
    q = tl.zeros([COLUMNS], tl.float32)
    for row in range(0, N, ROWS):
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        at = product_ptr + rows * stride_product + local[None, :]
        p = tl.load(at, mask=(rows < N) & inside[None, :], other=0.0)
        clamped = tl.minimum(rows, N - 1)
        mine = load_columns(own, clamped * own.stride, columns, D, False)
        q += tl.sum(p * mine, axis=0)
    diagonal = tl.load(output.diagonal_ptr + columns, mask=inside, other=0.0)
    rstd = tl.load(own.statistics_ptr + D + columns, mask=inside, other=0.0)
    weight = weights.slope * diagonal + weights.offset
    taken = projection.projected * (weights.product * (q / N) + weight * diagonal)
    taken -= centre_part(projection, tl.load(centre_ptr), rstd)
    factor = rstd * tl.load(output.scale_ptr).to(tl.float32)
    for row in range(0, N, ROWS):
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        valid = (rows < N) & inside[None, :]
        at = product_ptr + rows * stride_product + local[None, :]
        p = tl.load(at, mask=valid, other=0.0)
        clamped = tl.minimum(rows, N - 1)
        mine = load_columns(own, clamped * own.stride, columns, D, False)
        theirs = load_columns(other, clamped * other.stride, columns, D, False)
        g = weights.product * p + weight[None, :] * theirs - mine * taken[None, :]
        g = cast(g * factor[None, :], output.ptr.dtype.element_ty)
        tl.store(output.ptr + rows * D + columns[None, :], g, mask=valid)


def gram_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b; the contract's primitive."""
    inputs = inputs._replace(z_a=addressable(inputs.z_a), z_b=addressable(inputs.z_b))
    z, precision = inputs.z_a, inputs.precision
    n, d = z.shape
    device = device_of(z)
    row = configurations.gram_gradients(device, n, z.dtype, precision)
    if row.path == "fused" and not aligned(z, inputs.z_b):
        # Registers go to addresses, and tiles beside which z is standardised would not fit.
        row = configurations.gram_gradients(device, LARGE, z.dtype, precision)
    grads = tuple(
        torch.empty((n, d) if needed else (0,), dtype=z.dtype, device=z.device)
        for needed in inputs.need
    )
    numbers = _numbers(inputs, gram_scale(n, inputs.coefficients.dimensions or d, precision))
    if row.path in ("owned", "fused"):
        if any(inputs.need):
            _fused(row, inputs, grads, *numbers)
        return grads
    by_path = by_library if row.path == "cublas" else tiles_of_product
    for view in range(2):
        if inputs.need[view]:
            gradient = _gradient(inputs, view, grads[view])
            gram, centre = (x[1 - view] for x in inputs.matrices)
            by_path(row, gradient, gram, precision, *numbers, centre)
    return grads


def _numbers(inputs: GradientInputs, scale: float) -> tuple[Weights, Projection]:
    """The coefficients as the kernels take them; `scale` is the factor that K' is stored with."""
    product, slope, offset, eps = map(float, inputs.coefficients[:4])
    if inputs.coefficients.projected:
        projection = Projection(1.0, product * eps, 0.0)
    else:
        projection = Projection(0.0, 0.0, product)
    return Weights(product / scale, slope, offset), projection


def _gradient(inputs: GradientInputs, view: int, grad: Tensor) -> Gradient:
    views = [
        View(z, z.stride(0), inputs.statistics[3 * v : 3 * v + 3])
        for v, z in enumerate((inputs.z_a, inputs.z_b))
    ]
    output = Output(inputs.statistics[6], inputs.grad_scale, grad)
    return Gradient(views[view], views[1 - view], output)


def _fused(
    row: Product,
    inputs: GradientInputs,
    grads: tuple[Tensor, Tensor],
    weights: Weights,
    projection: Projection,
) -> None:
    """One launch for both views, by columns of all rows or by tiles."""
    z_a, z_b, (grams, centres), views = inputs.z_a, inputs.z_b, inputs.matrices, sum(inputs.need)
    n, d = z_a.shape
    stripes, first_view = cdiv(d, row.block_n), 0 if inputs.need[0] else 1
    # An empty tensor has no address; the kernel does not access it.
    outputs = tuple(g if g.numel() else grads[1 - view] for view, g in enumerate(grads))
    pair = Pair(z_a, z_b, z_a.stride(0), z_b.stride(0), inputs.statistics)
    matrices = (grams, centres, inputs.grad_scale, outputs)
    product = meta(row.block_m, row.block_n, row.block_k, inputs.precision)
    work = {"warps": row.warps, "stages": row.stages, "flops": 2.0 * views * n * n * d}
    work["moved"] = (2 + views) * n * d * z_a.element_size() + views * grams[0].nbytes
    if row.path == "owned":
        launch(
            gram_columns_kernel, (stripes, views), pair, *matrices, n, d, grams.shape[2],
            first_view, weights, projection, product, **work,
        )  # fmt: skip
        return
    row_tiles = cdiv(n, row.block_m)
    sums = torch.empty((2, row_tiles, d), dtype=torch.float32, device=z_a.device)
    launch(
        gram_stripes_kernel, (views * row_tiles * stripes,), pair, *matrices, sums,
        counters(z_a.device, views * stripes), n, d, grams.shape[2], first_view, views, weights,
        projection, product, ROWS=configurations.PROJECT_ROWS, **work,
    )  # fmt: skip


def tiles_of_product(
    row: Product,
    gradient: Gradient,
    gram: Tensor,
    precision: str,
    weights: Weights,
    projection: Projection,
    centre: Tensor | None = None,
) -> Tensor:
    """Stores the gradient; without `centre` less what p takes out of it. Returns the (row tiles, D)
    float32 column sums of K' z_hat * z_hat."""
    z = gradient.own.ptr
    n, d = z.shape
    row_tiles, column_tiles = cdiv(n, row.block_m), cdiv(d, row.block_n)
    tma = row.path == "tma"
    make, block = operand, (row.block_k, row.block_n)
    if tma and precision == "tf32":  # wgmma takes 32-bit operands along the summed index only
        make, block = transposed_operand, block[::-1]
    hat = make(z, gradient.own.statistics_ptr, precision)
    column_sums = torch.empty((row_tiles, d), dtype=torch.float32, device=z.device)
    counts = None if centre is None else counters(z.device, column_tiles)
    descriptors = (None, None)
    if tma:
        descriptors = (tma_descriptor(gram, row.block_m, row.block_k), tma_descriptor(hat, *block))
    read = (1 if gradient.other.ptr is z else 2) * n * d * z.element_size()
    launch(
        gram_tiles_kernel, (row_tiles * column_tiles,), *gradient,
        Operands(gram, hat, gram.shape[1], hat.stride(0)), *descriptors,
        column_sums, counts, centre, n, d, weights, projection,
        meta(row.block_m, row.block_n, row.block_k, precision), ROWS=configurations.PROJECT_ROWS,
        warps=row.warps, stages=row.stages, flops=2.0 * n * n * d,
        moved=read + gradient.output.ptr.nbytes + hat.nbytes + gram.nbytes,
    )  # fmt: skip
    return column_sums


def by_library(
    row: Product,
    gradient: Gradient,
    gram: Tensor,
    precision: str,
    weights: Weights,
    projection: Projection,
    centre: Tensor,
) -> None:
    """The product by torch, some columns at a time, so that it stays in the second-level cache."""
    z = gradient.own.ptr
    n, d = z.shape
    hat = operand(z, gradient.own.statistics_ptr, precision)
    owned = configurations.OWNED_COLUMNS
    width = max(configurations.LIBRARY_CHUNK_BYTES // (4 * n) // owned, 4) * owned
    for first in range(0, d, width):
        columns = min(width, d - first)
        product = library_product(gram[:, :n], hat[:, first : first + columns], precision)
        launch(
            gram_product_kernel, (cdiv(columns, owned),), *gradient, product, centre, n, d,
            product.stride(0), first, weights, projection, ROWS=64, COLUMNS=owned,
            warps=4, moved=product.nbytes + 3 * n * columns * z.element_size(),
        )  # fmt: skip
