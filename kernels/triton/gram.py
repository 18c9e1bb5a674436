"""The symmetric Gram pair: K_a and K_b by the tiles on and below the diagonal, and <K_a, K_b>.

`gram_kernel` multiplies; a tile that one program sums whole is finished by it (*whole* tiles), the
tiles of the last, incomplete wave are split over D instead so that they fill the device too
(*split* tiles), and `gram_finish_kernel` adds their parts in a fixed order. Small N
has split tiles only, and there both views run in one launch from the raw embeddings, standardised
on their way into the product.

What is stored is K' = scale (K - c I) in the operand type, which is what the gradient multiplies
with: c is the mean of K's diagonal, known from the statistics before any product
(kernels/README.md, Gram centring), and scale is a power of two that keeps float16 in range.
The inner product is taken of the float32 sums, plus the part that c leaves out.

For matrices that are sums over several devices, the parts of split tiles are what leaves this set
(`gram_tiles`), and `gram_unpack_kernel` makes K' of what comes back (`gram_from_tiles`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aten, tiles
from ..precision import OPERAND_DTYPE, gram_scale
from . import configurations
from .arithmetic import (
    cast,
    halves,
    multiply,
    standardised,
    stored,
    to_operand,
    to_tf32,
    total,
)
from .launch import cdiv, described, device_of, launch, round_up
from .standardise import operand

DENSE_BLOCK = 64


@triton.jit
def triangle(tile):
    """(row, column) of a tile, counted row by row in the lower triangle."""
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # float32 may be one off in either direction.
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    return row, tile - row * (row + 1) // 2


@triton.jit
def _operand(
    z,
    at,
    columns,
    d,
    mean,
    rstd,
    shift,
    PRECISION: tl.constexpr,
    STORED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A block of z_hat: loaded as it is when STORED, else standardised here."""
    if STORED:
        y = stored(tl.load(z + at + columns[None, :]))
    elif EVEN:
        x = standardised(
            tl.load(z + at + columns[None, :]),
            tl.load(mean + columns),
            tl.load(rstd + columns),
            tl.load(shift + columns),
        )
        y = to_operand(x, PRECISION)
    else:
        inside = columns < d
        x = standardised(
            tl.load(z + at + columns[None, :], mask=inside[None, :], other=0.0),
            tl.load(mean + columns, mask=inside, other=0.0),
            tl.load(rstd + columns, mask=inside, other=0.0),
            tl.load(shift + columns, mask=inside, other=0.0),
        )
        y = to_operand(x, PRECISION)
    return y


@triton.jit
def _store_pair(gram, value, rows, columns, n, width, centre, scale, mirror, ROUND: tl.constexpr):
    """Stores scale (value - centre I) at (rows, columns) and, for tiles off the diagonal, at its
    mirror image. The padding beyond column n is zero."""
    on_diagonal = rows[:, None] == columns[None, :]
    valid = (rows < n)[:, None] & (columns < n)[None, :]
    x = tl.where(valid, (value - tl.where(on_diagonal, centre, 0.0)) * scale, 0.0)
    if ROUND:
        x = to_tf32(x)
    x = cast(x, gram.dtype.element_ty)
    inside = (rows < n)[:, None] & (columns < width)[None, :]
    tl.store(gram + rows.to(tl.int64)[:, None] * width + columns[None, :], x, mask=inside)
    if mirror:
        mirrored = (columns < n)[:, None] & (rows < width)[None, :]
        at = gram + columns.to(tl.int64)[:, None] * width + rows[None, :]
        tl.store(at, tl.trans(x), mask=mirrored)


@triton.jit
def _stored(gram, rows, columns, n, width, centre, scale):
    """A tile of K as the first view stored it, with its centre put back."""
    inside = (rows < n)[:, None] & (columns < n)[None, :]
    at = gram + rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32) / scale
    return value + tl.where(rows[:, None] == columns[None, :], centre, 0.0)


@triton.jit
def _inner(value_a, value_b, rows, columns, n, weight):
    """sum of value_a * value_b over the valid part of a tile, in float64; rows are summed in
    float32."""
    valid = (rows < n)[:, None] & (columns < n)[None, :]
    products = tl.where(valid, value_a * value_b, 0.0)
    return tl.sum(tl.sum(products, axis=1).to(tl.float64), axis=0) * weight


@triton.jit(do_not_specialize=["n", "whole", "splits", "depth", "sums_count", "first_view"])
def gram_kernel(
    z_a,
    z_b,
    statistics,
    sums,
    grams,
    centres,
    inner,
    workspace,
    n,
    d,
    stride_a,
    stride_b,
    width,
    whole,
    splits,
    depth,
    sums_count,
    first_view,
    scale,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    STORED: tl.constexpr,
    BULK: tl.constexpr,
    EVEN: tl.constexpr,
    FINISH: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One tile of one view's K, or one part of the sum over D of a split tile.

    z_a, z_b: (N, D) embeddings, or z_hat as `operand` lays it out when STORED (then D is its
    padded width), or with BULK a descriptor of it, for the bulk copy engine of Hopper and later.
    FINISH: there are whole tiles to finish: with `first_view` = 0 they write K'_a,
    with 1 they write K'_b and the inner product with the K'_a that is there.
    CHUNK: the sum over D is taken in chunks of so many columns that are added in float32, because
    the accumulators of tensor cores truncate; 0 for one chunk.
    workspace: (views, split tiles, splits, BLOCK, BLOCK) float32; what lies beyond row and column N
    means nothing.
    """
    program = tl.program_id(0)
    launched_view = tl.program_id(1)
    view = first_view + launched_view
    is_whole = program < whole
    rest = program - whole
    tile = tl.where(is_whole, program, whole + rest // splits)
    part = tl.where(is_whole, 0, rest % splits)
    # In blocks, so that the compiler knows where loads are aligned.
    first = part * depth * BLOCK_K
    last = tl.where(is_whole, d, tl.minimum(first + depth * BLOCK_K, d))
    i, j = triangle(tile)
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)

    value = tl.zeros([BLOCK, BLOCK], tl.float32)
    if BULK:
        for k in range(first, last, BLOCK_K):
            x = stored(z_a.load([i * BLOCK, k]))
            y = stored(z_a.load([j * BLOCK, k]))
            value = multiply(x, tl.trans(y), value, PRECISION)
    else:
        # Selected, not branched: a branch would hide the pointers' alignment from the compiler.
        z = tl.where(view == 0, z_a, z_b)
        stride = tl.where(view == 0, stride_a, stride_b).to(tl.int64)
        mean = statistics + view * 3 * d
        rstd = mean + d
        shift = rstd + d
        # Rows beyond the last are copies of it: no mask in the loop, and nothing of them is stored.
        left = tl.minimum(rows, n - 1).to(tl.int64)[:, None] * stride
        right = tl.minimum(columns, n - 1).to(tl.int64)[:, None] * stride
        if CHUNK == 0:
            for k in range(first, last, BLOCK_K):
                depths = k + tl.arange(0, BLOCK_K)
                x = _operand(z, left, depths, d, mean, rstd, shift, PRECISION, STORED, EVEN)
                y = _operand(z, right, depths, d, mean, rstd, shift, PRECISION, STORED, EVEN)
                value = multiply(x, tl.trans(y), value, PRECISION)
        else:
            for c in range(first, last, CHUNK):
                chunk = tl.zeros([BLOCK, BLOCK], tl.float32)
                for k in range(c, tl.minimum(c + CHUNK, last), BLOCK_K):
                    depths = k + tl.arange(0, BLOCK_K)
                    x = _operand(z, left, depths, d, mean, rstd, shift, PRECISION, STORED, EVEN)
                    y = _operand(z, right, depths, d, mean, rstd, shift, PRECISION, STORED, EVEN)
                    chunk = multiply(x, tl.trans(y), chunk, PRECISION)
                value += chunk

    if FINISH:  # noqa: SIM102 (decided when compiled, unlike the next)
        if is_whole:
            centre = total(sums + 2 + view, sums_count, 4).to(tl.float32)
            gram = grams + view * n.to(tl.int64) * width
            if program == 0:
                tl.store(centres + view, centre)
            weight = tl.where(i == j, 1.0, 2.0).to(tl.float64)
            left_half, right_half = halves(value, BLOCK, BLOCK)
            products = tl.zeros([], tl.float64)
            for half in tl.static_range(2):
                block = left_half if half == 0 else right_half
                across = j * BLOCK + half * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
                _store_pair(gram, block, rows, across, n, width, centre, scale, i != j, ROUND)
                if view == 1:
                    first_block = _stored(grams, rows, across, n, width, tl.load(centres), scale)
                    products += _inner(first_block, block, rows, across, n, weight)
            if view == 1:
                tl.store(inner + tile, products)
    if not is_whole:
        slot = launched_view * (tl.num_programs(0) - whole) + rest
        local = tl.arange(0, BLOCK)
        at = workspace + slot.to(tl.int64) * BLOCK * BLOCK
        tl.store(at + local[:, None] * BLOCK + local[None, :], value)


@triton.jit(do_not_specialize=["n", "whole", "splits", "sums_count"])
def gram_finish_kernel(
    workspace,
    sums,
    grams,
    centres,
    inner,
    n,
    width,
    whole,
    splits,
    tiles,
    sums_count,
    scale,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
    VIEWS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Adds the parts of STRIP rows of a split tile, in order; stores K' and the inner product.

    VIEWS: 'both', or 'first' and 'second' where the views are multiplied one after the other and
    the second takes the first from memory.
    """
    STRIPS: tl.constexpr = BLOCK // STRIP
    tile = tl.program_id(0) // STRIPS
    strip = tl.program_id(0) % STRIPS
    i, j = triangle(whole + tile)
    local_rows = strip * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, BLOCK)
    rows = i * BLOCK + local_rows
    columns = j * BLOCK + local_columns
    offsets = local_rows[:, None] * BLOCK + local_columns[None, :]
    # A strip of a tile on the diagonal holds both halves of it, any other tile stands for two.
    weight = tl.where(i == j, 1.0, 2.0).to(tl.float64)

    at = workspace + (tile * splits).to(tl.int64) * BLOCK * BLOCK + offsets
    value = tl.zeros([STRIP, BLOCK], tl.float32)
    second = tl.zeros([STRIP, BLOCK], tl.float32)
    jump = (tiles * splits).to(tl.int64) * BLOCK * BLOCK
    for part in range(splits):
        value += tl.load(at + part * BLOCK * BLOCK)
        if VIEWS == "both":
            second += tl.load(at + jump + part * BLOCK * BLOCK)
    first_view = 1 if VIEWS == "second" else 0
    centre = total(sums + 2 + first_view, sums_count, 4).to(tl.float32)
    gram = grams + first_view * n.to(tl.int64) * width
    _store_pair(gram, value, rows, columns, n, width, centre, scale, i != j, ROUND)
    if tl.program_id(0) == 0:
        tl.store(centres + first_view, centre)
    out = inner + whole + tl.program_id(0)
    if VIEWS == "both":
        centre = total(sums + 3, sums_count, 4).to(tl.float32)
        gram = grams + n.to(tl.int64) * width
        _store_pair(gram, second, rows, columns, n, width, centre, scale, i != j, ROUND)
        if tl.program_id(0) == 0:
            tl.store(centres + 1, centre)
        tl.store(out, _inner(value, second, rows, columns, n, weight))
    elif VIEWS == "second":
        first_value = _stored(grams, rows, columns, n, width, tl.load(centres), scale)
        tl.store(out, _inner(first_value, value, rows, columns, n, weight))


@triton.jit(do_not_specialize=["n", "sums_count"])
def gram_dense_kernel(
    matrix,
    sums,
    grams,
    centres,
    inner,
    n,
    width,
    sums_count,
    scale,
    BLOCK: tl.constexpr,
    VIEW: tl.constexpr,
    ROUND: tl.constexpr,
):
    """K' of one view from the whole K in float32; the second view also makes the inner product."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n)[:, None] & (columns < n)[None, :]
    at = rows.to(tl.int64)[:, None] * n + columns[None, :]
    value = tl.load(matrix + at, mask=inside, other=0.0)
    centre = total(sums + 2 + VIEW, sums_count, 4)
    gram = grams + VIEW * n.to(tl.int64) * width
    _store_pair(gram, value, rows, columns, n, width, centre.to(tl.float32), scale, False, ROUND)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if program == 0:
        tl.store(centres + VIEW, centre.to(tl.float32))
    if VIEW == 1:
        first = _stored(grams, rows, columns, n, width, tl.load(centres), scale)
        weight = tl.full([], 1.0, tl.float64)
        tl.store(inner + program, _inner(first, value, rows, columns, n, weight))


@triton.jit(do_not_specialize=["n", "tiles"])
def gram_unpack_kernel(
    packed,
    grams,
    n,
    width,
    tiles,
    scale,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
    ROUND: tl.constexpr,
):
    """K' of both views from STRIP rows of a tile that is centred already.

    packed: (2, tiles, BLOCK, BLOCK).
    """
    STRIPS: tl.constexpr = BLOCK // STRIP
    tile = tl.program_id(0) // STRIPS
    local_rows = tl.program_id(0) % STRIPS * STRIP + tl.arange(0, STRIP)
    local_columns = tl.arange(0, BLOCK)
    view = tl.program_id(1)
    i, j = triangle(tile)
    at = packed + (view * tiles + tile).to(tl.int64) * BLOCK * BLOCK
    value = tl.load(at + local_rows[:, None] * BLOCK + local_columns[None, :]).to(tl.float32)
    gram = grams + view * n.to(tl.int64) * width
    rows, columns = i * BLOCK + local_rows, j * BLOCK + local_columns
    _store_pair(gram, value, rows, columns, n, width, 0.0, scale, i != j, ROUND)


def layout(n: int, precision: str) -> tuple[tuple[int, int], torch.dtype]:
    """Shape and dtype of a stored K': rows are padded with zeros to whole blocks of a product."""
    return (n, round_up(n, configurations.SUM_ALIGNMENT)), OPERAND_DTYPE[precision]


def gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(grams, centres, inner): the contract's primitive.

    grams: (2, N, W) as `layout` says. centres: (2,) float32, the c that K' lacks. inner: float64
    parts of <K_a, K_b>.
    """
    n, d = z_a.shape
    config = configurations.gram(device_of(z_a), n, d, z_a.dtype, precision)
    shape, dtype = layout(n, precision)
    grams = torch.empty((2, *shape), dtype=dtype, device=z_a.device)
    centres = torch.empty(2, dtype=torch.float32, device=z_a.device)
    strips = config.block // config.strip
    blocks = cdiv(n, DENSE_BLOCK) ** 2
    parts = blocks if config.path == "cublas" else config.whole + config.split * strips
    inner = torch.empty(parts, dtype=torch.float64, device=z_a.device)
    outputs = (grams, centres, inner)
    if config.path != "fused":
        for view, z in enumerate((z_a, z_b)):
            hat = operand(z, statistics[3 * view : 3 * view + 3], precision)
            hat = hat[:, : round_up(d, configurations.SUM_ALIGNMENT)]
            if config.path == "cublas":
                _multiply_by_library(hat, sums, outputs, d, precision, view)
            else:
                _multiply(config, hat, hat, statistics, sums, outputs, n, precision, view, 1)
            del hat  # its memory serves the other view
    else:
        _multiply(config, z_a, z_b, statistics, sums, outputs, n, precision, 0, 2)
    return outputs


def gram_tiles(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    """(T, B, B) float32; the contract's primitive."""
    n, d = z.shape
    config = configurations.gram(device_of(z), n, d, z.dtype, precision, packed=True)
    if config.path != "fused":
        z = operand(z, statistics, precision)[:, : round_up(d, configurations.SUM_ALIGNMENT)]
        if config.path == "cublas":
            return tiles.pack(library_product(z, z.T, precision), precision)
    workspace = _workspace(config, 1, z.device)
    # What finishes tiles has nothing to do: its arguments need the right types only.
    nothing = workspace.view(torch.float64)
    outputs = (workspace.view(OPERAND_DTYPE[precision]), workspace, nothing)
    width = layout(n, precision)[0][1]
    _launch_products(
        config, z, z, statistics, nothing, outputs, workspace, width, n, precision, 0, 1
    )
    parts = workspace.view(config.split, config.splits, config.block, config.block)
    packed = parts.sum(1) if config.splits > 1 else workspace
    rest = n % config.block
    if rest:
        # Not in the kernel: its accumulator leaves no registers for a mask.
        packed[-cdiv(n, config.block) :, rest:].zero_()
        packed[-1, :, rest:].zero_()
    return packed


def gram_from_tiles(
    packed: Tensor, centres: Tensor, n: int, d: int, precision: str
) -> tuple[Tensor, Tensor]:
    """(grams, centres); the contract's primitive."""
    shape, dtype = layout(n, precision)
    grams = torch.empty((2, *shape), dtype=dtype, device=packed.device)
    _, count, block, _ = packed.shape
    strip = configurations.UNPACK_STRIP
    launch(
        gram_unpack_kernel,
        (count * (block // strip), 2),
        packed,
        grams,
        n,
        shape[1],
        count,
        gram_scale(n, d, precision),
        BLOCK=block,
        STRIP=strip,
        ROUND=precision == "tf32",
        warps=4,
        moved=packed.nbytes + grams.nbytes,
    )
    return grams, centres.to(torch.float32)


def _multiply_by_library(
    hat: Tensor,
    sums: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    d: int,
    precision: str,
    view: int,
) -> None:
    """One view's K by torch's product, all of it; then centred and rounded."""
    grams, centres, inner = outputs
    n = hat.shape[0]
    matrix = library_product(hat, hat.T, precision)
    blocks = cdiv(n, DENSE_BLOCK)
    launch(
        gram_dense_kernel,
        (blocks, blocks),
        matrix,
        sums,
        grams,
        centres,
        inner,
        n,
        grams.shape[2],
        sums.shape[0],
        gram_scale(n, d, precision),
        BLOCK=DENSE_BLOCK,
        VIEW=view,
        ROUND=precision == "tf32",
        warps=4,
        moved=matrix.nbytes + grams[0].nbytes * (1 + view),
    )


def library_product(left: Tensor, right: Tensor, precision: str) -> Tensor:
    """left @ right in float32 by torch, with operands of `precision`."""
    if left.is_meta:
        return left.new_empty((left.shape[0], right.shape[1]), dtype=torch.float32)
    return aten.product(left, right, precision)


def _multiply(
    config: configurations.Gram,
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    sums: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    n: int,
    precision: str,
    first_view: int,
    views: int,
) -> None:
    """The products of one view or of both, and their split tiles' sums."""
    grams, centres, inner = outputs
    width = grams.shape[2]
    workspace = _workspace(config, views, z_a.device)
    _launch_products(
        config, z_a, z_b, statistics, sums, outputs, workspace, width, n, precision, first_view,
        views,
    )  # fmt: skip
    if config.split:
        launch(
            gram_finish_kernel,
            (config.split * (config.block // config.strip),),
            workspace,
            sums,
            grams,
            centres,
            inner,
            n,
            width,
            config.whole,
            config.splits,
            config.split,
            sums.shape[0],
            gram_scale(n, statistics.shape[1], precision),
            BLOCK=config.block,
            STRIP=config.strip,
            VIEWS="both" if views == 2 else ("first", "second")[first_view],
            ROUND=precision == "tf32",
            # At most 32 values per thread: with 64 some of these kernels spill under Triton 3.8.
            warps=max(4, config.strip * config.block // 1024),
            moved=workspace.nbytes + (0 if config.whole else views * grams[0].nbytes),
        )


def _workspace(config: configurations.Gram, views: int, device: torch.device) -> Tensor:
    """Memory for the parts of the split tiles."""
    slots = views * config.split * config.splits
    return torch.empty((slots, config.block, config.block), dtype=torch.float32, device=device)


def _launch_products(
    config: configurations.Gram,
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    sums: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    workspace: Tensor,
    width: int,
    n: int,
    precision: str,
    first_view: int,
    views: int,
) -> None:
    """Whole tiles to their place, the parts of split ones to the workspace."""
    d = z_a.shape[1]
    whole_bytes = views * n * width * OPERAND_DTYPE[precision].itemsize if config.whole else 0
    bulk = config.path == "bulk"
    launch(
        gram_kernel,
        (config.whole + config.split * config.splits, views),
        described(z_a, config.block, config.block_k) if bulk else z_a,
        z_b,
        statistics,
        sums,
        *outputs,
        workspace,
        n,
        d,
        z_a.stride(0),
        z_b.stride(0),
        width,
        config.whole,
        config.splits,
        config.depth,
        sums.shape[0],
        first_view,
        gram_scale(n, statistics.shape[1], precision),
        BLOCK=config.block,
        BLOCK_K=config.block_k,
        CHUNK=config.chunk,
        PRECISION=precision,
        STORED=config.path != "fused",
        BULK=bulk,
        EVEN=d % config.block_k == 0,
        FINISH=config.whole > 0,
        ROUND=precision == "tf32",
        warps=config.warps,
        stages=config.stages,
        flops=views * n * n * d,
        moved=views * n * d * z_a.element_size() + (whole_bytes or workspace.nbytes),
    )
