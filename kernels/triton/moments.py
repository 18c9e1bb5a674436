"""Column statistics of both views in one read of each: moments, standardisation, diagonal."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations
from .launch import addressable, cdiv, device_of, launch

SUMS = 4  # (C_ii - 1)^2, C_ii^2, and the mean squared norms of the rows of z_hat_a and z_hat_b


class Moments(NamedTuple):
    """The moments of some columns, in float64."""

    mean_a: Any
    mean_b: Any
    m2_a: Any
    m2_b: Any
    comoment: Any


class Outputs(NamedTuple):
    """Where results are stored: the (5, D) moments, or the (7, D) statistics and their sums."""

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


@triton.jit(do_not_specialize=["N", "rows_per_part"])
def moments_kernel(
    z_a_ptr,
    z_b_ptr,
    outputs,
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
    FINISH: tl.constexpr,
):
    """Moments of COLUMNS columns over one part of the rows, at most MOST_PART_ROWS of them.

    Values are centred about the mean of the part's first ROWS rows before they are squared. That
    pivot lies off the true mean by at most max |deviation| / sqrt(ROWS) in the worst case, an
    outlier among them, and then the variance is at least max |deviation|^2 / rows: what the later
    subtraction can lose is a factor 1 + rows / ROWS^2, so it is bounded by bounding rows. Sums run
    element by element in registers and are reduced once, at the end.

    outputs.moments_ptr: (row parts, 5, D) float64; with FINISH, the statistics are stored instead.
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
    if FINISH:
        _store_statistics(outputs, moments, columns, D, count, eps)
    else:
        _store_moments(
            outputs.moments_ptr + part.to(tl.int64) * 5 * D + columns, moments, inside, D
        )


@triton.jit
def _parts_at(first, parts_ptr, columns, inside, N, D, parts_count, rows_per_part, PARTS):
    """(addresses, mask, rows of each part) of a block of PARTS parts."""
    part = first + tl.arange(0, PARTS)
    mask = (part < parts_count)[:, None] & inside[None, :]
    at = parts_ptr + part.to(tl.int64)[:, None] * 5 * D + columns[None, :]
    count = tl.minimum(rows_per_part, tl.maximum(N - part * rows_per_part, 0))
    return at, mask, count.to(tl.float64)[:, None]


@triton.jit(do_not_specialize=["N", "parts_count", "rows_per_part"])
def merge_kernel(
    parts_ptr,
    outputs,
    N,
    D,
    parts_count,
    rows_per_part,
    eps,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Merges the row parts of `moments_kernel` (Chan, Golub, LeVeque 1979), PARTS at a time; stores
    moments or, with FINISH, the statistics.

    First the mean, as an offset from that of the first part, then the squares about it.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    pivot_a = tl.load(parts_ptr + columns, mask=inside, other=0.0)
    pivot_b = tl.load(parts_ptr + D + columns, mask=inside, other=0.0)
    zero = tl.zeros([PARTS, COLUMNS], tl.float64)
    sum_a, sum_b = zero, zero
    for first in range(0, parts_count, PARTS):
        at, mask, count = _parts_at(
            first, parts_ptr, columns, inside, N, D, parts_count, rows_per_part, PARTS
        )
        sum_a += count * (tl.load(at, mask=mask, other=0.0) - pivot_a[None, :])
        sum_b += count * (tl.load(at + D, mask=mask, other=0.0) - pivot_b[None, :])
    rows = N.to(tl.float64)
    mean_a = pivot_a + tl.sum(sum_a, axis=0) / rows
    mean_b = pivot_b + tl.sum(sum_b, axis=0) / rows

    m2_a, m2_b, comoment = zero, zero, zero
    for first in range(0, parts_count, PARTS):
        at, mask, count = _parts_at(
            first, parts_ptr, columns, inside, N, D, parts_count, rows_per_part, PARTS
        )
        delta_a = tl.load(at, mask=mask, other=0.0) - mean_a[None, :]
        delta_b = tl.load(at + D, mask=mask, other=0.0) - mean_b[None, :]
        m2_a += tl.load(at + 2 * D, mask=mask, other=0.0) + count * delta_a * delta_a
        m2_b += tl.load(at + 3 * D, mask=mask, other=0.0) + count * delta_b * delta_b
        comoment += tl.load(at + 4 * D, mask=mask, other=0.0) + count * delta_a * delta_b
    moments = Moments(
        mean_a, mean_b, tl.sum(m2_a, axis=0), tl.sum(m2_b, axis=0), tl.sum(comoment, axis=0)
    )
    if FINISH:
        _store_statistics(outputs, moments, columns, D, rows, eps)
    else:
        _store_moments(outputs.moments_ptr + columns, moments, inside, D)


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    """(5, D) float64 moments; the contract's primitive."""
    n, d = z_a.shape
    parts, rows_per_part = _parts(addressable(z_a), addressable(z_b))
    if parts.shape[0] == 1:
        return parts[0]
    moments = parts.new_empty((5, d))
    _launch_merge(parts, Outputs(moments, parts, parts), rows_per_part, n, 0.0, finish=False)
    return moments


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    """(statistics (7, D) float32, sums (P, 4) float64); the contract's primitive."""
    return _finished(moments[None], count, count, eps)


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    """Both of the above at once: one launch where the columns alone fill the device, else two."""
    z_a, z_b = addressable(z_a), addressable(z_b)
    n, d = z_a.shape
    config = configurations.moments(device_of(z_a), n, d, z_a.dtype)
    if config.parts > 1:
        return _finished(*_parts(z_a, z_b), n, eps)
    outputs = _outputs(z_a, d, cdiv(d, config.columns))
    _launch_moments(z_a, z_b, outputs, n, eps, config, finish=True)
    return outputs.statistics_ptr, outputs.sums_ptr


def _parts(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, int]:
    n, d = z_a.shape
    config = configurations.moments(device_of(z_a), n, d, z_a.dtype)
    parts = torch.empty((config.parts, 5, d), dtype=torch.float64, device=z_a.device)
    outputs = Outputs(parts, parts, parts)
    _launch_moments(z_a, z_b, outputs, config.rows_per_part, 0.0, config, finish=False)
    return parts, config.rows_per_part


def _launch_moments(
    z_a: Tensor,
    z_b: Tensor,
    outputs: Outputs,
    rows_per_part: int,
    eps: float,
    config: configurations.Moments,
    finish: bool,
) -> None:
    n, d = z_a.shape
    launch(
        moments_kernel, (cdiv(d, config.columns), config.parts), z_a, z_b, outputs, n, d,
        z_a.stride(0), z_b.stride(0), rows_per_part, float(eps),
        ROWS=config.rows, COLUMNS=config.columns, STAGES=config.stages,
        WIDE=z_a.dtype == torch.float64, FINISH=finish, warps=config.warps,
        moved=2 * n * d * z_a.element_size() + (28 if finish else 40 * config.parts) * d,
    )  # fmt: skip


def _finished(parts: Tensor, rows_per_part: int, n: int, eps: float) -> tuple[Tensor, Tensor]:
    d = parts.shape[2]
    outputs = _outputs(parts, d, cdiv(d, configurations.sums(parts.shape[0]).columns))
    _launch_merge(parts, outputs, rows_per_part, n, eps, finish=True)
    return outputs.statistics_ptr, outputs.sums_ptr


def _outputs(like: Tensor, d: int, programs: int) -> Outputs:
    """Memory for the statistics and their sums; no moments are stored."""
    rows = torch.empty((7, d), dtype=torch.float32, device=like.device)
    sums = torch.empty((programs, SUMS), dtype=torch.float64, device=like.device)
    return Outputs(sums, rows, sums)


def _launch_merge(
    parts: Tensor, outputs: Outputs, rows_per_part: int, n: int, eps: float, finish: bool
) -> None:
    count, _, d = parts.shape
    config = configurations.sums(count)
    launch(
        merge_kernel, (cdiv(d, config.columns),), parts, outputs, n, d, count, rows_per_part,
        float(eps), PARTS=config.rows, COLUMNS=config.columns, FINISH=finish,
        warps=config.warps, moved=40 * count * d + (28 if finish else 40) * d,
    )  # fmt: skip
