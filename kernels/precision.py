"""Operand and accumulation types of each precision, shared by all kernel sets."""

from __future__ import annotations

import torch

OPERAND_DTYPE = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PRECISIONS = tuple(OPERAND_DTYPE)


def gram_scale(n: int, d: int, precision: str) -> float:
    """The power of two that elements of a Gram matrix are multiplied with before they are rounded
    to operands: 1, but for float16 what keeps N * D, the largest that an element can be, below its
    largest number."""
    return 2.0 ** min(0, 15 - (n * d - 1).bit_length()) if precision == "fp16" else 1.0


def accumulation_dtype(precision: str) -> torch.dtype:
    """float64 for float64 operands, float32 for all others."""
    return torch.float64 if precision == "fp64" else torch.float32
