"""The contract of `barlow_fast.kernels` in Triton, for CUDA devices of compute capability 8.0 on.

One file per primitive. Sums over columns, splits and tiles run in a fixed order and nothing uses
floating-point atomics, so runs are bitwise equal; nothing waits for the device, so a step can be
captured in a CUDA graph. float64 has no tensor-core path in Triton that would beat cuBLAS: the
precision `fp64` runs the plain-torch set.

Real numbers become Python floats here: Triton makes another kernel of an integer, one more of the
integer 1, and takes no scalar of NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import aten
from ..contract import Coefficients
from . import correlation as _correlation
from . import correlation_gradients as _correlation_gradients
from . import gram as _gram
from . import gram_gradients as _gram_gradients
from . import moments as _moments
from . import photometric as _photometric
from . import standardise as _standardise
from . import terms as _terms
from .arithmetic import INTERPRETED

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


# Offsets within a block are 32-bit, and blocks have up to 512 rows (arithmetic.py).
LARGEST_STRIDE = 2**31 // 512 - 1


def _rows(z: Tensor) -> Tensor:
    """z itself when its columns are contiguous and its rows not absurdly far apart, else a
    contiguous copy.

    Raises:
        ValueError: more dimensions than the kernels can address.
    """
    if z.shape[1] > LARGEST_STRIDE:
        raise ValueError(
            f"the triton kernels take up to {LARGEST_STRIDE} embedding dimensions, got "
            f"{z.shape[1]}; backend='aten' takes any number"
        )
    columns_contiguous = z.stride(1) == 1 or z.shape[1] == 1
    return z if columns_contiguous and z.stride(0) <= LARGEST_STRIDE else z.contiguous()


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    if precision == "fp64":
        return aten.column_moments(z_a, z_b, precision)
    return _moments.column_moments(_rows(z_a), _rows(z_b), precision)


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    if precision == "fp64":
        return aten.standardisation(moments, count, eps, precision)
    return _moments.standardisation(moments, count, float(eps), precision)


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    if precision == "fp64":
        return aten.statistics(z_a, z_b, eps, precision)
    return _moments.statistics(_rows(z_a), _rows(z_b), float(eps), precision)


def standardise(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str) -> Tensor:
    if precision == "fp64":
        return aten.standardise(z, mean, rstd, shift, precision)
    return _standardise.standardise(_rows(z), mean, rstd, shift, precision)


def gram_layout(n: int, precision: str) -> tuple[tuple[int, ...], torch.dtype]:
    if precision == "fp64":
        return aten.gram_layout(n, precision)
    shape, dtype = _gram.layout(n, precision)
    return (2, *shape), dtype


def gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    if precision == "fp64":
        return aten.gram_pair(z_a, z_b, statistics, sums, precision)
    return _gram.gram_pair(_rows(z_a), _rows(z_b), statistics, sums, precision)


def gram_tiles(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    if precision == "fp64":
        return aten.gram_tiles(z, statistics, precision)
    return _gram.gram_tiles(_rows(z), statistics.contiguous(), precision)


def gram_from_tiles(
    packed: Tensor, centres: Tensor, n: int, d: int, precision: str
) -> tuple[Tensor, Tensor]:
    if precision == "fp64":
        return aten.gram_from_tiles(packed, centres, n, d, precision)
    return _gram.gram_from_tiles(packed.contiguous(), centres, n, d, precision)


def gram_gradients(
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    grams: Tensor,
    centres: Tensor,
    grad_scale: Tensor,
    coefficients: Coefficients,
    precision: str,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    kernels = aten if precision == "fp64" else _gram_gradients
    return kernels.gram_gradients(
        _rows(z_a), _rows(z_b), statistics, grams, centres, grad_scale, _floats(coefficients),
        precision, need,
    )  # fmt: skip


def correlation_layout(d: int, precision: str) -> tuple[tuple[int, ...], torch.dtype]:
    if precision == "fp64":
        return aten.correlation_layout(d, precision)
    return _correlation.layout(d, precision)


def correlation(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    if precision == "fp64":
        return aten.correlation(z_a, z_b, statistics, precision)
    return _correlation.correlation(_rows(z_a), _rows(z_b), statistics, precision)


def correlation_gradients(
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    matrix: Tensor,
    squares: Tensor,
    grad_scale: Tensor,
    coefficients: Coefficients,
    precision: str,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    kernels = aten if precision == "fp64" else _correlation_gradients
    return kernels.correlation_gradients(
        _rows(z_a), _rows(z_b), statistics, matrix, squares, grad_scale, _floats(coefficients),
        precision, need,
    )  # fmt: skip


def _floats(coefficients: Coefficients) -> Coefficients:
    product, slope, offset, eps, *rest = coefficients
    return Coefficients(float(product), float(slope), float(offset), float(eps), *rest)


def terms(
    sums: Tensor,
    parts: Tensor,
    divisor: int,
    diagonal_included: bool,
    lambd: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = aten if precision == "fp64" else _terms
    return kernels.terms(sums, parts, divisor, diagonal_included, float(lambd), precision)


def photometric(
    crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    return _photometric.photometric(crops, parameters, mean, std, dtype)
