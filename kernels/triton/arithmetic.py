"""What several kernels share on the device: operand types, products, standardised values.

Accumulation is float32 always. The operand type of a product is a constexpr string, the `precision`
of the contract:

    fp32    three TF32 products of split operands (float32 quality on tensor cores)
    tf32    one TF32 product
    bf16, fp16

Triton's interpreter multiplies bfloat16 operands wrongly and truncates where a device rounds to
nearest, so there values are rounded by `cast` itself and multiplied in float32: the same numbers.
"""

from __future__ import annotations

import os

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
    """accumulator + x y, accumulated in float32."""
    if PRECISION == "fp32":
        accumulator = tl.dot(x, y, accumulator, input_precision="tf32x3")
    else:
        accumulator = tl.dot(x, y, accumulator, input_precision="tf32")
    return accumulator


@triton.jit
def standardised(z, mean, rstd, shift):
    """z_hat of a block (rows, columns) in float32; the vectors hold its columns' statistics."""
    return (z.to(tl.float32) - mean[None, :]) * rstd[None, :] - shift[None, :]


@triton.jit
def rows_of(z, statistics, row, column, n, d, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """z_hat of the block (ROWS, COLUMNS) at (row, column) in float32.

    statistics: the view's three rows. What lies outside of N x D is finite and means nothing.

    Offsets within a block are 32-bit: 64-bit ones for each element would take registers that the
    accumulator needs.
    """
    columns = tl.arange(0, COLUMNS)
    inside = column + columns < d
    rows = tl.minimum(tl.arange(0, ROWS), n - 1 - row)
    base = z + row.to(tl.int64) * stride + column
    x = tl.load(base + (rows[:, None] * stride + columns[None, :]), mask=inside[None, :], other=0.0)
    statistics += column
    return standardised(
        x,
        tl.load(statistics + columns, mask=inside, other=0.0),
        tl.load(statistics + d + columns, mask=inside, other=0.0),
        tl.load(statistics + 2 * d + columns, mask=inside, other=0.0),
    )


@triton.jit
def store_rows(out, value, row, column, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores a block of the contiguous (N, D) matrix `out`, rounded to its type."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    valid = (row + rows < n)[:, None] & (column + columns < d)[None, :]
    base = out + row.to(tl.int64) * d + column
    value = cast(value, out.dtype.element_ty)
    tl.store(base + (rows[:, None] * d + columns[None, :]), value, mask=valid)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a (ROWS, COLUMNS) accumulator.

    What follows a product is done half by half: it holds several tiles beside the accumulator, and
    whole ones would not fit into registers.
    """
    x = tl.reshape(x, [ROWS, 2, COLUMNS // 2])
    return tl.split(tl.permute(x, (0, 2, 1)))


@triton.jit
def total(parts, count, STRIDE: tl.constexpr):
    """The sum of `count` float64 values that lie STRIDE apart, in float64."""
    index = tl.arange(0, 256)
    value = tl.zeros([256], tl.float64)
    for start in range(0, count, 256):
        at = start + index
        value += tl.load(parts + at * STRIDE, mask=at < count, other=0.0)
    return tl.sum(value, axis=0)
