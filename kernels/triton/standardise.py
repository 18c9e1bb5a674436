"""z_hat in the operand type, materialised: for products large enough that both operands should
stream straight from memory into the tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import OPERAND_DTYPE
from . import configurations
from .arithmetic import Norm, cast, standardised, to_tf32
from .launch import addressable, cdiv, launch, round_up
from .table import OPERAND_ALIGNMENT


@triton.jit
def set_to_zero(ptr, count):
    """Stores zeros: one program, for the counters of a later kernel."""
    for first in range(0, count, 1024):
        at = first + tl.arange(0, 1024)
        tl.store(ptr + at, tl.zeros([1024], ptr.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["N", "zeros_count"])
def standardise_kernel(
    z_ptr,
    norm,
    out_ptr,
    zeros_ptr,
    N,
    D,
    stride_z,
    stride_out,
    zeros_count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROUND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """out = (z - mean) * rstd - shift; columns from D to the padded width are zero.

    norm: pointers to the vectors of a `Norm`. TRANSPOSED: out is (D, N), without padding.
    zeros_ptr: `zeros_count` counters that become zero, or None.
    """
    if zeros_ptr is not None:  # noqa: SIM102 (decided when compiled, unlike the next)
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            set_to_zero(zeros_ptr, zeros_count)
    # Rows on the first axis of the grid, the only one that may be longer than 65535.
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < D
    loaded = Norm(
        tl.load(norm.mean + columns, mask=inside, other=0.0),
        tl.load(norm.rstd + columns, mask=inside, other=0.0),
        tl.load(norm.shift + columns, mask=inside, other=0.0),
    )
    valid = (rows < N) & inside[None, :]
    x = tl.load(z_ptr + rows * stride_z + columns[None, :], mask=valid, other=0.0)
    hat = standardised(x, loaded)
    if ROUND:
        hat = to_tf32(hat)
    hat = cast(hat, out_ptr.dtype.element_ty)
    if TRANSPOSED:
        at = out_ptr + columns.to(tl.int64)[:, None] * stride_out + tl.trans(rows)
        tl.store(at, tl.trans(hat), mask=tl.trans(valid))
    else:
        at = out_ptr + rows * stride_out + columns[None, :]
        tl.store(at, hat, mask=(rows < N) & (columns < stride_out)[None, :])


def standardise(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str) -> Tensor:
    """z_hat (N, D), contiguous; the contract's primitive."""
    z = addressable(z)
    return _standardise(z, Norm(mean, rstd, shift), precision, z.shape)


def operand(z: Tensor, statistics: Tensor, precision: str, zeros: Tensor | None = None) -> Tensor:
    """z_hat (N, W) with W = D rounded up to whole blocks of the product and zeros beyond D, so that
    products need no mask and rows are aligned for TMA. `statistics`: (3, D), of this view. `zeros`:
    counters of the product, which become zero."""
    n, d = z.shape
    shape = (n, round_up(d, OPERAND_ALIGNMENT))
    return _standardise(z, Norm(*statistics.unbind(0)), precision, shape, zeros)


def transposed_operand(
    z: Tensor, statistics: Tensor, precision: str, zeros: Tensor | None = None
) -> Tensor:
    """The transpose of z_hat, (D, N), its rows aligned for TMA: what a product of Hopper takes as
    its right operand where a 32-bit type has to lie along the summed index. `zeros`: as above."""
    n, d = z.shape
    shape = (d, round_up(n, OPERAND_ALIGNMENT))
    norm = Norm(*statistics.unbind(0))
    return _standardise(z, norm, precision, shape, zeros, transposed=True)[:, :n]


def _standardise(
    z: Tensor,
    norm: Norm,
    precision: str,
    shape: tuple[int, int],
    zeros: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    n, d = z.shape
    out = torch.empty(shape, dtype=OPERAND_DTYPE[precision], device=z.device)
    config = configurations.STANDARDISE
    width = d if transposed else shape[1]
    launch(
        standardise_kernel, (cdiv(n, config.rows), cdiv(width, config.columns)),
        z, norm, out, zeros, n, d, z.stride(0), shape[1], 0 if zeros is None else zeros.numel(),
        ROWS=config.rows, COLUMNS=config.columns, ROUND=precision == "tf32", TRANSPOSED=transposed,
        warps=config.warps, moved=n * d * (z.element_size() + out.element_size()),
    )  # fmt: skip
    return out
