"""dL/dz of both views from K'_a and K'_b, with the diagonal term and the norm's backward.

    G = coefficient K' z_hat + w z_hat_other                      w = slope C_ii + offset
    dL/dz = rstd (G - z_hat p) grad_scale
    p = coefficient q + w C_ii - coefficient c eps rstd^2         q = mean_n (K' z_hat * z_hat)

(kernels/README.md, equations 4 to 6; mean_n(z_hat_other * z_hat) is C_ii, so that only q needs the
product.) Up to a few hundred samples a program owns all rows of its columns: q is a sum over its
own accumulator, and one launch writes the gradient once. Above that, tiles write the gradient
without the part of q, and their column sums; the last program of a stripe of columns takes that
part out. Without the norm's backward, p = -coefficient c, which centring took out.

Half-precision embeddings enter the product of tiles as they are, both views in one launch:

    K' z_hat = (K' z) * rstd - (K' 1) (mean * rstd + shift)^T

with the sums K' 1 of the rows of K' as it was rounded, so that no rounding is added to those of K'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import GradientInputs
from ..precision import OPERAND_DTYPE, gram_scale
from . import configurations
from .arithmetic import (
    Gradient,
    Output,
    Pair,
    View,
    Weights,
    cast,
    halves,
    last_to_arrive,
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
from .gram import library_product
from .launch import (
    addressable,
    cdiv,
    device_of,
    launch,
    readable_by_tma,
    tma_descriptor,
    tma_descriptor_of_both,
)
from .standardise import operand, set_to_zero, transposed_operand
from .table import Product


class Projection(NamedTuple):
    """The floats of p. Like `Weights`, floats, so that no value of them compiles another kernel."""

    projected: Any  # 1 or 0
    centring: Any  # the product's factor times eps, or 0 if not projected
    returned: Any  # 0, or if not projected the product's factor


@triton.jit
def centre_part(projection, centre, rstd):
    """What p lacks of the part that centring took out of K."""
    return centre * (projection.centring * rstd * rstd + projection.returned)


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
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < D
    rows = tl.arange(0, ROWS)
    own = view_of(pair, index, D)
    gradient = Gradient(
        own,
        view_of(pair, 1 - index, D),
        Output(pair.statistics_ptr + 6 * D, scale_ptr, tl.where(index == 0, grads[0], grads[1])),
    )
    # The gradient of one view takes the other view's matrix.
    gram_ptr = grams_ptr + (1 - index) * N.to(tl.int64) * stride_gram
    norm = norm_of(own.statistics_ptr, columns, D, False)

    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * stride_gram
    for first in range(0, N, META.BLOCK_K):
        k = first + tl.arange(0, META.BLOCK_K)
        # K' is padded with zeros, so that rows of z beyond N do not count; they must be finite.
        x = tl.load(gram_ptr + left + k[None, :])
        at = tl.minimum(k, N - 1).to(tl.int64)[:, None] * own.stride + columns[None, :]
        y = standardised(tl.load(own.ptr + at, mask=inside[None, :], other=0.0), norm)
        product = multiply(stored(x), to_operand(y, META.PRECISION), product, META.PRECISION)

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


class Hat(NamedTuple):
    """z_hat in the operand type, as `operand` stores it; None where the embeddings are operands."""

    ptr: Any
    stride: Any


class Sums(NamedTuple):
    """What the tiles of a stripe of columns are finished with."""

    row_sums_ptr: Any  # (views, N) float32, K' 1; None where z_hat is stored
    column_sums_ptr: Any  # (views, row tiles, D) float32, of K' z_hat * z_hat
    arrived_ptr: Any  # (views, column tiles) int32, the tiles that are stored; None without p
    centres_ptr: Any  # (2,)


@triton.jit(do_not_specialize=["N", "arrived_count"])
def gram_sums_kernel(
    grams_ptr,
    sums,
    N,
    stride_gram,
    arrived_count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """K' 1 of ROWS rows of one matrix, float32. Sets `sums.arrived_ptr` to zero."""
    if sums.arrived_ptr is not None:  # noqa: SIM102 (decided when compiled, unlike the next)
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            set_to_zero(sums.arrived_ptr, arrived_count)
    index = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = grams_ptr + (index * N + tl.minimum(rows, N - 1))[:, None] * stride_gram
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, stride_gram, COLUMNS):  # columns beyond N are zero
        columns = first + tl.arange(0, COLUMNS)[None, :]
        value += tl.load(at + columns, mask=columns < stride_gram, other=0.0).to(tl.float32)
    tl.store(sums.row_sums_ptr + index * N + rows, tl.sum(value, axis=1), mask=rows < N)


@triton.jit
def _tma_product(gram_descriptor, descriptor, gram_row, view, column, N, META):
    """A tile of K' z_hat, or of K' z of the view at a position of the descriptor of both."""
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    for k in range(0, N, META.BLOCK_K):
        x = stored(gram_descriptor.load([gram_row, k]))
        if len(descriptor.block_shape) == 3:
            y = tl.reshape(descriptor.load([view, k, column]), [META.BLOCK_K, META.BLOCK_N])
        elif META.PRECISION == "tf32":
            y = tl.trans(descriptor.load([column, k]))
        else:
            y = descriptor.load([k, column])
        product = multiply(x, stored(y), product, META.PRECISION)
    return product


@triton.jit
def _loaded_product(
    gram_ptr, stride_gram, ptr, stride, row, column, N, D, META, EVEN: tl.constexpr
):
    """The same by ordinary loads; K' is zero where rows of the other operand beyond N are
    copies. EVEN: no mask is needed."""
    rows = row + tl.arange(0, META.BLOCK_M)
    columns = column + tl.arange(0, META.BLOCK_N)
    left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * stride_gram
    product = tl.zeros([META.BLOCK_M, META.BLOCK_N], tl.float32)
    for first in range(0, N, META.BLOCK_K):
        k = first + tl.arange(0, META.BLOCK_K)
        x = tl.load(gram_ptr + left + k[None, :])
        at = ptr + tl.minimum(k, N - 1).to(tl.int64)[:, None] * stride + columns[None, :]
        y = tl.load(at) if EVEN else tl.load(at, mask=(columns < D)[None, :], other=0.0)
        product = multiply(stored(x), stored(y), product, META.PRECISION)
    return product


@triton.jit
def _tile_piece(
    product, gradient, weights, projected, row_sums_ptr, sums_ptr, row, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = column + tl.arange(0, COLUMNS)
    rows = row + tl.arange(0, ROWS)
    if row_sums_ptr is not None:
        norm = norm_of(gradient.own.statistics_ptr, columns, D, False)
        row_sums = tl.load(row_sums_ptr + rows, mask=rows < N, other=0.0)
        product *= norm.rstd[None, :]
        product -= row_sums[:, None] * (norm.mean * norm.rstd + norm.shift)[None, :]
    own = load_block(gradient.own, row, column, N, D, ROWS, COLUMNS)
    q = tl.sum(tl.where((rows < N)[:, None], product * own, 0.0), axis=0)
    tl.store(sums_ptr + columns, q, mask=columns < D)
    store_gradient(
        gradient, weights, projected, product, own, None, row, column, N, D, ROWS, COLUMNS
    )


@triton.jit
def _tile_pieces(
    product, gradient, weights, projected, row_sums_ptr, sums_ptr, row, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Finishes a tile in pieces of PIECE columns, which fit into registers beside the rest."""
    if COLUMNS > PIECE:
        left, right = halves(product, ROWS, COLUMNS)
        _tile_pieces(
            left, gradient, weights, projected, row_sums_ptr, sums_ptr, row, column, N, D, ROWS,
            COLUMNS // 2, PIECE,
        )  # fmt: skip
        _tile_pieces(
            right, gradient, weights, projected, row_sums_ptr, sums_ptr, row,
            column + COLUMNS // 2, N, D, ROWS, COLUMNS // 2, PIECE,
        )  # fmt: skip
    else:
        _tile_piece(
            product, gradient, weights, projected, row_sums_ptr, sums_ptr, row, column, N, D, ROWS,
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


@triton.jit(do_not_specialize=["N", "swapped", "first_matrix"])
def gram_tiles_kernel(
    own,
    other,
    output,
    other_output_ptr,
    gram_ptr,
    stride_gram,
    hat,
    gram_descriptor,
    descriptor,
    sums,
    N,
    D,
    swapped,
    first_matrix,
    weights,
    projection,
    META,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile of rstd (coefficient K' z_hat + w (z_hat_other - C_ii z_hat)) grad_scale, in the final
    type, and the tile's column sums of K' z_hat * z_hat; the last tile of a stripe of columns
    projects it, ROWS rows at a time.

    other_output_ptr: the gradient of the other view, made by the programs with 1 on the second axis
    of the grid; None for one gradient. gram_ptr: the matrices of one view or both; the gradient of
    a view takes the other view's. first_matrix: the view of the first one. gram_descriptor,
    descriptor: the operands are read with TMA (Hopper and later) unless these are None; `swapped`:
    of `tma_descriptor_of_both`. EVEN: see `_loaded_product`. Where `projection.projected` is 0
    there is no term of C_ii.
    """
    BLOCK_M: tl.constexpr = META.BLOCK_M
    BLOCK_N: tl.constexpr = META.BLOCK_N
    tile = tl.program_id(0)
    index = tl.program_id(1)
    row_tiles = tl.cdiv(N, BLOCK_M)
    row_tile = tile % row_tiles
    row = row_tile * BLOCK_M
    column = (tile // row_tiles) * BLOCK_N
    matrix = tl.num_programs(1) - 1 - index
    mine, theirs, ptr = own, other, output.ptr
    if other_output_ptr is not None:
        first = index == 0
        mine, theirs = _selected(first, own, other), _selected(first, other, own)
        ptr = tl.where(first, ptr, other_output_ptr)
    gradient = Gradient(mine, theirs, Output(output.diagonal_ptr, output.scale_ptr, ptr))

    if gram_descriptor is not None:
        gram_row = matrix * N + row
        position = index ^ swapped
        product = _tma_product(gram_descriptor, descriptor, gram_row, position, column, N, META)
    else:
        hat_ptr, stride = mine.ptr, mine.stride
        if hat.ptr is not None:
            hat_ptr, stride = hat.ptr, hat.stride
        gram_ptr += matrix * N.to(tl.int64) * stride_gram
        product = _loaded_product(
            gram_ptr, stride_gram, hat_ptr, stride, row, column, N, D, META, EVEN
        )

    row_sums_ptr = None
    if sums.row_sums_ptr is not None:
        row_sums_ptr = sums.row_sums_ptr + matrix * N
    sums_ptr = sums.column_sums_ptr + (index * row_tiles).to(tl.int64) * D
    _tile_pieces(
        product, gradient, weights, projection.projected, row_sums_ptr, sums_ptr + row_tile * D,
        row, column, N, D, BLOCK_M, BLOCK_N, min(BLOCK_N // 2, 32),
    )  # fmt: skip
    if sums.arrived_ptr is not None:
        stripe = index * tl.cdiv(D, BLOCK_N) + tile // row_tiles
        if last_to_arrive(sums.arrived_ptr + stripe, row_tiles):
            _project(
                mine, gradient.output, sums.centres_ptr + first_matrix + matrix, sums_ptr,
                row_tiles, column, N, D, weights, projection, ROWS, BLOCK_N,
            )  # fmt: skip


@triton.jit
def _selected(first, one, other):
    """One of two views, as in `view_of`."""
    return View(
        tl.where(first, one.ptr, other.ptr),
        tl.where(first, one.stride, other.stride),
        tl.where(first, one.statistics_ptr, other.statistics_ptr),
    )


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
    row = configurations.gram_gradients(device_of(z), n, z.dtype, precision)
    grads = tuple(
        torch.empty((n, d) if needed else (0,), dtype=z.dtype, device=z.device)
        for needed in inputs.need
    )
    numbers = _numbers(inputs, gram_scale(n, inputs.coefficients.dimensions or d, precision))
    if row.path == "owned":
        if any(inputs.need):
            _by_columns(row, inputs, grads, *numbers)
        return grads
    gradients = [_gradient(inputs, view, grad) for view, grad in enumerate(grads)]
    grams, centres = inputs.matrices
    if row.path != "cublas" and all(inputs.need) and raw_operands(row, gradients[0], precision):
        both = grams.flatten(0, 1)
        tiles_of_product(row, gradients[0], both, precision, *numbers, centres, 0, grads[1])
        return grads
    for view in range(2):
        if inputs.need[view]:
            by_path = by_library if row.path == "cublas" else tiles_of_product
            by_path(row, gradients[view], grams[1 - view], precision, *numbers, centres, 1 - view)
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


def _by_columns(
    row: Product,
    inputs: GradientInputs,
    grads: tuple[Tensor, Tensor],
    weights: Weights,
    projection: Projection,
) -> None:
    z_a, z_b, (grams, centres), views = inputs.z_a, inputs.z_b, inputs.matrices, sum(inputs.need)
    n, d = z_a.shape
    # An empty tensor has no address; the kernel does not access it.
    outputs = tuple(g if g.numel() else grads[1 - view] for view, g in enumerate(grads))
    launch(
        gram_columns_kernel, (cdiv(d, row.block_n), views),
        Pair(z_a, z_b, z_a.stride(0), z_b.stride(0), inputs.statistics), grams, centres,
        inputs.grad_scale, outputs, n, d, grams.shape[2], 0 if inputs.need[0] else 1, weights,
        projection, meta(row.block_m, row.block_n, row.block_k, inputs.precision),
        warps=row.warps, stages=row.stages, flops=2.0 * views * n * n * d,
        moved=(2 + views) * n * d * z_a.element_size() + views * grams[0].nbytes,
    )  # fmt: skip


def raw_operands(row: Product, gradient: Gradient, precision: str) -> bool:
    """Whether the embeddings of both views can be operands of a product as they are."""
    views = gradient.own.ptr, gradient.other.ptr
    if not configurations.RAW_OPERANDS:
        return False
    half = OPERAND_DTYPE[precision].itemsize == 2 and views[0].dtype == OPERAND_DTYPE[precision]
    return half and (row.path != "tma" or readable_by_tma(*views))


def tiles_of_product(
    row: Product,
    gradient: Gradient,
    gram: Tensor,
    precision: str,
    weights: Weights,
    projection: Projection,
    centres: Tensor | None = None,
    first_matrix: int = 0,
    other_grad: Tensor | None = None,
) -> Tensor:
    """Stores the gradient; without `centres` less what p takes out of it. Returns the (views, row
    tiles, D) float32 column sums of K' z_hat * z_hat.

    gram: (views * N, W), from the matrix of view `first_matrix` on. other_grad: also stores the
    gradient of the other view, where operands are `raw_operands`; then `gram` holds both matrices.
    """
    z, device = gradient.own.ptr, gradient.own.ptr.device
    n, d = z.shape
    views = 1 if other_grad is None else 2
    row_tiles, column_tiles = cdiv(n, row.block_m), cdiv(d, row.block_n)
    tma, raw = row.path == "tma", raw_operands(row, gradient, precision)
    column_sums = torch.empty((views, row_tiles, d), dtype=torch.float32, device=device)
    arrived = None
    if centres is not None:
        arrived = torch.empty(views * column_tiles, dtype=torch.int32, device=device)
    if raw:
        row_sums = torch.empty((views, n), dtype=torch.float32, device=device)
        sums = Sums(row_sums, column_sums, arrived, centres)
        hat, block = None, (row.block_k, row.block_n)
        config = configurations.ROW_SUMS
        launch(
            gram_sums_kernel, (cdiv(n, config.rows), views), gram, sums, n, gram.shape[1],
            views * column_tiles, ROWS=config.rows, COLUMNS=config.columns, warps=config.warps,
            moved=gram.nbytes,
        )  # fmt: skip
    else:
        make, block = operand, (row.block_k, row.block_n)
        if tma and precision == "tf32":  # wgmma takes 32-bit operands along the summed index only
            make, block = transposed_operand, block[::-1]
        hat = make(z, gradient.own.statistics_ptr, precision, arrived)
        sums = Sums(None, column_sums, arrived, centres)
    descriptors, swapped = (None, None), 0
    if tma:
        if views == 2:
            descriptor, swapped = tma_descriptor_of_both(z, gradient.other.ptr, *block)
        else:
            descriptor = tma_descriptor(z if raw else hat, *block)
        descriptors = (tma_descriptor(gram, row.block_m, row.block_k), descriptor)
    read = (1 if centres is None else 2) * n * d * z.element_size()
    launch(
        gram_tiles_kernel, (row_tiles * column_tiles, views), *gradient, other_grad,
        gram, gram.shape[1], Hat(hat, 0 if raw else hat.stride(0)), *descriptors, sums, n, d,
        swapped, first_matrix, weights, projection,
        meta(row.block_m, row.block_n, row.block_k, precision),
        EVEN=not raw or d % row.block_n == 0, ROWS=configurations.PROJECT_ROWS,
        warps=row.warps, stages=row.stages, flops=2.0 * views * n * n * d,
        moved=read + views * gradient.output.ptr.nbytes + (0 if raw else hat.nbytes) + gram.nbytes,
    )  # fmt: skip
    return column_sums


def by_library(
    row: Product,
    gradient: Gradient,
    gram: Tensor,
    precision: str,
    weights: Weights,
    projection: Projection,
    centres: Tensor,
    matrix: int,
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
            gram_product_kernel, (cdiv(columns, owned),), *gradient, product, centres[matrix], n, d,
            product.stride(0), first, weights, projection, ROWS=64, COLUMNS=owned,
            warps=4, moved=product.nbytes + 3 * n * columns * z.element_size(),
        )  # fmt: skip
