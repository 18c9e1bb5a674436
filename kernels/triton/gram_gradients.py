"""dL/dz of both views from K'_a and K'_b, with the diagonal term and the norm's backward.

    G = coefficient K' z_hat + w z_hat_other                      w = slope C_ii + offset
    dL/dz = rstd (G - z_hat p) grad_scale
    p = coefficient q + w C_ii - coefficient c eps rstd^2         q = mean_n (K' z_hat * z_hat)

(kernels/README.md, equations 4 to 6; mean_n(z_hat_other * z_hat) is C_ii, so that only q needs the
product.) Up to a few hundred samples a program owns all rows of its columns: q is a sum over its
own accumulator, and the gradient is written once by the launch that makes it. Above that, tiles
write the gradient without the part of q, and their column sums; a second pass takes that part out.
Where the norm's backward is not asked for, p = -coefficient c: what centring took out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import Coefficients
from ..precision import gram_scale
from . import configurations
from .arithmetic import (
    cast,
    halves,
    multiply,
    rows_of,
    standardised,
    store_rows,
    stored,
    to_operand,
)
from .gram import library_product
from .launch import cdiv, described, device_of, launch
from .standardise import operand


@triton.jit
def _column_half(
    product,
    z,
    other,
    statistics,
    view,
    grad,
    column,
    n,
    d,
    stride,
    other_stride,
    coefficient,
    centre,
    centring,
    returned,
    slope,
    offset,
    projected,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.zeros([], tl.int32)
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    height = (tl.arange(0, ROWS) < n)[:, None]
    mine, others = statistics + view * 3 * d, statistics + (1 - view) * 3 * d
    own = rows_of(z, mine, row, column, n, d, stride, ROWS, COLUMNS)
    q = tl.sum(tl.where(height, product * own, 0.0), axis=0) / n
    theirs = rows_of(other, others, row, column, n, d, other_stride, ROWS, COLUMNS)
    rstd = tl.load(mine + d + columns, mask=inside, other=0.0)
    diagonal = tl.load(statistics + 6 * d + columns, mask=inside, other=0.0)
    weight = slope * diagonal + offset
    projection = projected * (coefficient * q + weight * diagonal)
    projection -= centre * (centring * rstd * rstd + returned)
    g = coefficient * product + weight[None, :] * theirs - own * projection[None, :]
    store_rows(grad, g * (rstd * scale)[None, :], row, column, n, d, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["n", "first_view"])
def gram_columns_kernel(
    z_a,
    z_b,
    statistics,
    grams,
    centres,
    grad_scale,
    grad_a,
    grad_b,
    n,
    d,
    stride_a,
    stride_b,
    width,
    first_view,
    coefficient,
    centring,
    returned,
    slope,
    offset,
    projected,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All N <= ROWS rows of COLUMNS columns of one view's gradient; its numbers are those of
    `Scalars`."""
    view = first_view + tl.program_id(1)
    column = tl.program_id(0) * COLUMNS
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    rows = tl.arange(0, ROWS)
    # Selected, not branched: a branch would hide the pointers' alignment from the compiler.
    z, other = tl.where(view == 0, z_a, z_b), tl.where(view == 0, z_b, z_a)
    grad = tl.where(view == 0, grad_a, grad_b)
    stride = tl.where(view == 0, stride_a, stride_b)
    other_stride = tl.where(view == 0, stride_b, stride_a)
    # The gradient of one view takes the other view's matrix.
    gram = grams + (1 - view) * n.to(tl.int64) * width
    own = statistics + view * 3 * d + columns
    mean = tl.load(own, mask=inside, other=0.0)
    rstd = tl.load(own + d, mask=inside, other=0.0)
    shift = tl.load(own + 2 * d, mask=inside, other=0.0)

    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    left = tl.minimum(rows, n - 1).to(tl.int64)[:, None] * width
    for k in range(0, n, BLOCK_K):
        depths = k + tl.arange(0, BLOCK_K)
        # K' is padded with zeros, so what z holds beyond row N does not count; it must be finite.
        x = tl.load(gram + left + depths[None, :])
        at = tl.minimum(depths, n - 1).to(tl.int64)[:, None] * stride + columns[None, :]
        y = standardised(tl.load(z + at, mask=inside[None, :], other=0.0), mean, rstd, shift)
        product = multiply(stored(x), to_operand(y, PRECISION), product, PRECISION)

    centre = tl.load(centres + 1 - view)
    scale = tl.load(grad_scale).to(tl.float32)
    left_half, right_half = halves(product, ROWS, COLUMNS)
    for half in tl.static_range(2):
        part = left_half if half == 0 else right_half
        _column_half(
            part, z, other, statistics, view, grad, column + half * (COLUMNS // 2), n, d, stride,
            other_stride, coefficient, centre, centring, returned, slope, offset, projected, scale,
            ROWS, COLUMNS // 2,
        )  # fmt: skip


@triton.jit
def _tile_piece(
    product,
    z,
    other,
    statistics,
    other_statistics,
    diagonal,
    grad,
    sums_of_columns,
    row,
    column,
    n,
    d,
    stride,
    other_stride,
    coefficient,
    slope,
    offset,
    projected,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    height = (row + tl.arange(0, ROWS) < n)[:, None]
    own = rows_of(z, statistics, row, column, n, d, stride, ROWS, COLUMNS)
    q = tl.sum(tl.where(height, product * own, 0.0), axis=0)
    tl.store(sums_of_columns + columns, q, mask=inside)
    theirs = rows_of(other, other_statistics, row, column, n, d, other_stride, ROWS, COLUMNS)
    c = tl.load(diagonal + columns, mask=inside, other=0.0)
    weight = slope * c + offset
    factor = tl.load(statistics + d + columns, mask=inside, other=0.0) * scale
    g = coefficient * product + weight[None, :] * (theirs - own * (projected * c)[None, :])
    store_rows(grad, g * factor[None, :], row, column, n, d, ROWS, COLUMNS)


@triton.jit
def _blocks(
    gram,
    hat,
    left,
    columns,
    k,
    n,
    hat_stride,
    BLOCK_K: tl.constexpr,
):
    """Blocks of K' and of z_hat at depth k; K' is zero where rows of z_hat beyond N are copies."""
    depths = k + tl.arange(0, BLOCK_K)
    x = tl.load(gram + left + depths[None, :])
    at = tl.minimum(depths, n - 1).to(tl.int64)[:, None] * hat_stride + columns[None, :]
    return stored(x), stored(tl.load(hat + at))


@triton.jit
def _tile(
    tile,
    z,
    other,
    hat,
    statistics,
    other_statistics,
    gram,
    grad_scale,
    grad,
    sums_of_columns,
    n,
    d,
    stride,
    other_stride,
    hat_stride,
    width,
    diagonal,
    coefficient,
    slope,
    offset,
    projected,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """One tile of the product and all that follows it."""
    row_tiles = tl.cdiv(n, BLOCK_M)
    row_tile = tile % row_tiles
    row = row_tile * BLOCK_M
    column = (tile // row_tiles) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    left = tl.minimum(rows, n - 1).to(tl.int64)[:, None] * width

    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if BULK:
        for k in range(0, n, BLOCK_K):
            x = stored(gram.load([row, k]))
            y = stored(hat.load([k, column]))
            product = multiply(x, y, product, PRECISION)
    elif CHUNK == 0:
        for k in range(0, n, BLOCK_K):
            x, y = _blocks(gram, hat, left, columns, k, n, hat_stride, BLOCK_K)
            product = multiply(x, y, product, PRECISION)
    else:
        for c in range(0, n, CHUNK):
            chunk = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for k in range(c, tl.minimum(c + CHUNK, n), BLOCK_K):
                x, y = _blocks(gram, hat, left, columns, k, n, hat_stride, BLOCK_K)
                chunk = multiply(x, y, chunk, PRECISION)
            product += chunk

    scale = tl.load(grad_scale).to(tl.float32)
    left_half, right_half = halves(product, BLOCK_M, BLOCK_N)
    sums = sums_of_columns + row_tile * d
    for half in tl.static_range(2):
        piece = left_half if half == 0 else right_half
        at = column + half * (BLOCK_N // 2)
        if BLOCK_N > 128:
            left_quarter, right_quarter = halves(piece, BLOCK_M, BLOCK_N // 2)
            for quarter in tl.static_range(2):
                piece = left_quarter if quarter == 0 else right_quarter
                _tile_piece(
                    piece, z, other, statistics, other_statistics, diagonal, grad, sums, row,
                    at + quarter * (BLOCK_N // 4), n, d, stride, other_stride, coefficient, slope,
                    offset, projected, scale, BLOCK_M, BLOCK_N // 4,
                )  # fmt: skip
        else:
            _tile_piece(
                piece, z, other, statistics, other_statistics, diagonal, grad, sums, row, at, n, d,
                stride, other_stride, coefficient, slope, offset, projected, scale, BLOCK_M,
                BLOCK_N // 2,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def gram_tiles_kernel(
    z,
    other,
    hat,
    statistics,
    other_statistics,
    gram,
    grad_scale,
    grad,
    sums_of_columns,
    n,
    d,
    stride,
    other_stride,
    hat_stride,
    width,
    diagonal,
    coefficient,
    slope,
    offset,
    projected,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """A tile of rstd (coefficient K' z_hat + w (z_hat_other - C_ii z_hat)) grad_scale, in the final
    type, and the tile's column sums of K' z_hat * z_hat.

    hat: z_hat in the operand type, as `operand` lays it out; with BULK, it and K' are descriptors,
    for the bulk copy engine of Hopper and later. sums_of_columns: (row tiles, D) float32. The term
    of C_ii is taken out here, where it is still exact, because it nearly cancels when the views
    agree; where `projected` is 0 there is none. PERSISTENT: programs stay and take one tile after
    the other, so that the loads of the next run beside the end of the last.
    """
    if PERSISTENT:
        tiles = tl.cdiv(n, BLOCK_M) * tl.cdiv(d, BLOCK_N)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _tile(
                tile, z, other, hat, statistics, other_statistics, gram, grad_scale, grad,
                sums_of_columns, n, d, stride, other_stride, hat_stride, width, diagonal,
                coefficient, slope, offset, projected, BLOCK_M, BLOCK_N, BLOCK_K, CHUNK, PRECISION,
                BULK,
            )  # fmt: skip
    else:
        tile = tl.program_id(0)
        _tile(
            tile, z, other, hat, statistics, other_statistics, gram, grad_scale, grad,
            sums_of_columns, n, d, stride, other_stride, hat_stride, width, diagonal,
            coefficient, slope, offset, projected, BLOCK_M, BLOCK_N, BLOCK_K, CHUNK, PRECISION,
            BULK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "row_tiles"])
def gram_project_kernel(
    z,
    statistics,
    centre,
    sums_of_columns,
    grad_scale,
    grad,
    n,
    d,
    stride,
    row_tiles,
    coefficient,
    centring,
    returned,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Takes z_hat (coefficient q - c (centring rstd^2 + returned)) out of what the tiles wrote; the
    coefficient is 0 if not projected."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    inside = columns < d
    valid = (rows < n) & inside[None, :]
    q = tl.zeros([COLUMNS], tl.float32)
    for tile in range(row_tiles):
        q += tl.load(sums_of_columns + tile * d + columns, mask=inside, other=0.0)
    rstd = tl.load(statistics + d + columns, mask=inside, other=0.0)
    projection = coefficient * (q / n) - tl.load(centre) * (centring * rstd * rstd + returned)
    hat = standardised(
        tl.load(z + rows * stride + columns[None, :], mask=valid, other=0.0),
        tl.load(statistics + columns, mask=inside, other=0.0),
        rstd,
        tl.load(statistics + 2 * d + columns, mask=inside, other=0.0),
    )
    at = grad + rows * d + columns[None, :]
    factor = rstd * tl.load(grad_scale).to(tl.float32)
    g = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    g -= hat * (projection * factor)[None, :]
    tl.store(at, cast(g, grad.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["n", "first"])
def gram_product_kernel(
    product,
    z,
    other,
    statistics,
    other_statistics,
    diagonal,
    centre,
    grad_scale,
    grad,
    n,
    d,
    stride,
    other_stride,
    product_stride,
    first,
    coefficient,
    centring,
    returned,
    slope,
    offset,
    projected,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of COLUMNS columns from a finished K' z_hat: one pass for q, one that writes.

    product: (N, width) float32, the columns of K' z_hat from `first` on, short enough to stay in
    the second-level cache between both passes.
    """
    local = tl.program_id(0) * COLUMNS
    column = first + local
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    within = (local + tl.arange(0, COLUMNS))[None, :]
    q = tl.zeros([COLUMNS], tl.float32)
    for row in range(0, n, ROWS):
        rows = row + tl.arange(0, ROWS)
        valid = (rows < n)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * product_stride + within
        p = tl.load(product + at, mask=valid, other=0.0)
        at = tl.minimum(rows, n - 1).to(tl.int64)[:, None] * stride + columns[None, :]
        own = standardised(
            tl.load(z + at, mask=inside[None, :], other=0.0),
            tl.load(statistics + columns, mask=inside, other=0.0),
            tl.load(statistics + d + columns, mask=inside, other=0.0),
            tl.load(statistics + 2 * d + columns, mask=inside, other=0.0),
        )
        q += tl.sum(p * own, axis=0)
    c = tl.load(diagonal + columns, mask=inside, other=0.0)
    rstd = tl.load(statistics + d + columns, mask=inside, other=0.0)
    weight = slope * c + offset
    projection = projected * (coefficient * (q / n) + weight * c)
    projection -= tl.load(centre) * (centring * rstd * rstd + returned)
    factor = rstd * tl.load(grad_scale).to(tl.float32)
    for row in range(0, n, ROWS):
        rows = row + tl.arange(0, ROWS)
        valid = (rows < n)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * product_stride + within
        p = tl.load(product + at, mask=valid, other=0.0)
        at = tl.minimum(rows, n - 1).to(tl.int64)[:, None]
        own = standardised(
            tl.load(z + at * stride + columns[None, :], mask=inside[None, :], other=0.0),
            tl.load(statistics + columns, mask=inside, other=0.0),
            rstd,
            tl.load(statistics + 2 * d + columns, mask=inside, other=0.0),
        )
        theirs = standardised(
            tl.load(other + at * other_stride + columns[None, :], mask=inside[None, :], other=0.0),
            tl.load(other_statistics + columns, mask=inside, other=0.0),
            tl.load(other_statistics + d + columns, mask=inside, other=0.0),
            tl.load(other_statistics + 2 * d + columns, mask=inside, other=0.0),
        )
        g = coefficient * p + weight[None, :] * theirs - own * projection[None, :]
        g = cast(g * factor[None, :], grad.dtype.element_ty)
        tl.store(grad + rows.to(tl.int64)[:, None] * d + columns[None, :], g, mask=valid)


def gram_gradients(
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    grams: Tensor,
    centres: Tensor,
    grad_scale: Tensor,
    coefficients: Coefficients,
    precision: str,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """dL/dz_a, dL/dz_b; the contract's primitive."""
    n, d = z_a.shape
    config = configurations.gram_gradients(device_of(z_a), n, d, z_a.dtype, precision)
    grads = tuple(
        torch.empty((n, d) if needed else (0,), dtype=z_a.dtype, device=z_a.device)
        for needed in need
    )
    scalars = _scalars(coefficients, gram_scale(n, coefficients.dimensions or d, precision))
    if config.path != "owned":
        by_path = _by_library if config.path == "cublas" else _by_tiles
        for view in range(2):
            if need[view]:
                side = _side(view, (z_a, z_b), statistics, grams, centres, grads[view])
                by_path(config, side, statistics[6], grad_scale, scalars, precision)
    elif any(need):
        # An empty tensor has no address to speak of; the kernel does not touch it.
        outputs = (g if g.numel() else grads[1 - i] for i, g in enumerate(grads))
        views = sum(need)
        launch(
            gram_columns_kernel,
            (cdiv(d, config.block_n), views),
            z_a,
            z_b,
            statistics,
            grams,
            centres,
            grad_scale,
            *outputs,
            n,
            d,
            z_a.stride(0),
            z_b.stride(0),
            grams.shape[2],
            0 if need[0] else 1,
            *scalars,
            ROWS=config.block_m,
            COLUMNS=config.block_n,
            BLOCK_K=config.block_k,
            PRECISION=precision,
            warps=config.warps,
            stages=config.stages,
            flops=2.0 * views * n * n * d,
            moved=(2 + views) * n * d * z_a.element_size() + views * grams[0].nbytes,
        )
    return grads


class Scalars(NamedTuple):
    """`Coefficients` as the kernels take them. Floats, so that no value of them compiles another
    kernel."""

    coefficient: float  # the product's, divided by the scale that K' is stored with
    centring: float  # the product's times eps, or 0 if not projected
    returned: float  # 0, or if not projected the product's
    slope: float
    offset: float
    projected: float  # 1 or 0


def _scalars(given: Coefficients, scale: float) -> Scalars:
    return Scalars(
        given.product / scale,
        given.product * given.eps if given.projected else 0.0,
        0.0 if given.projected else given.product,
        given.slope,
        given.offset,
        float(given.projected),
    )


class Side(NamedTuple):
    """What the gradient of one view takes, and where it goes."""

    z: Tensor
    other: Tensor
    own: Tensor  # the three rows of its statistics
    theirs: Tensor
    gram: Tensor  # the other view's matrix
    centre: Tensor
    grad: Tensor


def _side(
    view: int,
    z: tuple[Tensor, Tensor],
    statistics: Tensor,
    grams: Tensor,
    centres: Tensor,
    grad: Tensor,
) -> Side:
    own, theirs = (statistics[3 * v : 3 * v + 3] for v in (view, 1 - view))
    return Side(z[view], z[1 - view], own, theirs, grams[1 - view], centres[1 - view], grad)


def _by_tiles(
    config: configurations.GramGradients,
    side: Side,
    diagonal: Tensor,
    grad_scale: Tensor,
    scalars: Scalars,
    precision: str,
) -> None:
    """Tiles of the product with all but q and c, then these."""
    n, d = side.z.shape
    hat = operand(side.z, side.own, precision)
    row_tiles = cdiv(n, config.block_m)
    sums_of_columns = torch.empty((row_tiles, d), dtype=torch.float32, device=hat.device)
    values = n * d * side.z.element_size()
    bulk = config.path in ("bulk", "persistent")
    tiles = row_tiles * cdiv(d, config.block_n)
    persistent = config.path == "persistent"
    launch(
        gram_tiles_kernel,
        (min(tiles, device_of(hat).processors) if persistent else tiles,),
        side.z,
        side.other,
        described(hat, config.block_k, config.block_n) if bulk else hat,
        side.own,
        side.theirs,
        described(side.gram, config.block_m, config.block_k) if bulk else side.gram,
        grad_scale,
        side.grad,
        sums_of_columns,
        n,
        d,
        side.z.stride(0),
        side.other.stride(0),
        hat.stride(0),
        side.gram.shape[1],
        diagonal,
        scalars.coefficient,
        scalars.slope,
        scalars.offset,
        scalars.projected,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        CHUNK=config.chunk,
        PRECISION=precision,
        BULK=bulk,
        PERSISTENT=persistent,
        warps=config.warps,
        stages=config.stages,
        flops=2.0 * n * n * d,
        moved=3 * values + hat.nbytes + side.gram.nbytes,
    )
    project = configurations.PROJECT
    launch(
        gram_project_kernel,
        (cdiv(d, project.columns), cdiv(n, project.rows)),
        side.z,
        side.own,
        side.centre,
        sums_of_columns,
        grad_scale,
        side.grad,
        n,
        d,
        side.z.stride(0),
        row_tiles,
        scalars.coefficient * scalars.projected,
        scalars.centring,
        scalars.returned,
        ROWS=project.rows,
        COLUMNS=project.columns,
        warps=project.warps,
        moved=3 * values,
    )


def _by_library(
    config: configurations.GramGradients,
    side: Side,
    diagonal: Tensor,
    grad_scale: Tensor,
    scalars: Scalars,
    precision: str,
) -> None:
    """The product by torch, some columns at a time, so that it stays in the second-level cache."""
    n, d = side.z.shape
    hat = operand(side.z, side.own, precision)
    owned = configurations.OWNED_COLUMNS
    width = max(configurations.LIBRARY_CHUNK_BYTES // (4 * n) // owned, 4) * owned
    for first in range(0, d, width):
        columns = min(width, d - first)
        product = library_product(side.gram[:, :n], hat[:, first : first + columns], precision)
        launch(
            gram_product_kernel,
            (cdiv(columns, owned),),
            product,
            side.z,
            side.other,
            side.own,
            side.theirs,
            diagonal,
            side.centre,
            grad_scale,
            side.grad,
            n,
            d,
            side.z.stride(0),
            side.other.stride(0),
            product.stride(0),
            first,
            *scalars,
            ROWS=64,
            COLUMNS=owned,
            warps=4,
            moved=product.nbytes + 3 * n * columns * side.z.element_size(),
        )
