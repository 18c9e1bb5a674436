"""Column statistics of both views in one read of each: moments, standardisation, diagonal."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations
from .arrival import arrived, counters
from .launch import addressable, cdiv, device_of, launch

PARTS = 16  # of the rows, merged at a time
STANDARDISATION_COLUMNS = 64
SUMS = 4  # (C_ii - 1)^2, C_ii^2, and the mean squared norms of the rows of z_hat_a and z_hat_b


class Moments(NamedTuple):
    """The moments of some columns, in float64."""

    mean_a: Any
    mean_b: Any
    m2_a: Any
    m2_b: Any
    comoment: Any


class Outputs(NamedTuple):
    """Where results are stored: the (parts, 5, D) moments of each part, and the (5, D) moments, or
    the (7, D) statistics and their sums."""

    parts_ptr: Any
    moments_ptr: Any
    statistics_ptr: Any
    sums_ptr: Any


@triton.jit
def _reciprocal_deviation(variance):
    """variance^-1/2 in float64, NaN where float32 has no normal number for it (precision.py)."""
    value = 1.0 / tl.sqrt(variance)
    return tl.where(value >= 1.1754943508222875e-38, value, float("nan"))


@triton.jit
def _store_statistics(outputs, moments, columns, D, count, eps):
    """Stores the seven rows of `statistics` and this program's row of `sums`."""
    inside = columns < D
    variance_a, variance_b = moments.m2_a / count, moments.m2_b / count
    rstd_a = _reciprocal_deviation(variance_a + eps)
    rstd_b = _reciprocal_deviation(variance_b + eps)
    diagonal = moments.comoment / count * rstd_a * rstd_b
    # What rounding the mean to float32 loses is kept as a shift of z_hat: kernels/README.md.
    rounded_a, rounded_b = moments.mean_a.to(tl.float32), moments.mean_b.to(tl.float32)
    shift_a = (moments.mean_a - rounded_a.to(tl.float64)) * rstd_a
    shift_b = (moments.mean_b - rounded_b.to(tl.float64)) * rstd_b
    rows = (rounded_a, rstd_a, shift_a, rounded_b, rstd_b, shift_b, diagonal)
    at = outputs.statistics_ptr + columns
    for row in tl.static_range(7):
        tl.store(at + row * D, rows[row].to(tl.float32), mask=inside)
    off = diagonal - 1.0
    sums = (
        off * off,
        diagonal * diagonal,
        variance_a * rstd_a * rstd_a,
        variance_b * rstd_b * rstd_b,
    )
    at = outputs.sums_ptr + tl.program_id(0) * 4
    for column in tl.static_range(4):
        tl.store(at + column, tl.sum(tl.where(inside, sums[column], 0.0), axis=0))


@triton.jit
def _store_moments(ptr, moments, inside, D):
    """Stores the five rows of moments."""
    for row in tl.static_range(5):
        tl.store(ptr + row * D, moments[row], mask=inside)


@triton.jit
def _store(outputs, moments, columns, D, count, eps, FINISH: tl.constexpr):
    if FINISH:
        _store_statistics(outputs, moments, columns, D, count, eps)
    else:
        _store_moments(outputs.moments_ptr + columns, moments, columns < D, D)


@triton.jit
def _merged(parts_ptr, inside, N, D, rows_per_part, PARTS: tl.constexpr):
    """The moments of all parts (Chan, Golub, LeVeque 1979), PARTS at a time.

    Squares are summed about the mean of the first part. They are at least the rows of that part
    times its squared distance from the mean of all, so that the last subtraction loses at most a
    factor of the number of parts, in float64.
    """
    count = tl.num_programs(1)
    pivot_a = tl.load(parts_ptr, mask=inside, other=0.0)
    pivot_b = tl.load(parts_ptr + D, mask=inside, other=0.0)
    zero = tl.zeros([PARTS, inside.shape[0]], tl.float64)
    sum_a, sum_b, m2_a, m2_b, comoment = zero, zero, zero, zero, zero
    for first in tl.range(0, count, PARTS, loop_unroll_factor=2):
        part = first + tl.arange(0, PARTS)
        mask = (part < count)[:, None] & inside[None, :]
        at = parts_ptr[None, :] + part.to(tl.int64)[:, None] * 5 * D
        rows = tl.minimum(rows_per_part, tl.maximum(N - part * rows_per_part, 0))
        rows = rows.to(tl.float64)[:, None]
        delta_a = tl.load(at, mask=mask, other=0.0) - pivot_a[None, :]
        delta_b = tl.load(at + D, mask=mask, other=0.0) - pivot_b[None, :]
        sum_a += rows * delta_a
        sum_b += rows * delta_b
        m2_a += tl.load(at + 2 * D, mask=mask, other=0.0) + rows * delta_a * delta_a
        m2_b += tl.load(at + 3 * D, mask=mask, other=0.0) + rows * delta_b * delta_b
        comoment += tl.load(at + 4 * D, mask=mask, other=0.0) + rows * delta_a * delta_b
    rows = N.to(tl.float64)
    rest_a, rest_b = tl.sum(sum_a, axis=0), tl.sum(sum_b, axis=0)
    return Moments(
        pivot_a + rest_a / rows,
        pivot_b + rest_b / rows,
        tl.sum(m2_a, axis=0) - rest_a * rest_a / rows,
        tl.sum(m2_b, axis=0) - rest_b * rest_b / rows,
        tl.sum(comoment, axis=0) - rest_a * rest_b / rows,
    )


@triton.jit(do_not_specialize=["N", "rows_per_part"])
def moments_kernel(
    z_a_ptr,
    z_b_ptr,
    outputs,
    counters_ptr,
    N,
    D,
    stride_a,
    stride_b,
    rows_per_part,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Moments of COLUMNS columns over one part of the rows, at most MOST_PART_ROWS of them. The
    last program of a block of columns merges its parts, PARTS at a time; 0: there is one part.

    Values are centred about the mean of the part's first ROWS rows before they are squared. That
    pivot lies off the true mean by at most max |deviation| / sqrt(ROWS) in the worst case, an
    outlier among them, and then the variance is at least max |deviation|^2 / rows: what the later
    subtraction can lose is a factor 1 + rows / ROWS^2, so it is bounded by bounding rows. Sums run
    element by element in registers and are reduced once, at the end.

    counters_ptr: one for each block of columns. FINISH: the statistics are stored, not moments.
    """
    part = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < D
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, N)
    accumulate = tl.float64 if WIDE else tl.float32
    local = tl.arange(0, ROWS)[:, None]

    mask = (first + local < last) & inside[None, :]
    at_a = z_a_ptr + first.to(tl.int64) * stride_a + column
    at_b = z_b_ptr + first.to(tl.int64) * stride_b + column
    offset_a = local * stride_a + tl.arange(0, COLUMNS)[None, :]
    offset_b = local * stride_b + tl.arange(0, COLUMNS)[None, :]
    few = tl.minimum(ROWS, last - first).to(accumulate)
    pivot_a = tl.sum(tl.load(at_a + offset_a, mask=mask, other=0.0).to(accumulate), axis=0) / few
    pivot_b = tl.sum(tl.load(at_b + offset_b, mask=mask, other=0.0).to(accumulate), axis=0) / few

    sum_a = tl.zeros([ROWS, COLUMNS], accumulate)
    sum_b = tl.zeros([ROWS, COLUMNS], accumulate)
    squares_a = tl.zeros([ROWS, COLUMNS], accumulate)
    squares_b = tl.zeros([ROWS, COLUMNS], accumulate)
    products = tl.zeros([ROWS, COLUMNS], accumulate)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        mask = (start + local < last) & inside[None, :]
        x = tl.load(at_a + offset_a, mask=mask, other=0.0).to(accumulate)
        y = tl.load(at_b + offset_b, mask=mask, other=0.0).to(accumulate)
        x = tl.where(mask, x - pivot_a[None, :], 0.0)
        y = tl.where(mask, y - pivot_b[None, :], 0.0)
        sum_a += x
        sum_b += y
        squares_a += x * x
        squares_b += y * y
        products += x * y
        # A stride of 1 (D = 1) is a plain number to the compiler, and has no type to convert.
        at_a += tl.full([], ROWS, tl.int64) * stride_a
        at_b += tl.full([], ROWS, tl.int64) * stride_b

    count = (last - first).to(tl.float64)
    rest_a = tl.sum(sum_a, axis=0).to(tl.float64)
    rest_b = tl.sum(sum_b, axis=0).to(tl.float64)
    moments = Moments(
        pivot_a.to(tl.float64) + rest_a / count,
        pivot_b.to(tl.float64) + rest_b / count,
        tl.sum(squares_a, axis=0).to(tl.float64) - rest_a * rest_a / count,
        tl.sum(squares_b, axis=0).to(tl.float64) - rest_b * rest_b / count,
        tl.sum(products, axis=0).to(tl.float64) - rest_a * rest_b / count,
    )
    if PARTS:
        at = outputs.parts_ptr + part.to(tl.int64) * 5 * D + columns
        _store_moments(at, moments, inside, D)
        if arrived(counters_ptr + tl.program_id(0), 1, tl.num_programs(1)):
            moments = _merged(outputs.parts_ptr + columns, inside, N, D, rows_per_part, PARTS)
            _store(outputs, moments, columns, D, N.to(tl.float64), eps, FINISH)
    else:
        _store(outputs, moments, columns, D, count, eps, FINISH)


@triton.jit(do_not_specialize=["count"])
def standardisation_kernel(moments_ptr, outputs, D, count, eps, COLUMNS: tl.constexpr):
    """The statistics of (5, D) moments over `count` rows."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    at, inside = moments_ptr + columns, columns < D
    moments = Moments(
        tl.load(at, mask=inside, other=0.0),
        tl.load(at + D, mask=inside, other=0.0),
        tl.load(at + 2 * D, mask=inside, other=0.0),
        tl.load(at + 3 * D, mask=inside, other=0.0),
        tl.load(at + 4 * D, mask=inside, other=0.0),
    )
    _store_statistics(outputs, moments, columns, D, count.to(tl.float64), eps)


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    """(5, D) float64 moments; the contract's primitive."""
    z_a, z_b = addressable(z_a), addressable(z_b)
    moments = torch.empty((5, z_a.shape[1]), dtype=torch.float64, device=z_a.device)
    _launch_moments(z_a, z_b, Outputs(moments, moments, moments, moments), 0.0, finish=False)
    return moments


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    """(statistics (7, D) float32, sums (P, 4) float64); the contract's primitive."""
    d = moments.shape[1]
    outputs = _outputs(moments, d, cdiv(d, STANDARDISATION_COLUMNS))
    launch(
        standardisation_kernel, (cdiv(d, STANDARDISATION_COLUMNS),), moments, outputs, d, count,
        float(eps), COLUMNS=STANDARDISATION_COLUMNS, warps=1, moved=moments.nbytes + 28 * d,
    )  # fmt: skip
    return outputs.statistics_ptr, outputs.sums_ptr


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    """Both of the above at once, in one launch."""
    z_a, z_b = addressable(z_a), addressable(z_b)
    n, d = z_a.shape
    columns = configurations.moments(device_of(z_a), n, d, z_a.dtype).columns
    outputs = _outputs(z_a, d, cdiv(d, columns))
    _launch_moments(z_a, z_b, outputs, eps, finish=True)
    return outputs.statistics_ptr, outputs.sums_ptr


def _launch_moments(z_a: Tensor, z_b: Tensor, outputs: Outputs, eps: float, finish: bool) -> None:
    n, d = z_a.shape
    config = configurations.moments(device_of(z_a), n, d, z_a.dtype)
    parts = outputs.moments_ptr  # not used, as the counters
    counts = parts
    if config.parts > 1:
        parts = torch.empty((config.parts, 5, d), dtype=torch.float64, device=z_a.device)
        counts = counters(z_a.device, cdiv(d, config.columns))
    launch(
        moments_kernel, (cdiv(d, config.columns), config.parts), z_a, z_b,
        outputs._replace(parts_ptr=parts), counts, n, d, z_a.stride(0), z_b.stride(0),
        config.rows_per_part, float(eps),
        ROWS=config.rows, COLUMNS=config.columns, STAGES=config.stages,
        WIDE=z_a.dtype == torch.float64, PARTS=PARTS if config.parts > 1 else 0, FINISH=finish,
        warps=config.warps,
        moved=2 * n * d * z_a.element_size() + (28 if finish else 40) * d
        + (2 * parts.nbytes if config.parts > 1 else 0),
    )  # fmt: skip


def _outputs(like: Tensor, d: int, programs: int) -> Outputs:
    """Memory for the statistics and their sums; no moments are stored."""
    rows = torch.empty((7, d), dtype=torch.float32, device=like.device)
    sums = torch.empty((programs, SUMS), dtype=torch.float64, device=like.device)
    return Outputs(sums, sums, rows, sums)
