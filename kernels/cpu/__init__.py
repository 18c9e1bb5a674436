"""The contract of `barlow_fast.kernels` in native C++ for CPUs: fused, multithreaded through
torch's own pool.

z_hat is never stored: rows are standardised while they are packed into cache-resident panels,
symmetric products compute half of their tiles, and the norm's backward runs on gradient panels
before they leave the cache. Each input is read once per primitive, each gradient is written once.
The sources beside this file are compiled once per instruction set (baseline, AVX2, AVX-512, AVX-512
BF16, AMX; NEON and NEON BF16 on ARM) and the best one that CPU and system allow is chosen when the
library is loaded.

Environment: BARLOW_FAST_CPU_INSTRUCTION_SET = one of `INSTRUCTION_SETS` forces a lesser one (tests,
    bug reports).
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import tiles
from ..aten import correlation_layout, gram_layout
from ..contract import GradientInputs, ViewGradients
from ..environment import choice
from ..photometry import check_arguments
from ..precision import OPERAND_DTYPE, accumulation_dtype
from .memory import POOL

__all__ = ["correlation_layout", "gram_layout"]

NAME = "cpu"
# AMX in plain C++, for tests on every machine: never chosen. Products of bf16 and tf32 alone differ
# from `baseline`.
EMULATED = "amx_bf16_emulated"
# Least first: the order of bindings.cpp.
INSTRUCTION_SETS = (
    (EMULATED, "neon", "neon_bf16")
    if platform.machine() in ("aarch64", "arm64")
    else (EMULATED, "baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")
)

# What multiplies, by instruction set and precision, where it is not the float32 units.
_TILES = {"bf16": "matrix tiles", "tf32": "matrix tiles, of two bfloat16 pieces"}
_PRODUCTS = {
    EMULATED: _TILES, "avx512_bf16": {"bf16": "bfloat16 dot products"}, "amx_bf16": _TILES
}  # fmt: skip

FOLDER = Path(__file__).parent

# Codes of `enum class Element` in contract.h.
_OPERAND = {"fp64": 0, "fp32": 1, "tf32": 4, "bf16": 2, "fp16": 3}
# Codes of `enum class Filter`.
_FILTERS = {"bilinear": 0, "bicubic": 1}


@functools.cache
def _problem() -> str | None:
    """Loads the library; None when that worked, else the reason why not."""
    libraries = [
        p for p in FOLDER.glob("*barlow_fast_cpu.*") if p.suffix in (".so", ".dylib", ".dll")
    ]
    if not libraries:
        note = FOLDER / "native_build.txt"
        reason = note.read_text().strip() if note.exists() else "not built"
        return (
            f"the native CPU kernels were not built ({reason}); install a C++17 compiler and "
            "reinstall barlow-fast "
            "with BARLOW_FAST_NATIVE=require to see the build's errors"
        )
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        return f"the native CPU kernels do not load into torch {torch.__version__}: {error}"
    wanted = choice("BARLOW_FAST_CPU_INSTRUCTION_SET", (*INSTRUCTION_SETS[1:], EMULATED))
    if wanted:
        use_instruction_set(wanted)
    return None


def require() -> None:
    """ImportError, with the reason, where the native kernels cannot run."""
    problem = _problem()
    if problem is not None:
        raise ImportError(problem)


def instruction_set() -> str:
    """The instruction set in use."""
    require()
    return INSTRUCTION_SETS[torch.ops.barlow_fast_cpu.instruction_set(-1)]


def supported_instruction_sets() -> tuple[str, ...]:
    """Those that this build has and this CPU runs, least first."""
    require()
    return INSTRUCTION_SETS[: torch.ops.barlow_fast_cpu.instruction_set_count()]


def use_instruction_set(name: str) -> None:
    """Uses a lesser instruction set from now on, process-wide.

    Raises:
        ValueError: an unknown name, or one that this CPU does not have.
    """
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"the instruction set must be one of {INSTRUCTION_SETS}, got {name!r}")
    if torch.ops.barlow_fast_cpu.instruction_set(INSTRUCTION_SETS.index(name)) < 0:
        raise ValueError(f"this CPU does not have {name!r}")


def multiplies_tf32() -> bool:
    """Whether 'tf32' is faster than 'fp32': as two pieces of bfloat16 by matrix tiles."""
    return "tf32" in _PRODUCTS.get(instruction_set(), {})


def products(precision: str) -> str:
    """What multiplies operands of a precision on the instruction set in use."""
    units = "float64 units" if precision == "fp64" else "float32 units"
    if OPERAND_DTYPE[precision].itemsize == 2:
        units += ", of rounded operands"
    return _PRODUCTS.get(instruction_set(), {}).get(precision, units)


def _rows(z: Tensor) -> Tensor:
    """z itself when its columns are contiguous, else a contiguous copy."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Small outputs. The device is stated: torch.set_default_device must not move them."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _scalars(precision: str) -> tuple[Tensor, ...]:
    """The loss and its two terms."""
    return tuple(_empty((), accumulation_dtype(precision)) for _ in range(3))


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    out = _empty((5, z_a.shape[1]), torch.float64)
    torch.ops.barlow_fast_cpu.column_moments(_rows(z_a), _rows(z_b), _OPERAND[precision], out)
    return out


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    statistics = _empty((7, moments.shape[1]), accumulation_dtype(precision))
    sums = _empty((2,), torch.float64)
    torch.ops.barlow_fast_cpu.standardisation(moments, count, eps, statistics, sums)
    return statistics, sums[None]


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    statistics = _empty((7, z_a.shape[1]), accumulation_dtype(precision))
    sums = _empty((1, 2), torch.float64)
    torch.ops.barlow_fast_cpu.statistics(
        _rows(z_a), _rows(z_b), _OPERAND[precision], eps, statistics, sums
    )
    return statistics, sums


def standardise(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str) -> Tensor:
    out = POOL.empty(tuple(z.shape), OPERAND_DTYPE[precision])
    dtype = accumulation_dtype(precision)  # which the kernel requires
    vectors = (vector.to(dtype).contiguous() for vector in (mean, rstd, shift))
    torch.ops.barlow_fast_cpu.standardise(_rows(z), *vectors, out)
    return out


def gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    grams = POOL.empty(*gram_layout(z_a.shape[0], precision))
    centres, inner = _empty((2,), grams.dtype), _empty((), torch.float64)
    torch.ops.barlow_fast_cpu.gram_pair(
        _rows(z_a), _rows(z_b), statistics, _OPERAND[precision], grams, centres, inner
    )
    return grams, centres, inner


def gram_terms(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, lambd: float, precision: str
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    grams = POOL.empty(*gram_layout(z_a.shape[0], precision))
    centres, outputs = _empty((2,), grams.dtype), _scalars(precision)
    torch.ops.barlow_fast_cpu.gram_terms(
        _rows(z_a), _rows(z_b), statistics, sums.contiguous(), lambd, _OPERAND[precision], grams,
        centres, *outputs,
    )  # fmt: skip
    return outputs, grams, centres


def gram_tiles(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    n = z.shape[0]
    side = tiles.side(n, precision)
    packed = POOL.empty((tiles.count(n, precision), side, side), accumulation_dtype(precision))
    torch.ops.barlow_fast_cpu.gram_tiles(
        _rows(z), statistics.contiguous(), _OPERAND[precision], packed
    )
    return packed


def gram_from_tiles(
    packed: Tensor, centres: Tensor, n: int, d: int, precision: str
) -> tuple[Tensor, Tensor]:
    (_, *shape), dtype = gram_layout(n, precision)
    grams = POOL.empty((packed.shape[0], *shape), dtype)
    torch.ops.barlow_fast_cpu.gram_from_tiles(
        packed.contiguous(), centres.contiguous(), _OPERAND[precision], grams
    )
    return grams, torch.zeros_like(centres)


def gram_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    (grams, _), coefficients = inputs.matrices, inputs.coefficients
    grads = _gradients(inputs)
    torch.ops.barlow_fast_cpu.gram_gradients(
        *_views(inputs), inputs.statistics, grams, inputs.grad_scale, *coefficients[:4],
        _OPERAND[inputs.precision], coefficients.dimensions or inputs.z_a.shape[1],
        coefficients.projected, *grads,
    )  # fmt: skip
    return grads


def view_moments(views: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor]:
    count, d = len(views), views[0].shape[1]
    means = _empty((count, d), torch.float64)
    comoments = POOL.empty((count, count, d), torch.float64)
    torch.ops.barlow_fast_cpu.view_moments(
        [_rows(z) for z in views], _OPERAND[precision], means, comoments
    )
    return means, comoments


def view_gradients(inputs: ViewGradients) -> tuple[Tensor, ...]:
    (n, d), statistics = inputs.views[0].shape, inputs.statistics.contiguous()
    grams = statistics.new_empty(0, n, n) if inputs.matrices is None else inputs.matrices[0]
    added = statistics.new_empty(0, d) if inputs.offsets is None else inputs.offsets.contiguous()
    grads = [
        _gradient(z, need) for z, need in zip(inputs.views, inputs.need, strict=False)
    ]  # the first views have gradients
    torch.ops.barlow_fast_cpu.view_gradients(
        [_rows(z) for z in inputs.views], statistics, grams, inputs.products,
        [number for link in inputs.links for number in link], inputs.weights.contiguous(), added,
        inputs.grad_scale, inputs.eps, _OPERAND[inputs.precision], inputs.dimensions,
        inputs.projected, grads,
    )  # fmt: skip
    return tuple(grads)


def correlation(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    d = z_a.shape[1]
    matrix = POOL.empty(*correlation_layout(d, precision))
    squares = _empty((2, d), torch.float64)
    torch.ops.barlow_fast_cpu.correlation(
        _rows(z_a), _rows(z_b), statistics, _OPERAND[precision], matrix, squares
    )
    return matrix, squares


def correlation_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    grads = _gradients(inputs)
    torch.ops.barlow_fast_cpu.correlation_gradients(
        *_views(inputs), inputs.statistics, *inputs.matrices, inputs.grad_scale,
        *inputs.coefficients[:3], _OPERAND[inputs.precision], *grads,
    )  # fmt: skip
    return grads


def terms(
    sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool, lambd: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _scalars(precision)
    torch.ops.barlow_fast_cpu.terms(
        sums.contiguous(), parts.contiguous(), divisor, diagonal_included, lambd, *outputs
    )
    return outputs


def photometric(
    crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """As `photometry.photometric`.

    Raises:
        TypeError: crops that are not uint8, another dtype than float32, bfloat16 and float16, or
            parameters, mean or std that are not floating point.
        ValueError: a shape or device that does not fit.
        RuntimeError: parameters out of range; names the row.
    """
    check_arguments(crops, parameters, mean, std, dtype, place="the CPU")
    if not crops.is_cpu:
        raise ValueError(f"crops must be on the CPU, is on {crops.device}")
    out = POOL.empty(tuple(crops.shape), dtype)
    torch.ops.barlow_fast_cpu.photometric(
        crops.contiguous(), *(x.float().contiguous() for x in (parameters, mean, std)), True, out
    )
    return out.permute(0, 3, 1, 2)


def photometric_in_thread(
    crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, out: Tensor
) -> None:
    """`photometric` of float32 parameters in the calling thread alone, for loaders that run many.

    Args:
        crops, parameters, mean, std: as for `photometric`, contiguous.
        out: (B, H, W, C) float32, bfloat16 or float16, contiguous.

    Raises:
        RuntimeError: a dtype, shape or layout that does not fit, or parameters out of range.
    """
    torch.ops.barlow_fast_cpu.photometric(crops, parameters, mean, std, False, out)


def crop_resize(image: Tensor, window: Sequence[int], interpolation: str, out: Tensor) -> None:
    """As `resizing.crop_resize`.

    Raises:
        ValueError: another interpolation than 'bicubic' and 'bilinear'.
        RuntimeError: a tensor that is not uint8, not on the CPU, of another shape, or whose rows
            are not contiguous; an `out` that overlaps `image` or itself; a window that is not
            within its image.
    """
    code = _FILTERS.get(interpolation)
    if code is None:
        raise ValueError(f"interpolation must be one of {tuple(_FILTERS)}, got {interpolation!r}")
    torch.ops.barlow_fast_cpu.crop_resize(image, window, code, out)


def _views(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    return _rows(inputs.z_a), _rows(inputs.z_b)


def _gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    need_a, need_b = inputs.need
    return _gradient(inputs.z_a, need_a), _gradient(inputs.z_b, need_b)


def _gradient(z: Tensor, need: bool) -> Tensor:
    return POOL.empty(tuple(z.shape) if need else (0,), z.dtype)
