"""The contract of `barlow_fast.kernels` in Triton, for CUDA devices of compute capability 8.0 on.

One file per primitive. Sums over columns, splits and tiles run in a fixed order and nothing uses
floating-point atomics, so runs are bitwise equal. Nothing waits for the device, so a step can be
captured in a CUDA graph. There is no fp64: `load` returns the plain-torch set for it.

Real numbers become Python floats here: Triton compiles another kernel for an integer, one more for
the integer 1, and accepts no scalar of NumPy.
"""

from __future__ import annotations

import torch

from .arithmetic import INTERPRETED
from .correlation import correlation, correlation_layout
from .correlation_gradients import correlation_gradients
from .gram import gram_from_tiles, gram_layout, gram_pair, gram_terms, gram_tiles
from .gram_gradients import gram_gradients
from .moments import column_moments, standardisation, statistics
from .photometric import photometric
from .standardise import standardise
from .terms import terms
from .view_gradients import view_gradients
from .view_moments import view_moments

__all__ = [
    "column_moments",
    "correlation",
    "correlation_gradients",
    "correlation_layout",
    "gram_from_tiles",
    "gram_gradients",
    "gram_layout",
    "gram_pair",
    "gram_terms",
    "gram_tiles",
    "photometric",
    "standardisation",
    "standardise",
    "statistics",
    "terms",
    "view_gradients",
    "view_moments",
]

NAME = "triton"
OLDEST_CAPABILITY = (8, 0)


def require(device: torch.device) -> None:
    """ImportError, with the reason, where these kernels cannot run."""
    if device.type == "cpu" and INTERPRETED.value:
        return
    if device.type != "cuda":
        raise ImportError(f"the triton kernels take CUDA tensors, these are on {device}")
    if torch.version.hip is not None:
        raise ImportError("the triton kernels are written for NVIDIA devices")
    if not torch.cuda.is_available():
        raise ImportError("no CUDA device is available")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        raise ImportError(
            f"the triton kernels need compute capability 8.0 or newer, {device} has "
            f"{capability[0]}.{capability[1]}"
        )
