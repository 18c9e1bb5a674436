"""Shapes, dtype and device -> form, precision and kernel set. Pure: no tensor is touched, nothing
is changed.
"""

from __future__ import annotations

import functools

import torch

from .kernels import KERNEL_SETS, why_unusable

AUTOCAST_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MATMUL_PRECISION = {"highest": "fp32", "high": "tf32", "medium": "bf16"}

# The sets that compute only half of the tiles of a symmetric product.
SYMMETRIC_SETS = ("cpu", "triton")


def flops(form: str, n: int, d: int, backend: str) -> tuple[float, float]:
    """Multiplications and additions of the matrix products of the forward pass, and of the gradient
    of one view."""
    if form == "gram":
        return float((2 if backend in SYMMETRIC_SETS else 4) * n * n * d), float(2 * n * n * d)
    return float(2 * n * d * d), float(2 * n * d * d)


def choose_form(form: str, n: int, d: int, backend: str) -> str:
    """The form with less work; `form` itself unless it is 'auto'. Safe on symbolic sizes."""
    if form != "auto":
        return form
    # Operations break even at N = D, but two triangles take more passes than one square matrix:
    # at N = D = 1024 the native kernels run the correlation form in 0.92 to 0.95 of the time.
    # Where the Gram products are not halved, operations break even at N = 3/4 D.
    ratio = (11, 12) if backend in SYMMETRIC_SETS else (3, 4)
    is_gram = ratio[1] * n <= ratio[0] * d
    if isinstance(is_gram, torch.SymBool) and torch.compiler.is_exporting():
        _refuse_undecided(is_gram, n, d, ratio)
    return "gram" if is_gram else "correlation"


def _refuse_undecided(is_gram: torch.SymBool, n: int, d: int, ratio: tuple[int, int]) -> None:
    """An exported program has one form: RuntimeError where the sizes that it is exported for need
    both."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if statically_known_true(is_gram) or statically_known_true(torch.sym_not(is_gram)):
        return
    raise RuntimeError(
        f"barlow_fast: the form of the loss ('gram' up to N = {ratio[0]}/{ratio[1]} D, else "
        f"'correlation') is open for the sizes of this export, N = {n}, D = {d}: give one, "
        "form='gram' for batches that are mostly smaller than D, else form='correlation' (both "
        "are exact for every N), or bound the dynamic size, as in torch.export.Dim('n', max=...)"
    )


@functools.lru_cache(maxsize=64)
def choose_backend(backend: str, device: torch.device) -> str:
    """The kernel set: the first usable one for 'auto', else the one asked for.

    Raises ValueError for an unknown name and RuntimeError, with the reason, for one that cannot
    serve `device`.
    """
    if backend not in ("auto", *KERNEL_SETS):
        raise ValueError(f"backend must be one of {('auto', *KERNEL_SETS)}, got {backend!r}")
    candidates = KERNEL_SETS if backend == "auto" else (backend,)
    if backend == "auto" and device.type != "cuda":
        # On a CPU the Triton set runs in Triton's interpreter, for tests, when asked for.
        candidates = tuple(name for name in KERNEL_SETS if name != "triton")
    problems = {name: why_unusable(name, device) for name in candidates}
    for name, problem in problems.items():
        if problem is None:
            return name
    raise RuntimeError(f"backend={backend!r} cannot be used here: {problems[backend]}")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast is on for, on a device; None where it is off or unknown, as on meta."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def choose_precision(
    precision: str,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
    matmul_precision: str = "highest",
) -> tuple[str, str]:
    """(precision, reason): an explicit choice, else autocast, else what the inputs' dtype implies;
    of float32 inputs what `float32_matmul_precision` of their device says."""
    if precision != "auto":
        return precision, "asked for"
    if dtype == torch.float64:
        return "fp64", "the inputs are float64"
    if autocast is not None:
        return AUTOCAST_PRECISION[autocast], f"autocast to {autocast} is on"
    if dtype in (torch.bfloat16, torch.float16):
        return AUTOCAST_PRECISION[dtype], f"the inputs are {dtype}"
    reason = f"float32 inputs, the float32 matmul precision is {matmul_precision!r}"
    return MATMUL_PRECISION[matmul_precision], reason


def executed_precision(precision: str, device_type: str) -> str:
    """What runs for `precision` on a device: CPUs have no TF32 and compute it as float32."""
    return "fp32" if precision == "tf32" and device_type == "cpu" else precision
