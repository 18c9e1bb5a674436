"""Form, precision and kernel set for shapes, dtype, device and torch's settings.

No tensor is read, and nothing is changed.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import check_choice
from .kernels import KERNEL_SETS, load, why_unusable
from .kernels.precision import float32_matmul_precision

AUTOCAST_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MATMUL_PRECISION = {"highest": "fp32", "high": "tf32", "medium": "bf16"}

# The sets that compute only half of the tiles of a symmetric product.
SYMMETRIC_SETS = ("cpu", "triton")


class Work(NamedTuple):
    """How many matrix products a loss takes in each form, forward and for all gradients."""

    grams: int = 2
    gram_gradients: int = 2
    correlations: int = 1
    correlation_gradients: int = 2


PAIR = Work()  # of two views


def flops(
    form: str, n: int, d: int, backend: str, work: Work = PAIR, views: int = 2
) -> tuple[float, float]:
    """Multiplications and additions of the matrix products of the forward pass, and of the gradient
    of one view."""
    if form == "gram":
        each = (1 if backend in SYMMETRIC_SETS else 2) * n * n * d
        return float(work.grams * each), float(work.gram_gradients * 2 * n * n * d / views)
    each = 2 * n * d * d
    return float(work.correlations * each), float(work.correlation_gradients * each / views)


def choose_form(form: str, n: int, d: int, backend: str, work: Work = PAIR) -> str:
    """The form with less work; `form` itself unless it is 'auto'. Safe on symbolic sizes."""
    if form != "auto":
        return form
    # Operations break even at N = D for two views, but two triangles take more passes than one
    # square matrix: at N = D = 1024 the native kernels run the correlation form in 0.92 to 0.95 of
    # the time. Where the Gram products are not halved, operations break even at N = 3/4 D.
    halved = backend in SYMMETRIC_SETS
    gram = work.grams * (1 if halved else 2) + 2 * work.gram_gradients
    correlation = 2 * (work.correlations + work.correlation_gradients)
    ratio = (11 * correlation, 12 * gram) if halved else (correlation, gram)
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
        f"barlow_fast: the form of the loss ('gram' up to N = {Fraction(*ratio)} D, else "
        f"'correlation') is open for the sizes of this export, N = {n}, D = {d}: give one, "
        "form='gram' for batches that are mostly smaller than D, else form='correlation' (both "
        "are exact for every N), or bound the dynamic size, as in torch.export.Dim('n', max=...)"
    )


@functools.lru_cache(maxsize=64)
def choose_backend(backend: str, device: torch.device) -> str:
    """The kernel set: the first usable one for 'auto', else the requested one.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a set that cannot serve `device`, with the reason.
    """
    check_choice("backend", backend)
    candidates = KERNEL_SETS if backend == "auto" else (backend,)
    if backend == "auto" and device.type != "cuda":
        # On a CPU the Triton set runs in Triton's interpreter, for tests, when requested.
        candidates = tuple(name for name in KERNEL_SETS if name != "triton")
    problems = {name: why_unusable(name, device) for name in candidates}
    for name, problem in problems.items():
        if problem is None:
            return name
    raise RuntimeError(f"backend={backend!r} cannot be used here: {problems[backend]}")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of autocast on a device; None where it is off or unknown, as on meta."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Disables autocast where it is on: the operand type is decided, and plain torch's products
    must not be cast a second time."""
    if autocast_dtype(device_type) is not None:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def choose_precision(
    precision: str,
    dtype: torch.dtype,
    device_type: str,
    autocast: torch.dtype | None = None,
    backend: str = "aten",
) -> tuple[str, str]:
    """(precision, reason) that a kernel set executes: what is wanted, but 'fp32' for 'tf32' where
    the set has no faster products than float32's."""
    chosen, reason = _wanted_precision(precision, dtype, device_type, autocast)
    if chosen != "tf32" or device_type != "cpu":
        return chosen, reason
    if backend == "cpu" and load(backend).multiplies_tf32():
        return chosen, f"{reason}; float32 as two pieces of bfloat16, by AMX"
    return "fp32", f"{reason}; tf32 is computed as fp32 on a CPU without AMX or the cpu kernels"


def _wanted_precision(
    precision: str, dtype: torch.dtype, device_type: str, autocast: torch.dtype | None
) -> tuple[str, str]:
    """(precision, reason): an explicit choice, else autocast, else what the inputs' dtype implies;
    of float32 inputs what torch is set to for float32 matrix products on the device."""
    if precision != "auto":
        chosen, reason = precision, "requested"
    elif dtype == torch.float64:
        chosen, reason = "fp64", "the inputs are float64"
    elif autocast is not None:  # alone: torch 2.10 cannot trace the setting below
        chosen, reason = AUTOCAST_PRECISION[autocast], f"autocast to {autocast} is on"
    elif dtype in (torch.bfloat16, torch.float16):
        chosen, reason = AUTOCAST_PRECISION[dtype], f"the inputs are {dtype}"
    else:
        setting = float32_matmul_precision(device_type)
        chosen = MATMUL_PRECISION[setting]
        reason = f"float32 inputs, the float32 matmul precision is {setting!r}"
    return chosen, reason


def precision_under_autocast(z: Tensor, precision: str) -> str:
    """The meaning of 'auto' at the time of the call, for forward and backward pass.

    In a graph, outside autocast, 'auto': the operator decides when it runs, by torch's settings of
    that time.
    """
    autocast = autocast_dtype(z.device.type)
    if precision != "auto" or (autocast is None and torch.compiler.is_compiling()):
        return precision
    return _wanted_precision("auto", z.dtype, z.device.type, autocast)[0]


def resolve(
    z: Tensor, form: str, precision: str, backend: str, work: Work = PAIR
) -> tuple[str, str, str]:
    """(form, precision, backend) for embeddings z (N, D), with nothing left to 'auto'."""
    backend = choose_backend(backend, z.device)
    form = choose_form(form, z.shape[0], z.shape[1], backend, work)
    chosen, _ = choose_precision(precision, z.dtype, z.device.type, backend=backend)
    return form, chosen, backend


def resolved(z: Tensor, options: Any, work: Work = PAIR) -> Any:
    """`options`, a NamedTuple with the fields form, precision and backend, with these resolved."""
    chosen = resolve(z, options.form, options.precision, options.backend, work)
    return options._replace(form=chosen[0], precision=chosen[1], backend=chosen[2])
