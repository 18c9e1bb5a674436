"""The loss and its two terms from the sums of the other kernels: one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import total
from .launch import launch


@triton.jit(do_not_specialize=["sums_count", "parts_count", "divisor", "diagonal_included"])
def terms_kernel(
    sums_ptr,
    parts_ptr,
    loss_ptr,
    on_diagonal_ptr,
    off_diagonal_ptr,
    sums_count,
    parts_count,
    divisor,
    diagonal_included,
    lambd,
    BLOCK: tl.constexpr,
):
    """on = sum of column 0 of `sums`; off = sum(parts) / divisor - diagonal_included * sum of
    column 1."""
    index = tl.arange(0, BLOCK)
    on = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, sums_count, BLOCK):
        mask = start + index < sums_count
        on += tl.load(sums_ptr + (start + index) * 4, mask=mask, other=0.0)
        squares += tl.load(sums_ptr + (start + index) * 4 + 1, mask=mask, other=0.0)
    on_diagonal = tl.sum(on, axis=0)
    # Divided in float64: a float32 factor would round before the subtraction that nearly cancels.
    off_diagonal = total(parts_ptr, parts_count, 1, BLOCK) / divisor.to(tl.float64)
    off_diagonal -= diagonal_included * tl.sum(squares, axis=0)
    tl.store(on_diagonal_ptr, on_diagonal.to(tl.float32))
    tl.store(off_diagonal_ptr, off_diagonal.to(tl.float32))
    tl.store(loss_ptr, (on_diagonal + lambd * off_diagonal).to(tl.float32))


def terms(
    sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool, lambd: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal), float32 scalars; the contract's primitive."""
    outputs = tuple(torch.empty((), dtype=torch.float32, device=sums.device) for _ in range(3))
    launch(
        terms_kernel, (1,), sums, parts, *outputs, sums.shape[0], parts.numel(), divisor,
        int(diagonal_included), float(lambd), BLOCK=1024, warps=4, moved=sums.nbytes + parts.nbytes,
    )  # fmt: skip
    return outputs
