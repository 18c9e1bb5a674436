"""Device functions and argument bundles of several kernels: operand types, products, z_hat.

Kernels take what belongs together as NamedTuples. Their fields are specialised like arguments, but
`do_not_specialize` does not reach them: integers that vary from call to call stay arguments of
their own. Meta-parameters are fields of type tl.constexpr, because Triton 3.6 does not accept a
NamedTuple for a tl.constexpr argument.

Accumulation is float32 always. The operand type of a product is a constexpr string, the `precision`
of the contract:

    fp32    three TF32 products of split operands (float32 quality on tensor cores)
    tf32    one TF32 product
    bf16, fp16

Triton's interpreter multiplies bfloat16 operands wrongly and truncates where a device rounds to
nearest, so there values are rounded by `cast` itself and multiplied in float32: the same numbers.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on"))


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """x rounded to the nearest value of DTYPE."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        nearest = (bits & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(DTYPE)


@triton.jit
def to_operand(x, PRECISION: tl.constexpr):
    """x in the operand type of a product."""
    if PRECISION == "bf16":
        y = cast(x, tl.bfloat16)
    elif PRECISION == "fp16":
        y = cast(x, tl.float16)
    elif PRECISION == "tf32":
        y = to_tf32(x.to(tl.float32))
    else:
        y = x.to(tl.float32)
    if INTERPRETED:
        y = y.to(tl.float32)
    return y


@triton.jit
def to_tf32(x):
    """float32 x rounded to the nearest number that a TF32 operand can be.

    Tensor cores drop the low bits instead, which makes every product of positive numbers too small:
    a bias that sums of squares keep.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def stored(x):
    """A block of a stored operand, which was rounded when it was stored."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def multiply(x, y, accumulator, PRECISION: tl.constexpr):
    """accumulator + x y, accumulated in float32.

    Accumulators of tensor cores truncate. Of float32 quality, Triton starts each three products
    from zero and adds them to the accumulator in the ordinary, rounding units.
    """
    if PRECISION == "fp32":
        accumulator = tl.dot(x, y, accumulator, input_precision="tf32x3")
    else:
        accumulator = tl.dot(x, y, accumulator, input_precision="tf32")
    return accumulator


class Meta(NamedTuple):
    """Meta-parameters of a matrix product, all of type tl.constexpr."""

    BLOCK_M: Any
    BLOCK_N: Any
    BLOCK_K: Any
    PRECISION: Any


@functools.cache
def meta(block_m: int, block_n: int, block_k: int, precision: str) -> Meta:
    """The meta-parameters of a product for these blocks and this operand type."""
    return Meta(*map(tl.constexpr, (block_m, block_n, block_k, precision)))


class View(NamedTuple):
    """One view: (N, D) embeddings, and the (3, D) mean, rstd and shift of its columns."""

    ptr: Any
    stride: Any
    statistics_ptr: Any


class Pair(NamedTuple):
    """Both views, and the (7, D) statistics."""

    ptr_a: Any
    ptr_b: Any
    stride_a: Any
    stride_b: Any
    statistics_ptr: Any


class Norm(NamedTuple):
    """Statistics of some columns, in registers."""

    mean: Any
    rstd: Any
    shift: Any


@triton.jit
def view_of(pair, index, D):
    """One view of a pair. Selected, not branched: a branch would hide the pointers' alignment from
    the compiler."""
    first = index == 0
    return View(
        tl.where(first, pair.ptr_a, pair.ptr_b),
        tl.where(first, pair.stride_a, pair.stride_b),
        pair.statistics_ptr + index * 3 * D,
    )


@triton.jit
def norm_of(statistics_ptr, columns, D, EVEN: tl.constexpr):
    """The statistics of `columns`: zero beyond the last one, unless EVEN promises that there is
    none."""
    if EVEN:
        norm = Norm(
            tl.load(statistics_ptr + columns),
            tl.load(statistics_ptr + D + columns),
            tl.load(statistics_ptr + 2 * D + columns),
        )
    else:
        inside = columns < D
        norm = Norm(
            tl.load(statistics_ptr + columns, mask=inside, other=0.0),
            tl.load(statistics_ptr + D + columns, mask=inside, other=0.0),
            tl.load(statistics_ptr + 2 * D + columns, mask=inside, other=0.0),
        )
    return norm


@triton.jit
def standardised(z, norm):
    """z_hat of a block (rows, columns) in float32."""
    return (z.to(tl.float32) - norm.mean[None, :]) * norm.rstd[None, :] - norm.shift[None, :]


@triton.jit
def load_columns(view, offsets, columns, D, EVEN: tl.constexpr):
    """z_hat in float32 of a block whose rows begin `offsets` (rows, 1) elements after the first.

    Beyond column D it is zero.
    """
    if EVEN:
        x = tl.load(view.ptr + offsets + columns[None, :])
    else:
        x = tl.load(view.ptr + offsets + columns[None, :], mask=(columns < D)[None, :], other=0.0)
    return standardised(x, norm_of(view.statistics_ptr, columns, D, EVEN))


@triton.jit
def load_block(view, row, column, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """z_hat of the block (ROWS, COLUMNS) at (row, column) in float32.

    Values outside of N x D are finite and unspecified.

    Offsets within a block are 32-bit: 64-bit ones for each element would take registers that the
    accumulator needs.
    """
    columns = tl.arange(0, COLUMNS)
    rows = tl.minimum(tl.arange(0, ROWS), N - 1 - row)
    base = view.ptr + row.to(tl.int64) * view.stride + column
    offsets = rows[:, None] * view.stride + columns[None, :]
    inside = column + columns < D
    x = tl.load(base + offsets, mask=inside[None, :], other=0.0)
    at = view.statistics_ptr + column
    norm = Norm(
        tl.load(at + columns, mask=inside, other=0.0),
        tl.load(at + D + columns, mask=inside, other=0.0),
        tl.load(at + 2 * D + columns, mask=inside, other=0.0),
    )
    return standardised(x, norm)


@triton.jit
def store_block(out_ptr, value, row, column, N, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores a block of the contiguous (N, D) matrix at `out_ptr`, rounded to its type."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    valid = (row + rows < N)[:, None] & (column + columns < D)[None, :]
    base = out_ptr + row.to(tl.int64) * D + column
    value = cast(value, out_ptr.dtype.element_ty)
    tl.store(base + (rows[:, None] * D + columns[None, :]), value, mask=valid)


class Weights(NamedTuple):
    """Floats of `Coefficients`: G = product * (matrix product) + (slope * C_ii + offset) * z_hat of
    the other view."""

    product: Any
    slope: Any
    offset: Any


class Output(NamedTuple):
    """Where the gradient of one view is stored, and what all of its elements need."""

    diagonal_ptr: Any  # C_ii, (D,)
    scale_ptr: Any  # grad_scale
    ptr: Any


class Gradient(NamedTuple):
    """The gradient of one view. Kernels take its fields as arguments of their own: Triton 3.6 loses
    a constant, such as a stride of 1, in a tuple within a tuple."""

    own: View
    other: View
    output: Output


@triton.jit
def store_gradient(
    gradient,
    weights,
    projected,
    product,
    own,
    rest,
    row,
    column,
    N,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Stores a block of dL/dz, rstd (G - z_hat (projected w C_ii + rest)) grad_scale.

    `own` is the block's z_hat. Without `rest` (None) the term of C_ii is taken out of z_hat of the
    other view, where it is still exact, because it nearly cancels when the views agree.
    """
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < D
    # This order of the loads spills in no aligned kernel under Triton 3.6, 3.8 and 3.9.
    diagonal = tl.load(gradient.output.diagonal_ptr + columns, mask=inside, other=0.0)
    weight = weights.slope * diagonal + weights.offset
    theirs = load_block(gradient.other, row, column, N, D, ROWS, COLUMNS)
    rstd = tl.load(gradient.own.statistics_ptr + D + columns, mask=inside, other=0.0)
    factor = rstd * tl.load(gradient.output.scale_ptr).to(tl.float32)
    if rest is None:
        difference = theirs - own * (projected * diagonal)[None, :]
        g = weights.product * product + weight[None, :] * difference
    else:
        taken = projected * weight * diagonal + rest
        g = weights.product * product + weight[None, :] * theirs - own * taken[None, :]
    store_block(gradient.output.ptr, g * factor[None, :], row, column, N, D, ROWS, COLUMNS)


@triton.jit
def share_of(program, full_tiles, splits, k_blocks_per_split, K, META):
    """(full, slot, tile, first, last): what a program of a product with split-K tiles sums.

    The first programs take a full tile each, the sum from 0 to K. The others take the sum from
    `first` to `last` of one of the tiles that `splits` programs share; `slot` is its place among
    these, tile by tile. Tiles change fastest, so that programs that run side by side read the same
    part of the operands.
    """
    full = program < full_tiles
    split_tiles = tl.maximum((tl.num_programs(0) - full_tiles) // splits, 1)
    rest = program - full_tiles
    tile = tl.where(full, program, full_tiles + rest % split_tiles)
    part = tl.where(full, 0, rest // split_tiles)
    slot = (tile - full_tiles) * splits + part
    # In blocks, so that the compiler knows where loads are aligned.
    first = part * k_blocks_per_split * META.BLOCK_K
    last = tl.where(full, K, tl.minimum(first + k_blocks_per_split * META.BLOCK_K, K))
    return full, slot, tile, first, last


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a (ROWS, COLUMNS) accumulator.

    What follows a product is done half by half: it holds several tiles beside the accumulator, and
    whole ones would not fit into registers.
    """
    x = tl.reshape(x, [ROWS, 2, COLUMNS // 2])
    return tl.split(tl.permute(x, (0, 2, 1)))


@triton.jit
def total(parts_ptr, count, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `count` float64 values that lie STRIDE apart, in float64."""
    index = tl.arange(0, BLOCK)
    value = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + index
        value += tl.load(parts_ptr + at * STRIDE, mask=at < count, other=0.0)
    return tl.sum(value, axis=0)


@triton.jit
def last_to_arrive(counter_ptr, count):
    """Whether this program is the last of `count` to arrive at a counter, which an earlier kernel
    has set to zero. What the others stored before they arrived is then visible to its loads.

    The first barrier orders the stores of all threads before the atomic addition of one. That
    addition releases them to the device and acquires what the programs before it released: one
    modification order, in which each addition reads from the one before, so that the last follows
    all. The second barrier orders the loads of all threads behind it.
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return arrived == count - 1
