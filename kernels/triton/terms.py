"""The loss and its two terms from the sums of the other kernels: by one program, or by the last
program of a kernel whose sums are the parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import total
from .launch import launch

BLOCK = tl.constexpr(1024)


class Terms(NamedTuple):
    """Where the loss and its terms are stored, float32, and the weight of the second term."""

    loss_ptr: Any
    on_diagonal_ptr: Any
    off_diagonal_ptr: Any
    lambd: Any


@triton.jit
def store_terms(terms, sums_ptr, parts_ptr, sums_count, parts_count, divisor, diagonal_included):
    """on = sum of column 0 of `sums`; off = sum(parts) / divisor - diagonal_included * sum of
    column 1."""
    on_diagonal = total(sums_ptr, sums_count, 4, BLOCK)
    # Divided in float64: a float32 factor would round before the subtraction that nearly cancels.
    off_diagonal = total(parts_ptr, parts_count, 1, BLOCK) / divisor
    off_diagonal -= diagonal_included * total(sums_ptr + 1, sums_count, 4, BLOCK)
    tl.store(terms.on_diagonal_ptr, on_diagonal.to(tl.float32))
    tl.store(terms.off_diagonal_ptr, off_diagonal.to(tl.float32))
    tl.store(terms.loss_ptr, (on_diagonal + terms.lambd * off_diagonal).to(tl.float32))


@triton.jit(do_not_specialize=["sums_count", "parts_count", "divisor", "diagonal_included"])
def terms_kernel(
    sums_ptr, parts_ptr, terms, sums_count, parts_count, divisor, diagonal_included
):  # fmt: skip
    """`store_terms` by itself."""
    store_terms(
        terms, sums_ptr, parts_ptr, sums_count, parts_count, divisor.to(tl.float64),
        diagonal_included,
    )  # fmt: skip


def outputs_of_terms(lambd: float, device: torch.device) -> Terms:
    """Memory for the terms."""
    outputs = (torch.empty((), dtype=torch.float32, device=device) for _ in range(3))
    return Terms(*outputs, float(lambd))


def launch_terms(
    outputs: Terms, sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool
) -> None:
    """Stores the terms."""
    launch(
        terms_kernel, (1,), sums, parts, outputs, sums.shape[0], parts.numel(), divisor,
        int(diagonal_included), warps=4, moved=sums.nbytes + parts.nbytes,
    )  # fmt: skip


def terms(
    sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool, lambd: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal), float32 scalars; the contract's primitive."""
    outputs = outputs_of_terms(lambd, sums.device)
    launch_terms(outputs, sums, parts, divisor, diagonal_included)
    return outputs[:3]
