"""dL/dz of any number of views, each with a matrix of its own or none.

    G_o = products[o] K_o z_hat_o + L_o
    L_o = sum over links (o, v) of weights * z_hat_v + offsets[o]
    dL/dz_o = rstd_o (G_o - z_hat_o mean_n(G_o * z_hat_o)) grad_scale, or rstd_o G_o grad_scale

Up to a few hundred samples one launch makes all gradients with a matrix: a program owns all rows
of its columns, and adds L_o to its accumulator. Above that, the kernels of `gram_gradients.py` make
the part of each product in float32, and a pass over the views adds L_o: the gradient is rounded
once. Gradients without a matrix need that pass alone. There mean_n(L_o * z_hat_o) comes from the
co-moments of the views.

Which views an output is linked to is a constant to the compiler: each set of links, and each number
of views, compiles kernels of its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import ViewGradients
from ..precision import gram_scale
from . import configurations
from .arithmetic import (
    Gradient,
    Output,
    View,
    Weights,
    halves,
    load_block,
    meta,
    norm_of,
    store_block,
)
from .gram_gradients import (
    Projection,
    by_library,
    centre_part,
    fused_product,
    tiles_of_product,
)
from .launch import addressable, cdiv, device_of, launch
from .table import Product
from .view_moments import view_moments

MOST_VIEWS = 63  # links are bits of an int64
NO_PROJECTION = Projection(0.0, 0.0, 0.0)


class Linear(NamedTuple):
    """What the linear parts are made of, beside the views."""

    statistics_ptr: Any  # (V, 3, D) mean, rstd and shift of each view
    weights_ptr: Any  # (links, D)
    offsets_ptr: Any  # (O, D), or None


class Matrices(NamedTuple):
    """K' of the first outputs."""

    ptr: Any  # (M, N, W) in the operand type
    stride: Any  # W
    centres_ptr: Any  # (M,) float32
    products_ptr: Any  # (M,) float64


class Part(NamedTuple):
    """The part of a product in a gradient, without its factor and, with tiles, without q and c."""

    ptr: Any  # (N, D) float32: rstd K' z_hat / (scale of K') grad_scale
    sums_ptr: Any  # (row tiles, D) float32, of K' z_hat * z_hat
    centres_ptr: Any  # (M,) float32
    products_ptr: Any  # (M,) float64


class Moments(NamedTuple):
    """The moments of all views, from `view_moments`."""

    means_ptr: Any
    comoments_ptr: Any


@triton.jit
def _entry(table, position, dtype):
    """The entry of a constant table for the output at `position`."""
    value = tl.full([], table[0], dtype)
    for other in tl.static_range(1, len(table)):
        value = tl.where(position == other, table[other], value)
    return value


@triton.jit
def _view(views, strides, linear, number, D):
    """One of the views. Selected, not branched, as in `view_of`."""
    ptr, stride = views[0], strides[0]
    for other in tl.static_range(1, len(views)):
        ptr = tl.where(number == other, views[other], ptr)
        stride = tl.where(number == other, strides[other], stride)
    return View(ptr, stride, linear.statistics_ptr + number * 3 * D)


@triton.jit
def _linear_parts(
    blocks, views, strides, linear, position, row, column, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr, MASKS: tl.constexpr, STARTS: tl.constexpr,
):  # fmt: skip
    """L of an output in float32, added to blocks that lie side by side.

    The loop is one when the kernel runs: unrolled, the addresses and the vectors of all views would
    be kept in registers, and do not fit there.
    """
    local = tl.arange(0, COLUMNS)
    if linear.offsets_ptr is not None:
        offsets_ptr = linear.offsets_ptr + _entry(OUTPUTS, position, tl.int32) * D
        summed = ()
        for index in tl.static_range(len(blocks)):
            columns = column + index * COLUMNS + local
            offset = tl.load(offsets_ptr + columns, mask=columns < D, other=0.0)
            summed += (blocks[index] + offset[None, :],)
        blocks = summed
    mask = _entry(MASKS, position, tl.int64)
    link = _entry(STARTS, position, tl.int64)
    for number in range(len(views)):
        if (mask >> number) & 1:
            view = _view(views, strides, linear, number, D)
            summed = ()
            for index in tl.static_range(len(blocks)):
                at = column + index * COLUMNS
                weights_ptr = linear.weights_ptr + link * D + at
                weight = tl.load(weights_ptr + local, mask=at + local < D, other=0.0)
                hat = load_block(view, row, at, N, D, ROWS, COLUMNS)
                summed += (blocks[index] + weight[None, :] * hat,)
            blocks = summed
            link += 1
    return blocks


@triton.jit
def _output(grads, position):
    """The pointer to the gradient at `position`."""
    ptr = grads[0]
    for other in tl.static_range(1, len(grads)):
        ptr = tl.where(position == other, grads[other], ptr)
    return ptr


@triton.jit(do_not_specialize=["N"])
def view_columns_kernel(
    views,
    strides,
    linear,
    scale_ptr,
    matrices,
    grads,
    N,
    D,
    inverse_scale,
    projection,
    META,
    OUTPUTS: tl.constexpr,
    MASKS: tl.constexpr,
    STARTS: tl.constexpr,
):
    """All N <= BLOCK_M rows of BLOCK_N columns of one of the gradients with a matrix.

    views, strides: tuples of pointers and row strides. grads: pointers to the gradients.
    projection: for a product with the factor 1.
    """
    ROWS: tl.constexpr = META.BLOCK_M
    COLUMNS: tl.constexpr = META.BLOCK_N
    HALF: tl.constexpr = COLUMNS // 2
    # Programs that run side by side read the same columns of the views.
    position = tl.program_id(0) % len(OUTPUTS)
    column = tl.program_id(0) // len(OUTPUTS) * COLUMNS
    columns = column + tl.arange(0, COLUMNS)
    rows = tl.arange(0, ROWS)
    number = _entry(OUTPUTS, position, tl.int32)
    own = _view(views, strides, linear, number, D)
    gram_ptr = matrices.ptr + number * N.to(tl.int64) * matrices.stride
    product = fused_product(own, gram_ptr, matrices.stride, rows, columns, N, D, META)
    factor = tl.load(matrices.products_ptr + number).to(tl.float32)
    row = tl.zeros([], tl.int32)
    left_half, right_half = halves((factor * inverse_scale) * product, ROWS, COLUMNS)
    blocks = _linear_parts(
        (left_half, right_half), views, strides, linear, position, row, column, N, D, ROWS, HALF,
        OUTPUTS, MASKS, STARTS,
    )  # fmt: skip
    centre = factor * tl.load(matrices.centres_ptr + number)
    out_ptr = _output(grads, position)
    height = (rows < N)[:, None]
    for half in tl.static_range(2):
        at = column + half * HALF
        columns = at + tl.arange(0, HALF)
        hat = load_block(own, row, at, N, D, ROWS, HALF)
        rstd = tl.load(own.statistics_ptr + D + columns, mask=columns < D, other=0.0)
        q = tl.sum(tl.where(height, blocks[half] * hat, 0.0), axis=0) / N
        taken = projection.projected * q - centre_part(projection, centre, rstd)
        scale = rstd * tl.load(scale_ptr).to(tl.float32)
        g = (blocks[half] - hat * taken[None, :]) * scale[None, :]
        store_block(out_ptr, g, row, at, N, D, ROWS, HALF)


@triton.jit(do_not_specialize=["N"])
def view_means_kernel(
    linear,
    moments,
    means_ptr,
    N,
    D,
    COLUMNS: tl.constexpr,
    TOTAL: tl.constexpr,
    OUTPUTS: tl.constexpr,
    MASKS: tl.constexpr,
    STARTS: tl.constexpr,
):
    """mean_n(L * z_hat) of some columns of one output, float32: a sum over its links of
    weights * mean_n(z_hat_v * z_hat), which the moments of the views have.

    TOTAL: all views.
    """
    position = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    o = _entry(OUTPUTS, position, tl.int32)
    mine = norm_of(linear.statistics_ptr + o * 3 * D, columns, D, False)
    my_mean = tl.load(moments.means_ptr + o * D + columns, mask=inside, other=0.0)
    my_rest = (my_mean - mine.mean) * mine.rstd - mine.shift
    mask = _entry(MASKS, position, tl.int64)
    weights_ptr = linear.weights_ptr + _entry(STARTS, position, tl.int64) * D + columns
    comoments_ptr = moments.comoments_ptr + (o * TOTAL).to(tl.int64) * D + columns
    mean = tl.zeros([COLUMNS], tl.float64)
    for v in range(TOTAL):
        if (mask >> v) & 1:
            theirs = norm_of(linear.statistics_ptr + v * 3 * D, columns, D, False)
            their_mean = tl.load(moments.means_ptr + v * D + columns, mask=inside, other=0.0)
            their_rest = (their_mean - theirs.mean) * theirs.rstd - theirs.shift
            dot = tl.load(comoments_ptr + v * D, mask=inside, other=0.0) / N
            weight = tl.load(weights_ptr, mask=inside, other=0.0)
            mean += weight * (dot * mine.rstd * theirs.rstd + my_rest * their_rest)
            weights_ptr += D
    tl.store(means_ptr + position * D + columns, mean.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["N", "first", "positions", "row_tiles"])
def view_linear_kernel(
    views,
    strides,
    linear,
    scale_ptr,
    part,
    means_ptr,
    grads,
    N,
    D,
    first,
    positions,
    row_tiles,
    inverse_scale,
    projection,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    MASKS: tl.constexpr,
    STARTS: tl.constexpr,
):
    """A block of the gradient at one of `positions` positions from `first` on: L, and the part of
    the product where there is one.

    part: None without a product. It may be the gradient itself. means_ptr: (outputs, D) float32,
    from `view_means_kernel`; None if not projected.
    projection: for a product with the factor 1.
    """
    position = first + tl.program_id(0) % positions
    column = tl.program_id(0) // positions * COLUMNS
    row = tl.program_id(1) * ROWS
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < D
    number = _entry(OUTPUTS, position, tl.int32)
    own = _view(views, strides, linear, number, D)
    norm = norm_of(own.statistics_ptr, columns, D, False)
    scale = norm.rstd * tl.load(scale_ptr).to(tl.float32)

    taken = tl.zeros([COLUMNS], tl.float32)
    if means_ptr is not None:
        taken += tl.load(means_ptr + position * D + columns, mask=inside, other=0.0)
    if part is not None:
        q = tl.zeros([COLUMNS], tl.float32)
        for tile in range(row_tiles):
            q += tl.load(part.sums_ptr + tile * D + columns, mask=inside, other=0.0)
        factor = tl.load(part.products_ptr + number).to(tl.float32)
        taken += (factor * inverse_scale) * projection.projected * (q / N)
        taken -= centre_part(projection, factor * tl.load(part.centres_ptr + number), norm.rstd)
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    blocks = _linear_parts(
        (zero,), views, strides, linear, position, row, column, N, D, ROWS, COLUMNS, OUTPUTS,
        MASKS, STARTS,
    )  # fmt: skip
    hat = load_block(own, row, column, N, D, ROWS, COLUMNS)
    g = (blocks[0] - hat * taken[None, :]) * scale[None, :]
    if part is not None:
        rows = row + tl.arange(0, ROWS)
        valid = (rows < N)[:, None] & inside[None, :]
        at = part.ptr + rows.to(tl.int64)[:, None] * D + columns[None, :]
        g += factor * tl.load(at, mask=valid, other=0.0)
    store_block(_output(grads, position), g, row, column, N, D, ROWS, COLUMNS)


def view_gradients(inputs: ViewGradients) -> tuple[Tensor, ...]:
    """dL/dz of the first O views; the contract's primitive.

    Raises:
        ValueError: more views than a mask has bits.
    """
    inputs = _prepared(inputs)
    z = inputs.views[0]
    grads = tuple(
        torch.empty(z.shape if needed else (0,), dtype=z.dtype, device=z.device)
        for needed in inputs.need
    )
    matrices = 0 if inputs.matrices is None else inputs.matrices[0].shape[0]
    needed = [output for output, wanted in enumerate(inputs.need) if wanted]
    multiplied = tuple(output for output in needed if output < matrices)
    others = tuple(output for output in needed if output >= matrices)
    row = configurations.view_gradients(device_of(z), z.shape[0], z.dtype, inputs.precision)
    if multiplied and row.path == "owned":
        _by_columns(row, inputs, multiplied, grads)
        multiplied = ()
    moments = None
    if inputs.projected and inputs.links and (multiplied or others):
        moments = Moments(*view_moments(inputs.views, inputs.precision))
    means = _means(inputs, multiplied, moments)
    for first, output in enumerate(multiplied):
        product = _product(row, inputs, output, grads[output])
        _finish(inputs, multiplied, grads, means, first, 1, *product)
    if others:
        means = _means(inputs, others, moments)
        _finish(inputs, others, grads, means, 0, len(others))
    return grads


def _prepared(inputs: ViewGradients) -> ViewGradients:
    """The inputs as the kernels take them: vectors contiguous, links in order and without a second
    one of the same views."""
    if len(inputs.views) > MOST_VIEWS:
        raise ValueError(
            f"the triton kernels take up to {MOST_VIEWS} views, got {len(inputs.views)}; "
            "backend='aten' takes any number"
        )
    links, weights = tuple(sorted(set(inputs.links))), inputs.weights
    if links != inputs.links:
        rows = ([row for row, each in enumerate(inputs.links) if each == link] for link in links)
        weights = torch.stack([sum(weights[row] for row in some) for some in rows])
    return inputs._replace(
        views=tuple(map(addressable, inputs.views)),
        statistics=inputs.statistics.contiguous(),
        products=inputs.products.contiguous(),
        links=links,
        weights=weights.contiguous(),
        offsets=None if inputs.offsets is None else inputs.offsets.contiguous(),
    )


def _projection(inputs: ViewGradients) -> Projection:
    """Of a product with the factor 1."""
    return (
        Projection(1.0, float(inputs.eps), 0.0) if inputs.projected else Projection(0.0, 0.0, 1.0)
    )


def _inverse_scale(inputs: ViewGradients) -> float:
    """Of K'."""
    return 1.0 / gram_scale(inputs.views[0].shape[0], inputs.dimensions, inputs.precision)


def _arguments(inputs: ViewGradients) -> tuple[Any, ...]:
    """The first arguments of both kernels."""
    strides = tuple(z.stride(0) for z in inputs.views)
    linear = Linear(inputs.statistics, inputs.weights, inputs.offsets)
    return inputs.views, strides, linear, inputs.grad_scale


@functools.lru_cache(maxsize=256)
def _tables(outputs: tuple[int, ...], links: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Constants of the kernels for some outputs: their numbers, the views that each is linked to as
    bits of a number, and the row of the weights where its links begin."""
    masks = (sum(1 << view for to, view in links if to == output) for output in outputs)
    starts = (sum(to < output for to, _ in links) for output in outputs)
    return {"OUTPUTS": outputs, "MASKS": tuple(masks), "STARTS": tuple(starts)}


def _views_read(outputs: tuple[int, ...], links: tuple[tuple[int, int], ...]) -> int:
    """How many views gradients of these outputs are made of."""
    return len({*outputs, *(view for output, view in links if output in outputs)})


def _by_columns(
    row: Product, inputs: ViewGradients, outputs: tuple[int, ...], grads: tuple[Tensor, ...]
) -> None:
    (n, d), value = inputs.views[0].shape, inputs.views[0].element_size()
    (grams, centres), count = inputs.matrices, len(outputs)
    launch(
        view_columns_kernel, (count * cdiv(d, row.block_n),), *_arguments(inputs),
        Matrices(grams, grams.shape[2], centres, inputs.products),
        tuple(grads[output] for output in outputs), n, d, _inverse_scale(inputs),
        _projection(inputs), meta(row.block_m, row.block_n, row.block_k, inputs.precision),
        **_tables(outputs, inputs.links), warps=row.warps, stages=row.stages,
        flops=2.0 * count * n * n * d,
        moved=(_views_read(outputs, inputs.links) + count) * n * d * value
        + count * grams[0].nbytes,
    )  # fmt: skip


def _means(
    inputs: ViewGradients, outputs: tuple[int, ...], moments: Moments | None
) -> Tensor | None:
    """(outputs, D) float32: mean_n(L * z_hat) of each; None without moments or outputs."""
    if moments is None or not outputs:
        return None
    n, d = inputs.views[0].shape
    means = torch.empty((len(outputs), d), dtype=torch.float32, device=inputs.weights.device)
    columns = configurations.LINEAR.columns
    *_, linear, _ = _arguments(inputs)
    launch(
        view_means_kernel, (cdiv(d, columns), len(outputs)), linear, moments, means, n, d,
        COLUMNS=columns, TOTAL=len(inputs.views), **_tables(outputs, inputs.links), warps=2,
        moved=moments.comoments_ptr.nbytes + inputs.weights.nbytes + means.nbytes,
    )  # fmt: skip
    return means


def _product(
    row: Product, inputs: ViewGradients, output: int, grad: Tensor
) -> tuple[Part, int, Projection]:
    """(the part of an output's product, its row tiles, what is still to be taken out of it), by the
    kernels of `gram_gradients.py`. In place of the gradient where that is float32."""
    z, statistics = inputs.views[output], inputs.statistics[output]
    part = grad if grad.dtype == torch.float32 else torch.empty_like(grad, dtype=torch.float32)
    own = View(z, z.stride(0), statistics)
    # The weights of another view are zero: its terms only need addresses.
    gradient = Gradient(own, own, Output(statistics, inputs.grad_scale, part))
    weights, projection = Weights(_inverse_scale(inputs), 0.0, 0.0), _projection(inputs)
    grams, centres = inputs.matrices
    if row.path == "cublas":
        numbers = (inputs.precision, weights, projection, centres[output])
        by_library(row, gradient, grams[output], *numbers)
        return Part(part, part, centres, inputs.products), 0, NO_PROJECTION
    numbers = (inputs.precision, weights, NO_PROJECTION)
    sums = tiles_of_product(row, gradient, grams[output], *numbers)
    return Part(part, sums, centres, inputs.products), sums.shape[0], projection


def _finish(
    inputs: ViewGradients,
    outputs: tuple[int, ...],
    grads: tuple[Tensor, ...],
    means: Tensor | None,
    first: int,
    positions: int,
    part: Part | None = None,
    row_tiles: int = 0,
    projection: Projection = NO_PROJECTION,
) -> None:
    """The gradients of `positions` of these outputs from the `first` on."""
    (n, d), value = inputs.views[0].shape, inputs.views[0].element_size()
    config = configurations.LINEAR
    read = _views_read(outputs[first : first + positions], inputs.links)
    launch(
        view_linear_kernel, (positions * cdiv(d, config.columns), cdiv(n, config.rows)),
        *_arguments(inputs), part, means, tuple(grads[output] for output in outputs), n, d,
        first, positions, row_tiles, _inverse_scale(inputs), projection,
        ROWS=config.rows, COLUMNS=config.columns, **_tables(outputs, inputs.links),
        warps=config.warps,
        moved=(read + positions) * n * d * value + (4 * n * d if part else 0),
    )  # fmt: skip
