"""Means of any number of views and the co-moments of all their pairs, in one read of each view."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations
from .gram import triangle
from .launch import addressable, cdiv, device_of, launch
from .moments import column_moments


@triton.jit
def _rows_at(ptr, stride, start, last, columns, D, ROWS: tl.constexpr):
    """(values, mask) of the rows from `start` on, and before `last`, of some columns."""
    rows = start + tl.arange(0, ROWS)
    mask = (rows < last)[:, None] & (columns < D)[None, :]
    at = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=mask, other=0.0), mask


@triton.jit
def _pivot(
    zero, ptr, stride, first, last, columns, D, ROWS: tl.constexpr, PIVOT_ROWS: tl.constexpr
):
    """The mean of the first PIVOT_ROWS rows of a part, or of all that it has."""
    end = tl.minimum(first + PIVOT_ROWS, last)
    value = zero
    for start in range(first, end, ROWS):
        x, _ = _rows_at(ptr, stride, start, end, columns, D, ROWS)
        value += x.to(zero.dtype)
    return tl.sum(value, axis=0) / (end - first).to(zero.dtype)


@triton.jit(do_not_specialize=["N", "rows_per_part"])
def view_moments_kernel(
    views,
    strides,
    parts_ptr,
    N,
    D,
    rows_per_part,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIVOT_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    VIEWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Moments of COLUMNS columns of all views over one part of the rows.

    Values are centred about a pivot before they are multiplied, for the reasons of
    `moments_kernel`; sums run element by element in registers likewise.

    views, strides: tuples of VIEWS pointers and row strides.
    parts_ptr: (row parts, VIEWS + VIEWS^2, D) float64: means, then co-moments of every two views.
    """
    accumulate = tl.float64 if WIDE else tl.float32
    part = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, N)

    zero = tl.zeros([ROWS, COLUMNS], accumulate)
    pivots, sums, products = (), (), ()
    for v in tl.static_range(VIEWS):
        pivots += (_pivot(zero, views[v], strides[v], first, last, columns, D, ROWS, PIVOT_ROWS),)
        sums += (zero,)
    for _ in tl.static_range(VIEWS * (VIEWS + 1) // 2):
        products += (zero,)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rests, longer_sums, longer_products = (), (), ()
        for v in tl.static_range(VIEWS):
            x, mask = _rows_at(views[v], strides[v], start, last, columns, D, ROWS)
            rests += (tl.where(mask, x.to(accumulate) - pivots[v][None, :], 0.0),)
            longer_sums += (sums[v] + rests[v],)
        for v in tl.static_range(VIEWS):
            for u in tl.static_range(v + 1):
                longer_products += (products[v * (v + 1) // 2 + u] + rests[v] * rests[u],)
        sums, products = longer_sums, longer_products

    count = (last - first).to(tl.float64)
    inside = columns < D
    means_ptr = parts_ptr + part.to(tl.int64) * (VIEWS + VIEWS * VIEWS) * D + columns
    comoments_ptr = means_ptr + VIEWS * D
    totals = ()
    for v in tl.static_range(VIEWS):
        totals += (tl.sum(sums[v], axis=0).to(tl.float64),)
        tl.store(means_ptr + v * D, pivots[v].to(tl.float64) + totals[v] / count, mask=inside)
        for u in tl.static_range(v + 1):
            comoment = tl.sum(products[v * (v + 1) // 2 + u], axis=0).to(tl.float64)
            comoment -= totals[v] * totals[u] / count
            tl.store(comoments_ptr + (v * VIEWS + u) * D, comoment, mask=inside)
            tl.store(comoments_ptr + (u * VIEWS + v) * D, comoment, mask=inside)


@triton.jit(do_not_specialize=["N", "views", "parts_count", "rows_per_part"])
def view_merge_kernel(
    parts_ptr,
    moments_ptr,
    N,
    D,
    views,
    parts_count,
    rows_per_part,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Merges the row parts of `view_moments_kernel` for two views (Chan, Golub, LeVeque 1979),
    PARTS at a time: means as offsets from those of the first part, then the co-moment about them.

    moments_ptr: (views + views^2, D) float64.
    """
    v, u = triangle(tl.program_id(1))
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    width = (views + views * views).to(tl.int64) * D
    pair = views + v * views + u
    pivot_v = tl.load(parts_ptr + v * D + columns, mask=inside, other=0.0)
    pivot_u = tl.load(parts_ptr + u * D + columns, mask=inside, other=0.0)
    zero = tl.zeros([PARTS, COLUMNS], tl.float64)
    sum_v, sum_u, products, comoment = zero, zero, zero, zero
    for first in range(0, parts_count, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < parts_count)[:, None] & inside[None, :]
        at = parts_ptr + part.to(tl.int64)[:, None] * width + columns[None, :]
        count = tl.minimum(rows_per_part, tl.maximum(N - part * rows_per_part, 0))
        count = count.to(tl.float64)[:, None]
        offset_v = tl.load(at + v * D, mask=mask, other=0.0) - pivot_v[None, :]
        offset_u = tl.load(at + u * D, mask=mask, other=0.0) - pivot_u[None, :]
        sum_v += count * offset_v
        sum_u += count * offset_u
        products += count * offset_v * offset_u
        comoment += tl.load(at + pair * D, mask=mask, other=0.0)
    total_v, total_u = tl.sum(sum_v, axis=0), tl.sum(sum_u, axis=0)
    rows = N.to(tl.float64)
    merged = tl.sum(comoment, axis=0) + (tl.sum(products, axis=0) - total_v * (total_u / rows))
    out = moments_ptr + columns
    if u == 0:
        tl.store(out + v * D, pivot_v + total_v / rows, mask=inside)
    tl.store(out + pair * D, merged, mask=inside)
    tl.store(out + (views + u * views + v) * D, merged, mask=inside)


def view_moments(views: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor]:
    """(means (V, D), comoments (V, V, D)), float64; the contract's primitive."""
    views = tuple(map(addressable, views))
    count = len(views)
    if count <= 2:
        mean_a, mean_b, m2_a, m2_b, comoment = column_moments(views[0], views[-1], precision)
        means, comoments = (mean_a, mean_b), (m2_a, comoment, comoment, m2_b)
        return torch.stack(means[:count]), torch.stack(comoments[: count**2]).unflatten(
            0, (count, -1)
        )
    if count <= configurations.MOST_VIEWS:
        return _together(views)
    # Two groups of views at a time.
    d = views[0].shape[1]
    means = torch.empty((count, d), dtype=torch.float64, device=views[0].device)
    comoments = means.new_empty((count, count, d))
    half = configurations.MOST_VIEWS // 2
    groups = [slice(first, min(first + half, count)) for first in range(0, count, half)]
    for a, b in itertools.combinations(groups, 2):
        split = a.stop - a.start
        some_means, some = _together(views[a] + views[b])
        means[a], means[b] = some_means[:split], some_means[split:]
        comoments[a, a], comoments[a, b] = some[:split, :split], some[:split, split:]
        comoments[b, a], comoments[b, b] = some[split:, :split], some[split:, split:]
    return means, comoments


def _together(views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The moments of at most MOST_VIEWS views."""
    (n, d), count, z = views[0].shape, len(views), views[0]
    config = configurations.view_moments(device_of(z), n, d, z.dtype, count)
    size = (count + count**2, d)
    parts = torch.empty((config.parts, *size), dtype=torch.float64, device=z.device)
    launch(
        view_moments_kernel, (cdiv(d, config.columns), config.parts),
        views, tuple(v.stride(0) for v in views), parts, n, d, config.rows_per_part,
        ROWS=config.rows, COLUMNS=config.columns, PIVOT_ROWS=configurations.PIVOT_ROWS,
        STAGES=config.stages, VIEWS=count, WIDE=z.dtype == torch.float64,
        warps=config.warps, moved=count * n * d * z.element_size() + parts.nbytes,
    )  # fmt: skip
    moments = parts[0]
    if config.parts > 1:
        moments = parts.new_empty(size)
        sums = configurations.sums(config.parts)
        launch(
            view_merge_kernel, (cdiv(d, sums.columns), count * (count + 1) // 2),
            parts, moments, n, d, count, config.parts, config.rows_per_part,
            PARTS=sums.rows, COLUMNS=sums.columns, warps=sums.warps,
            moved=parts.nbytes + moments.nbytes,
        )  # fmt: skip
    return moments[:count], moments[count:].unflatten(0, (count, count))
