"""What types data travel in, and how they are packed for it.

Everything travels as it is, except under half precision: there the matrices, float32 embeddings and
their gradients are rounded to the operand type, as autocast would round them before their products.
A column of embeddings whose mean is far larger than its deviation would not survive that, so
embeddings are centred and scaled by their own rank's moments, which travel beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import KernelSet
from ..kernels.precision import OPERAND_DTYPE, accumulation_dtype
from . import slices

HALF = ("bf16", "fp16")


def embedding_dtype(dtype: torch.dtype, precision: str) -> torch.dtype:
    return OPERAND_DTYPE[precision] if precision in HALF and dtype.itemsize > 2 else dtype


def gradient_dtype(dtype: torch.dtype, precision: str, statistics: str) -> torch.dtype:
    """Gradients have no known range: what float16 cannot hold stays float32. Under local statistics
    that holds for float16 embeddings' too, whose norm is differentiated only where they arrive."""
    if dtype == torch.float16 and statistics == "local":
        return torch.float32
    return torch.bfloat16 if precision == "bf16" and dtype.itemsize > 2 else dtype


def matrix_dtype(precision: str) -> torch.dtype:
    """float64, float32 or the half type of the operands."""
    return OPERAND_DTYPE[precision]


def spread(moments: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, deviation) (..., 2, D) float64 of both views from (..., 5, D) moments of `counts`
    samples; the deviation of a constant column is 1."""
    variance = moments[..., 2:4, :] / counts.clamp_min(1)
    return moments[..., 0:2, :], torch.where(variance > 0, variance.sqrt(), 1.0)


def encode(
    kernels: KernelSet, z: Tensor, mean: Tensor, deviation: Tensor, precision: str
) -> Tensor:
    """(z - mean) / deviation in the operand type; `decode` undoes it but for the rounding."""
    wide = accumulation_dtype(precision)  # of the statistics that kernels take
    rounded = mean.to(wide)
    rstd, shift = 1 / deviation, (mean - rounded) / deviation
    return kernels.standardise(z, rounded, rstd.to(wide), shift.to(wide), precision)


def decode(
    encoded: Tensor, mean: Tensor, deviation: Tensor, samples: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """(N, D) embeddings of `dtype` from those of all ranks, each with its (W, D) mean and
    deviation."""
    z = encoded.to(dtype)
    for block, m, s in zip(
        z.split(list(samples)), mean.to(dtype), deviation.to(dtype), strict=True
    ):
        block.mul_(s).add_(m)
    return z


def by_columns(x: Tensor, ranks: int) -> Tensor:
    """(rows, D) cut into each rank's columns, one contiguous piece after the other, flat."""
    rows, d = x.shape
    flat = x.new_empty(x.numel())
    for begin, end in slices.columns(d, ranks):
        piece = flat[rows * begin : rows * end]
        piece.view(rows, end - begin).copy_(x[:, begin:end])
    return flat


def from_columns(flat: Tensor, rows: int, d: int, ranks: int) -> Tensor:
    """(rows, D) from each rank's columns: undoes `by_columns`."""
    widths = slices.widths(d, ranks)
    pieces = flat.split([rows * width for width in widths])
    return torch.cat([p.view(rows, w) for p, w in zip(pieces, widths, strict=True)], dim=1)


def to_operand(x: Tensor, precision: str) -> Tensor:
    """Rounded to the operand type; TF32, which tensor cores would cut off, to nearest."""
    x = x.to(OPERAND_DTYPE[precision])
    if precision == "tf32" and x.is_cuda:
        bits = x.view(torch.int32)
        x = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return x
