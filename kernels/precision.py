"""Operand and accumulation types of each precision, shared by all kernel sets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

OPERAND_DTYPE = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PRECISIONS = tuple(OPERAND_DTYPE)

# torch.backends.*.fp32_precision as values of torch.get_float32_matmul_precision.
_FLOAT32_PRECISION = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}


def gram_scale(n: int, d: int, precision: str) -> float:
    """The power of two that elements of a Gram matrix are multiplied with before they are rounded
    to operands: 1, but for float16 what keeps N * D, the largest that an element can be, below its
    largest number."""
    return 2.0 ** min(0, 15 - (n * d - 1).bit_length()) if precision == "fp16" else 1.0


def accumulation_dtype(precision: str) -> torch.dtype:
    """float64 for float64 operands, float32 for all others."""
    return torch.float64 if precision == "fp64" else torch.float32


# The modules with `fp32_precision` for matrix products; looking them up costs microseconds.
_CUDA_MATMUL, _CPU_MATMUL = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def _matmul_backend(device_type: str) -> Any:
    return _CUDA_MATMUL if device_type == "cuda" else _CPU_MATMUL


def float32_matmul_precision(device_type: str) -> str:
    """'highest', 'high' or 'medium': what float32 matrix products on a device may be computed in.

    Reads the setting of the device's own backend, which `torch.set_float32_matmul_precision` sets
    as well. `torch.get_float32_matmul_precision` raises where backends were set one by one.
    """
    setting = _FLOAT32_PRECISION[_matmul_backend(device_type).fp32_precision]
    if device_type == "cuda" and setting == "high":
        # cuBLAS has no setting for bfloat16: 'medium' differs from 'high' in the old setting alone.
        with contextlib.suppress(RuntimeError):
            return torch.get_float32_matmul_precision()
    return setting


@contextlib.contextmanager
def float32_products(setting: str, device_type: str) -> Iterator[None]:
    """Computes float32 matrix products in the body in 'ieee' or 'tf32', whatever the caller set."""
    backend = _matmul_backend(device_type)
    before = backend.fp32_precision
    if before == setting or (before == "none" and setting == "ieee"):
        yield
        return
    backend.fp32_precision = setting
    try:
        yield
    finally:
        # 'none' follows the setting of all backends, which reads the same as one of its own.
        backend.fp32_precision = "none"
        if backend.fp32_precision != before:
            backend.fp32_precision = before


def reciprocal_deviation(variance: Tensor, dtype: torch.dtype) -> Tensor:
    """variance^-1/2, as `reciprocal`."""
    return reciprocal(variance.sqrt(), dtype)


def reciprocal(deviation: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / deviation, NaN where `dtype` has no normal number for it.

    A square of float32 numbers from 1e19 on is infinite, and its reciprocal root zero: the loss
    would be D, as of independent embeddings.
    """
    result = deviation.reciprocal()
    return torch.where(result >= torch.finfo(dtype).tiny, result, math.nan)
