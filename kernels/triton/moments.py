"""Column statistics of both views in one read of each: moments, standardisation, diagonal."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations
from .launch import cdiv, device_of, launch

SUMS = 4  # (C_ii - 1)^2, C_ii^2, and the mean squared norms of the rows of z_hat_a and z_hat_b


@triton.jit
def _merge(count, mean_a, mean_b, m2_a, m2_b, comoment, more, ma, mb, qa, qb, p):
    """Moments of two disjoint sets of rows together (Chan, Golub, LeVeque 1979), in float64."""
    whole = count + more
    da, db = ma - mean_a, mb - mean_b
    share = more / whole
    weight = count * share
    mean_a += da * share
    mean_b += db * share
    m2_a += qa + da * da * weight
    m2_b += qb + db * db * weight
    comoment += p + da * db * weight
    return whole, mean_a, mean_b, m2_a, m2_b, comoment


@triton.jit
def _reciprocal_deviation(variance):
    """variance^-1/2 in float64, NaN where float32 has no normal number for it (precision.py)."""
    value = 1.0 / tl.sqrt(variance)
    return tl.where(value >= 1.1754943508222875e-38, value, float("nan"))


@triton.jit
def _statistics(
    statistics, sums, columns, inside, program, d, count, eps, mean_a, mean_b, m2_a, m2_b, comoment
):
    """Writes the seven rows of `statistics` and this program's row of `sums`."""
    variance_a, variance_b = m2_a / count, m2_b / count
    rstd_a = _reciprocal_deviation(variance_a + eps)
    rstd_b = _reciprocal_deviation(variance_b + eps)
    diagonal = comoment / count * rstd_a * rstd_b
    # What the float32 mean lacks is kept as a shift of z_hat: kernels/README.md.
    rounded_a, rounded_b = mean_a.to(tl.float32), mean_b.to(tl.float32)
    shift_a = (mean_a - rounded_a.to(tl.float64)) * rstd_a
    shift_b = (mean_b - rounded_b.to(tl.float64)) * rstd_b
    out = statistics + columns
    tl.store(out, rounded_a, mask=inside)
    tl.store(out + d, rstd_a.to(tl.float32), mask=inside)
    tl.store(out + 2 * d, shift_a.to(tl.float32), mask=inside)
    tl.store(out + 3 * d, rounded_b, mask=inside)
    tl.store(out + 4 * d, rstd_b.to(tl.float32), mask=inside)
    tl.store(out + 5 * d, shift_b.to(tl.float32), mask=inside)
    tl.store(out + 6 * d, diagonal.to(tl.float32), mask=inside)
    off = diagonal - 1.0
    row = sums + program * 4
    tl.store(row, tl.sum(tl.where(inside, off * off, 0.0), axis=0))
    tl.store(row + 1, tl.sum(tl.where(inside, diagonal * diagonal, 0.0), axis=0))
    tl.store(row + 2, tl.sum(tl.where(inside, variance_a * rstd_a * rstd_a, 0.0), axis=0))
    tl.store(row + 3, tl.sum(tl.where(inside, variance_b * rstd_b * rstd_b, 0.0), axis=0))


@triton.jit
def _store_moments(out, d, inside, mean_a, mean_b, m2_a, m2_b, comoment):
    """Writes the five rows of moments."""
    tl.store(out, mean_a, mask=inside)
    tl.store(out + d, mean_b, mask=inside)
    tl.store(out + 2 * d, m2_a, mask=inside)
    tl.store(out + 3 * d, m2_b, mask=inside)
    tl.store(out + 4 * d, comoment, mask=inside)


@triton.jit(do_not_specialize=["n", "rows_per_part"])
def moments_kernel(
    z_a,
    z_b,
    parts,
    statistics,
    sums,
    n,
    d,
    stride_a,
    stride_b,
    rows_per_part,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Moments of COLUMNS columns over one part of the rows, at most MOST_PART_ROWS of them.

    Values are centred about the mean of the part's first ROWS rows before they are squared. That
    pivot lies off the true mean by at most max |deviation| / sqrt(ROWS) in the worst case, an
    outlier among them, and then the variance is at least max |deviation|^2 / rows: what the later
    subtraction can lose is a factor 1 + rows / ROWS^2, so it is bounded by bounding rows. Sums run
    element by element in registers and are reduced once, at the end.

    parts: (row parts, 5, D) float64, or, with FINISH, the statistics themselves are written.
    """
    program = tl.program_id(0)
    part = tl.program_id(1)
    column = program * COLUMNS
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < d
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, n)
    accumulate = tl.float64 if WIDE else tl.float32
    local = tl.arange(0, ROWS)[:, None]

    mask = (first + local < last) & inside[None, :]
    at_a = z_a + first.to(tl.int64) * stride_a + column
    at_b = z_b + first.to(tl.int64) * stride_b + column
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
    for start in range(first, last, ROWS):
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
    mean_a = pivot_a.to(tl.float64) + rest_a / count
    mean_b = pivot_b.to(tl.float64) + rest_b / count
    m2_a = tl.sum(squares_a, axis=0).to(tl.float64) - rest_a * rest_a / count
    m2_b = tl.sum(squares_b, axis=0).to(tl.float64) - rest_b * rest_b / count
    comoment = tl.sum(products, axis=0).to(tl.float64) - rest_a * rest_b / count
    if FINISH:
        _statistics(
            statistics,
            sums,
            columns,
            inside,
            program,
            d,
            count,
            eps,
            mean_a,
            mean_b,
            m2_a,
            m2_b,
            comoment,
        )
    else:
        out = parts + part.to(tl.int64) * 5 * d + columns
        _store_moments(out, d, inside, mean_a, mean_b, m2_a, m2_b, comoment)


@triton.jit(do_not_specialize=["n", "parts_count", "rows_per_part"])
def merge_kernel(
    parts,
    moments,
    statistics,
    sums,
    n,
    d,
    parts_count,
    rows_per_part,
    eps,
    COLUMNS: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Merges the row parts of `moments_kernel` in order; writes moments or, with FINISH, the
    statistics."""
    program = tl.program_id(0)
    columns = program * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    mean_a = tl.zeros([COLUMNS], tl.float64)
    mean_b = tl.zeros([COLUMNS], tl.float64)
    m2_a = tl.zeros([COLUMNS], tl.float64)
    m2_b = tl.zeros([COLUMNS], tl.float64)
    comoment = tl.zeros([COLUMNS], tl.float64)
    done = tl.zeros([COLUMNS], tl.float64)
    for part in range(parts_count):
        at = parts + part * 5 * d + columns
        size = tl.minimum(rows_per_part, n - part * rows_per_part).to(tl.float64)
        done, mean_a, mean_b, m2_a, m2_b, comoment = _merge(
            done,
            mean_a,
            mean_b,
            m2_a,
            m2_b,
            comoment,
            size,
            tl.load(at, mask=inside, other=0.0),
            tl.load(at + d, mask=inside, other=0.0),
            tl.load(at + 2 * d, mask=inside, other=0.0),
            tl.load(at + 3 * d, mask=inside, other=0.0),
            tl.load(at + 4 * d, mask=inside, other=0.0),
        )
    if FINISH:
        _statistics(
            statistics,
            sums,
            columns,
            inside,
            program,
            d,
            n.to(tl.float64),
            eps,
            mean_a,
            mean_b,
            m2_a,
            m2_b,
            comoment,
        )
    else:
        _store_moments(moments + columns, d, inside, mean_a, mean_b, m2_a, m2_b, comoment)


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    """(5, D) float64 moments; the contract's primitive."""
    parts, rows_per_part = _parts(z_a, z_b)
    if parts.shape[0] == 1:
        return parts[0]
    n, d = z_a.shape
    moments = parts.new_empty((5, d))
    _merge_parts(parts, rows_per_part, n, 0.0, moments=moments)
    return moments


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    """(statistics (7, D) float32, sums (P, 4) float64); the contract's primitive."""
    return _finished(moments[None], count, count, eps)


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    """Both of the above at once: one launch where the columns alone fill the device, else two."""
    n, d = z_a.shape
    config = configurations.moments(device_of(z_a), n, d, z_a.dtype)
    if config.parts > 1:
        return _finished(*_parts(z_a, z_b), n, eps)
    programs = cdiv(d, config.columns)
    rows, sums = _outputs(z_a, d, programs)
    _launch_moments(z_a, z_b, rows, rows, sums, n, eps, config, True)
    return rows, sums


def _parts(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, int]:
    n, d = z_a.shape
    config = configurations.moments(device_of(z_a), n, d, z_a.dtype)
    parts = torch.empty((config.parts, 5, d), dtype=torch.float64, device=z_a.device)
    _launch_moments(z_a, z_b, parts, parts, parts, config.rows_per_part, 0.0, config, False)
    return parts, config.rows_per_part


def _launch_moments(z_a, z_b, parts, statistics, sums, rows_per_part, eps, config, finish) -> None:
    n, d = z_a.shape
    launch(
        moments_kernel,
        (cdiv(d, config.columns), config.parts),
        z_a,
        z_b,
        parts,
        statistics,
        sums,
        n,
        d,
        z_a.stride(0),
        z_b.stride(0),
        rows_per_part,
        eps,
        ROWS=config.rows,
        COLUMNS=config.columns,
        WIDE=z_a.dtype == torch.float64,
        FINISH=finish,
        warps=config.warps,
        stages=config.stages,
        moved=2 * n * d * z_a.element_size() + (28 if finish else 40 * config.parts) * d,
    )


def _finished(parts: Tensor, rows_per_part: int, n: int, eps: float) -> tuple[Tensor, Tensor]:
    d = parts.shape[2]
    rows, sums = _outputs(parts, d, cdiv(d, configurations.MERGE_COLUMNS))
    _merge_parts(parts, rows_per_part, n, eps, statistics=rows, sums=sums)
    return rows, sums


def _outputs(like: Tensor, d: int, programs: int) -> tuple[Tensor, Tensor]:
    rows = torch.empty((7, d), dtype=torch.float32, device=like.device)
    sums = torch.empty((programs, SUMS), dtype=torch.float64, device=like.device)
    return rows, sums


def _merge_parts(
    parts: Tensor,
    rows_per_part: int,
    n: int,
    eps: float,
    moments: Tensor | None = None,
    statistics: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    count, _, d = parts.shape
    finish = statistics is not None
    launch(
        merge_kernel,
        (cdiv(d, configurations.MERGE_COLUMNS),),
        parts,
        moments if moments is not None else parts,
        statistics if finish else parts,
        sums if finish else parts,
        n,
        d,
        count,
        rows_per_part,
        eps,
        COLUMNS=configurations.MERGE_COLUMNS,
        FINISH=finish,
        warps=1,
        moved=40 * count * d + (28 if finish else 40) * d,
    )
