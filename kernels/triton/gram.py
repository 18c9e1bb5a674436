"""The symmetric Gram pair: K_a and K_b by the tiles on and below the diagonal, and <K_a, K_b>.

`gram_kernel` multiplies. A full tile is summed by one program. The tiles of the last, incomplete
wave are split over D instead, so that they fill the device too (split-K tiles), and
`gram_finish_kernel` adds their parts in a fixed order; the last of its programs makes the terms of
the loss. Small N has split-K tiles only. Up to the size in the table both views are multiplied in
one launch from the raw embeddings, standardised on their way into the product, and meet when they
are finished. Above it z_hat is stored first, view by view, and a full tile is finished where it is
summed.

K' = scale (K - c I) is stored in the operand type, as the gradient multiplies with it: c is the
mean of K's diagonal, known from the statistics before any product (kernels/README.md, Gram
centring), and scale is a power of two that keeps float16 in range. The inner product is taken of
the float32 sums, plus the part that c leaves out.

For matrices that are sums over several devices, `gram_tiles` returns the parts of split-K tiles,
and `gram_unpack_kernel` makes K' of their sum (`gram_from_tiles`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aten, tiles
from ..contract import Layout
from ..precision import OPERAND_DTYPE, gram_scale
from . import configurations
from .arithmetic import (
    Pair,
    cast,
    halves,
    load_columns,
    meta,
    multiply,
    share_of,
    stored,
    to_operand,
    to_tf32,
    total,
    view_of,
)
from .arrival import arrived, counters
from .launch import addressable, cdiv, device_of, launch, round_up, tma_descriptor
from .standardise import operand
from .table import SUM_ALIGNMENT
from .terms import Terms, launch_terms, outputs_of_terms, store_terms

DENSE_BLOCK = 64


class Grams(NamedTuple):
    """K' of each view, and what else a product writes or needs to finish a tile."""

    ptr: Any  # (views, N, W) in the operand type
    stride: Any  # W
    centres_ptr: Any  # (views,) float32
    inner_ptr: Any  # float64 parts of <K_a, K_b>
    sums_ptr: Any  # the sums of `standardisation`
    scale: Any


@triton.jit
def triangle(tile):
    """(row, column) of a tile, counted row by row in the lower triangle."""
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # float32 may be one off in either direction.
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    return row, tile - row * (row + 1) // 2


@triton.jit
def _operand(view, offsets, columns, D, META, STORED: tl.constexpr, EVEN: tl.constexpr):
    """A block of z_hat: loaded when STORED, else standardised here."""
    if STORED:
        y = stored(tl.load(view.ptr + offsets + columns[None, :]))
    else:
        y = to_operand(load_columns(view, offsets, columns, D, EVEN), META.PRECISION)
    return y


@triton.jit
def _step(value, view, left, right, k, D, META, STORED: tl.constexpr, EVEN: tl.constexpr):
    """value + the product over the block of columns at k."""
    columns = k + tl.arange(0, META.BLOCK_K)
    x = _operand(view, left, columns, D, META, STORED, EVEN)
    y = _operand(view, right, columns, D, META, STORED, EVEN)
    return multiply(x, tl.trans(y), value, META.PRECISION)


@triton.jit
def _centre(grams, index, sums_count):
    """The mean of the diagonal of one view's K."""
    return total(grams.sums_ptr + 2 + index, sums_count, 4, 256).to(tl.float32)


@triton.jit
def _store(grams, index, value, rows, columns, N, centre, mirror, PRECISION: tl.constexpr):
    """Stores scale (value - centre I) at (rows, columns) and, for tiles off the diagonal, at its
    mirror image. The padding beyond column N is zero."""
    ptr = grams.ptr + index * N.to(tl.int64) * grams.stride
    on_diagonal = rows[:, None] == columns[None, :]
    valid = (rows < N)[:, None] & (columns < N)[None, :]
    x = tl.where(valid, (value - tl.where(on_diagonal, centre, 0.0)) * grams.scale, 0.0)
    if PRECISION == "tf32":
        x = to_tf32(x)
    x = cast(x, grams.ptr.dtype.element_ty)
    inside = (rows < N)[:, None] & (columns < grams.stride)[None, :]
    tl.store(ptr + rows.to(tl.int64)[:, None] * grams.stride + columns[None, :], x, mask=inside)
    if mirror:
        mirrored = (columns < N)[:, None] & (rows < grams.stride)[None, :]
        at = ptr + columns.to(tl.int64)[:, None] * grams.stride + rows[None, :]
        tl.store(at, tl.trans(x), mask=mirrored)


@triton.jit
def _inner(grams, value, rows, columns, N, weight):
    """sum of K_a * `value` over the valid part of a tile, in float64, with K_a as it was stored;
    rows are summed in float32."""
    inside = (rows < N)[:, None] & (columns < N)[None, :]
    at = grams.ptr + rows.to(tl.int64)[:, None] * grams.stride + columns[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32) / grams.scale
    centre = tl.load(grams.centres_ptr)
    first += tl.where(rows[:, None] == columns[None, :], centre, 0.0)
    return _weighted_sum(first * value, inside, weight)


@triton.jit
def _weighted_sum(products, inside, weight):
    products = tl.where(inside, products, 0.0)
    return tl.sum(tl.sum(products, axis=1).to(tl.float64), axis=0) * weight


@triton.jit(
    do_not_specialize=[
        "N", "full_tiles", "splits", "k_blocks_per_split", "sums_count", "first_view",
    ]
)  # fmt: skip
def gram_kernel(
    pair,
    hat_descriptor,
    grams,
    workspace_ptr,
    N,
    D,
    full_tiles,
    splits,
    k_blocks_per_split,
    sums_count,
    first_view,
    META,
    STORED: tl.constexpr,
    TMA: tl.constexpr,
    EVEN: tl.constexpr,
    FINISH: tl.constexpr,
):
    """One full tile of one view's K, or one part of the sum over D of a split-K tile.

    pair: the embeddings, or z_hat as `operand` stores it when STORED (then D is its padded width).
    hat_descriptor: of the same z_hat, read instead with TMA (Hopper and later).
    FINISH: there are full tiles, which are finished here: with `first_view` = 0 they write K'_a,
    with 1 they write K'_b and the inner product with the K'_a in memory.
    workspace_ptr: (views, full tiles unless FINISH, then split-K tiles x splits, BLOCK, BLOCK)
    float32; values beyond row and column N are unspecified.
    """
    BLOCK: tl.constexpr = META.BLOCK_M
    program = tl.program_id(0)
    index = first_view + tl.program_id(1)
    full, slot, tile, first, last = share_of(
        program, full_tiles, splits, k_blocks_per_split, D, META
    )
    i, j = triangle(tile)
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)

    value = tl.zeros([BLOCK, BLOCK], tl.float32)
    if TMA:
        for k in range(first, last, META.BLOCK_K):
            x = stored(hat_descriptor.load([i * BLOCK, k]))
            y = stored(hat_descriptor.load([j * BLOCK, k]))
            value = multiply(x, tl.trans(y), value, META.PRECISION)
    else:
        view = view_of(pair, index, D)
        # Rows beyond the last are copies of it: no mask in the loop, and they are not stored.
        left = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * view.stride
        right = tl.minimum(columns, N - 1).to(tl.int64)[:, None] * view.stride
        for k in range(first, last, META.BLOCK_K):
            value = _step(value, view, left, right, k, D, META, STORED, EVEN)

    if FINISH:
        if full:
            centre = _centre(grams, index, sums_count)
            if program == 0:
                tl.store(grams.centres_ptr + index, centre)
            weight = tl.where(i == j, 1.0, 2.0).to(tl.float64)
            left_half, right_half = halves(value, BLOCK, BLOCK)
            products = tl.zeros([], tl.float64)
            for half in tl.static_range(2):
                block = left_half if half == 0 else right_half
                across = j * BLOCK + half * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
                _store(grams, index, block, rows, across, N, centre, i != j, META.PRECISION)
                if index == 1:
                    products += _inner(grams, block, rows, across, N, weight)
            if index == 1:
                tl.store(grams.inner_ptr + tile, products)
        else:
            slot += index * (tl.num_programs(0) - full_tiles)
            _store_sum(workspace_ptr, slot, value, BLOCK)
    else:
        slot = tl.where(full, tile, full_tiles + slot) + index * tl.num_programs(0)
        _store_sum(workspace_ptr, slot, value, BLOCK)


@triton.jit
def _store_sum(workspace_ptr, slot, value, BLOCK: tl.constexpr):
    local = tl.arange(0, BLOCK)
    at = workspace_ptr + slot.to(tl.int64) * BLOCK * BLOCK
    tl.store(at + local[:, None] * BLOCK + local[None, :], value)


@triton.jit(do_not_specialize=["N", "finished", "whole", "splits", "split_tiles", "sums_count"])
def gram_finish_kernel(
    workspace_ptr,
    grams,
    terms,
    counter_ptr,
    N,
    finished,
    whole,
    splits,
    split_tiles,
    sums_count,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the parts of STRIP rows of a tile of both views, in order; stores K' and the inner
    product. The last program to arrive stores the terms.

    finished: tiles that are finished already. Of the others, `whole` have one part, and
    `split_tiles` have `splits`.
    """
    STRIPS: tl.constexpr = BLOCK // STRIP
    program = tl.program_id(0)
    tile = program // STRIPS
    i, j = triangle(finished + tile)
    local_rows = program % STRIPS * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, BLOCK)
    rows = i * BLOCK + local_rows
    columns = j * BLOCK + local_columns
    offsets = local_rows[:, None] * BLOCK + local_columns[None, :]
    # A strip of a tile on the diagonal holds both halves of it, any other tile stands for two.
    weight = tl.where(i == j, 1.0, 2.0).to(tl.float64)

    single = tile < whole
    slot = tl.where(single, tile, whole + (tile - whole) * splits)
    at = workspace_ptr + slot.to(tl.int64) * BLOCK * BLOCK + offsets
    first = tl.zeros([STRIP, BLOCK], tl.float32)
    second = tl.zeros([STRIP, BLOCK], tl.float32)
    jump = (whole + split_tiles * splits).to(tl.int64) * BLOCK * BLOCK
    # Parts are loaded at once: each takes a few registers.
    for part in tl.range(0, tl.where(single, 1, splits), loop_unroll_factor=4):
        first += tl.load(at + part * BLOCK * BLOCK)
        second += tl.load(at + jump + part * BLOCK * BLOCK)
    for index in tl.static_range(2):
        value = first if index == 0 else second
        centre = _centre(grams, index, sums_count)
        _store(grams, index, value, rows, columns, N, centre, i != j, PRECISION)
        if program == 0:
            tl.store(grams.centres_ptr + index, centre)
    inside = (rows < N)[:, None] & (columns < N)[None, :]
    products = _weighted_sum(first * second, inside, weight)
    tl.store(grams.inner_ptr + finished + program, products)

    programs = tl.num_programs(0)
    if arrived(counter_ptr, 1, programs):
        n = N.to(tl.float64)
        store_terms(
            terms, grams.sums_ptr, grams.inner_ptr, sums_count, finished + programs, n * n, 1
        )


@triton.jit(do_not_specialize=["N", "sums_count"])
def gram_dense_kernel(
    matrix_ptr,
    grams,
    N,
    sums_count,
    BLOCK: tl.constexpr,
    VIEW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """K' of one view from the whole K in float32; the second view also makes the inner product."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < N)[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    value = tl.load(matrix_ptr + at, mask=inside, other=0.0)
    centre = _centre(grams, VIEW, sums_count)
    _store(grams, VIEW, value, rows, columns, N, centre, False, PRECISION)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if program == 0:
        tl.store(grams.centres_ptr + VIEW, centre)
    if VIEW == 1:
        weight = tl.full([], 1.0, tl.float64)
        tl.store(grams.inner_ptr + program, _inner(grams, value, rows, columns, N, weight))


@triton.jit(do_not_specialize=["N", "tiles"])
def gram_unpack_kernel(
    packed_ptr,
    grams,
    N,
    tiles,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """K' of each matrix from STRIP rows of a tile that is centred already.

    packed_ptr: (matrices, tiles, BLOCK, BLOCK).
    """
    STRIPS: tl.constexpr = BLOCK // STRIP
    tile = tl.program_id(0) // STRIPS
    local_rows = tl.program_id(0) % STRIPS * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, BLOCK)
    index = tl.program_id(1)
    i, j = triangle(tile)
    at = packed_ptr + (index * tiles + tile).to(tl.int64) * BLOCK * BLOCK
    value = tl.load(at + local_rows[:, None] * BLOCK + local_columns[None, :]).to(tl.float32)
    rows, columns = i * BLOCK + local_rows, j * BLOCK + local_columns
    _store(grams, index, value, rows, columns, N, 0.0, i != j, PRECISION)


def gram_layout(n: int, precision: str) -> Layout:
    """Shape and dtype of both K': rows are padded with zeros to whole blocks of a product."""
    return (2, n, round_up(n, SUM_ALIGNMENT)), OPERAND_DTYPE[precision]


def gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(grams, centres, inner): the contract's primitive."""
    grams, _ = _gram_pair(z_a, z_b, statistics, sums, 0.0, precision)
    return grams.ptr, grams.centres_ptr, grams.inner_ptr


def gram_terms(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, lambd: float, precision: str
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """(terms, grams, centres): the contract's primitive."""
    grams, terms = _gram_pair(z_a, z_b, statistics, sums, lambd, precision)
    return terms[:3], grams.ptr, grams.centres_ptr


def _gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, lambd: float, precision: str
) -> tuple[Grams, Terms]:
    z_a, z_b = addressable(z_a), addressable(z_b)
    (n, d), device = z_a.shape, z_a.device
    plan = configurations.gram(device_of(z_a), n, d, z_a.dtype, precision)
    shape, dtype = gram_layout(n, precision)
    finished, whole = _finished(plan)
    parts = finished + (whole + plan.split_tiles) * (plan.block_m // plan.strip)
    if plan.path == "cublas":
        parts = cdiv(n, DENSE_BLOCK) ** 2
    grams = Grams(
        torch.empty(shape, dtype=dtype, device=device),
        shape[2],
        torch.empty(2, dtype=torch.float32, device=device),
        torch.empty(parts, dtype=torch.float64, device=device),
        sums,
        gram_scale(n, d, precision),
    )
    outputs = outputs_of_terms(lambd, device)
    # Parts of both views: their sums meet in one launch.
    workspace = None if plan.path == "cublas" else _workspace(plan, 2, device)
    if plan.path == "fused":
        pair = _pair(z_a, z_b, statistics)
        _launch_products(plan, pair, grams, workspace, precision, 0, 2)
    else:
        for view, z in enumerate((z_a, z_b)):
            hat = _stored(z, statistics[3 * view : 3 * view + 3], precision)
            if workspace is None:
                _multiply_by_library(hat, grams, precision, view)
            else:
                pair = _pair(hat, hat, statistics)
                _launch_products(plan, pair, grams, workspace, precision, view, 1)
            del hat  # its memory serves the other view
    if whole + plan.split_tiles and workspace is not None:
        _launch_finish(plan, grams, outputs, workspace, precision)
    else:
        launch_terms(outputs, sums, grams.inner_ptr, n * n, True)
    return grams, outputs


def gram_tiles(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    """(T, B, B) float32; the contract's primitive."""
    z, statistics = addressable(z), statistics.contiguous()
    n, d = z.shape
    plan = configurations.gram(device_of(z), n, d, z.dtype, precision, packed=True)
    if plan.path != "fused":
        z = _stored(z, statistics, precision)
        if plan.path == "cublas":
            return tiles.pack(library_product(z, z.T, precision), precision)
    workspace = _workspace(plan, 1, z.device)
    # No tile is finished: these only need the types with which the kernel is compiled already.
    unused = workspace.view(torch.float64)
    (_, _, width), dtype = gram_layout(n, precision)
    grams = Grams(workspace.view(dtype), width, workspace, unused, unused, 1.0)
    _launch_products(plan, _pair(z, z, statistics), grams, workspace, precision, 0, 1)
    parts = workspace.view(plan.split_tiles, plan.splits, plan.block_m, plan.block_m)
    packed = parts.sum(1) if plan.splits > 1 else workspace
    rest = n % plan.block_m
    if rest:
        # Not in the kernel: its accumulator leaves no registers for a mask.
        packed[-cdiv(n, plan.block_m) :, rest:].zero_()
        packed[-1, :, rest:].zero_()
    return packed


def gram_from_tiles(
    packed: Tensor, centres: Tensor, n: int, d: int, precision: str
) -> tuple[Tensor, Tensor]:
    """(grams, centres); the contract's primitive."""
    packed, centres = packed.contiguous(), centres.to(torch.float32)
    (_, *shape), dtype = gram_layout(n, precision)
    matrices, count, block, _ = packed.shape
    outputs = torch.empty((matrices, *shape), dtype=dtype, device=packed.device)
    strip = configurations.UNPACK_STRIP
    scale = gram_scale(n, d, precision)
    grams = Grams(outputs, shape[1], centres, centres, centres, scale)
    launch(
        gram_unpack_kernel, (count * (block // strip), matrices), packed, grams, n, count,
        BLOCK=block, STRIP=strip, PRECISION=precision,
        warps=4, moved=packed.nbytes + outputs.nbytes,
    )  # fmt: skip
    return outputs, centres


def _pair(z_a: Tensor, z_b: Tensor, statistics: Tensor) -> Pair:
    return Pair(z_a, z_b, z_a.stride(0), z_b.stride(0), statistics)


def _stored(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    """z_hat in memory, with whole blocks of columns."""
    width = round_up(z.shape[1], SUM_ALIGNMENT)
    return operand(z, statistics, precision)[:, :width]


def _finished(plan: configurations.Plan) -> tuple[int, int]:
    """How many full tiles the product finishes, and how many it leaves as a sum."""
    return (0, plan.full_tiles) if plan.path == "fused" else (plan.full_tiles, 0)


def _workspace(plan: configurations.Plan, views: int, device: torch.device) -> Tensor:
    """Memory for the sums that the product leaves."""
    slots = views * (_finished(plan)[1] + plan.split_tiles * plan.splits)
    return torch.empty((slots, plan.block_m, plan.block_m), dtype=torch.float32, device=device)


def _launch_finish(
    plan: configurations.Plan, grams: Grams, terms: Terms, workspace: Tensor, precision: str
) -> None:
    """K' of both views from the sums in the workspace, and the terms."""
    finished, whole = _finished(plan)
    launch(
        gram_finish_kernel, ((whole + plan.split_tiles) * (plan.block_m // plan.strip),),
        workspace, grams, terms, counters(workspace.device, 1), grams.ptr.shape[1],
        finished, whole, plan.splits, plan.split_tiles, grams.sums_ptr.shape[0],
        BLOCK=plan.block_m, STRIP=plan.strip, PRECISION=precision,
        # At most 8 values per thread: with 16 one of these kernels spills under Triton 3.9.
        warps=max(4, plan.strip * plan.block_m // 256),
        moved=workspace.nbytes + (0 if finished else grams.ptr.nbytes),
    )  # fmt: skip


def _launch_products(
    plan: configurations.Plan,
    pair: Pair,
    grams: Grams,
    workspace: Tensor,
    precision: str,
    first_view: int,
    views: int,
) -> None:
    """Stores the full tiles, and the parts of split-K tiles in the workspace."""
    z = pair.ptr_a
    n, d = z.shape
    tma = plan.path == "tma"
    finished, whole = _finished(plan)
    sums = (whole + plan.split_tiles * plan.splits) * plan.block_m * plan.block_m * 4
    written = views * (sums + (grams.ptr[0].nbytes if finished else 0))
    launch(
        gram_kernel, (plan.full_tiles + plan.split_tiles * plan.splits, views),
        pair, tma_descriptor(z, plan.block_m, plan.block_k) if tma else None, grams, workspace,
        n, d, plan.full_tiles, plan.splits, plan.k_blocks_per_split, grams.sums_ptr.shape[0],
        first_view, meta(plan.block_m, plan.block_n, plan.block_k, precision),
        STORED=plan.path != "fused", TMA=tma, EVEN=d % plan.block_k == 0,
        FINISH=finished > 0,
        warps=plan.warps, stages=plan.stages,
        flops=views * n * n * d, moved=views * n * d * z.element_size() + written,
    )  # fmt: skip


def _multiply_by_library(hat: Tensor, grams: Grams, precision: str, view: int) -> None:
    """One view's K by torch's product, then centred and rounded."""
    n = hat.shape[0]
    matrix = library_product(hat, hat.T, precision)
    blocks = cdiv(n, DENSE_BLOCK)
    launch(
        gram_dense_kernel, (blocks, blocks), matrix, grams, n, grams.sums_ptr.shape[0],
        BLOCK=DENSE_BLOCK, VIEW=view, PRECISION=precision,
        warps=4, moved=matrix.nbytes + grams.ptr[0].nbytes * (1 + view),
    )  # fmt: skip


def library_product(left: Tensor, right: Tensor, precision: str) -> Tensor:
    """left @ right in float32 by torch, with operands of `precision`."""
    if left.is_meta:
        return left.new_empty((left.shape[0], right.shape[1]), dtype=torch.float32)
    return aten.product(left, right, precision)
