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


def accumulation_dtype(precision: str) -> torch.dtype:
    """float64 for float64 operands, float32 for all others."""
    return torch.float64 if precision == "fp64" else torch.float32
