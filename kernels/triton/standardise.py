"""z_hat in the operand type, materialised: for products large enough that both operands should
stream straight from memory into the tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import OPERAND_DTYPE
from . import configurations
from .arithmetic import cast, standardised, to_tf32
from .launch import cdiv, launch, round_up


@triton.jit(do_not_specialize=["n"])
def standardise_kernel(
    z,
    mean,
    rstd,
    shift,
    out,
    n,
    d,
    stride,
    stride_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """out = (z - mean) * rstd - shift; columns from D to the padded width are zero."""
    # Rows on the first axis of the grid, the only one that may be longer than 65535.
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    height = (rows < n)[:, None]
    m = tl.load(mean + columns, mask=inside, other=0.0)
    r = tl.load(rstd + columns, mask=inside, other=0.0)
    s = tl.load(shift + columns, mask=inside, other=0.0)
    x = tl.load(
        z + rows[:, None] * stride + columns[None, :], mask=height & inside[None, :], other=0.0
    )
    hat = standardised(x, m, r, s)
    if ROUND:
        hat = to_tf32(hat)
    hat = cast(hat, out.dtype.element_ty)
    tl.store(
        out + rows[:, None] * stride_out + columns[None, :],
        hat,
        mask=height & (columns < stride_out)[None, :],
    )


def standardise(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str) -> Tensor:
    """z_hat (N, D), contiguous; the contract's primitive."""
    return _launch(z, mean, rstd, shift, precision, z.shape[1])


def operand(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    """z_hat (N, W) with W = D rounded up to whole blocks of the product and zeros beyond D, so that
    products need no mask and rows are aligned for bulk copies. `statistics`: the three rows of this
    view."""
    width = round_up(z.shape[1], configurations.OPERAND_ALIGNMENT)
    return _launch(z, *statistics, precision, width)


def _launch(
    z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str, width: int
) -> Tensor:
    n, d = z.shape
    out = torch.empty((n, width), dtype=OPERAND_DTYPE[precision], device=z.device)
    config = configurations.STANDARDISE
    launch(
        standardise_kernel,
        (cdiv(n, config.rows), cdiv(width, config.columns)),
        z,
        mean,
        rstd,
        shift,
        out,
        n,
        d,
        z.stride(0),
        width,
        ROWS=config.rows,
        COLUMNS=config.columns,
        ROUND=precision == "tf32",
        warps=config.warps,
        moved=n * d * (z.element_size() + out.element_size()),
    )
    return out
