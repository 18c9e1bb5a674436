"""What the loss and its registered operators take: the accepted words, and checks.

`torch.ops.barlow_fast.*` are public: saved graphs and other people's scripts call them, and kernels
read tensors by the shapes and types that they expect. Operators and their fakes check everything
here first. The eager route does not: `barlow_twins_loss` has checked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from .kernels import KERNEL_SETS
from .kernels import Layout as TensorLayout
from .kernels.precision import PRECISIONS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# The words of each option, for type checkers and for the checks below.
Form = Literal["auto", "gram", "correlation"]
Precision = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
Backend = Literal["auto", "triton", "cpu", "aten"]
Statistics = Literal["global", "local"]
Gradient = Literal["exact", "official"]
Layout = Literal["auto", "features", "rows", "correlation"]
DeadFeatures = Literal["nan", "zero"]

FORMS = get_args(Form)[1:]
STATISTICS, GRADIENTS, DEAD_FEATURES = map(get_args, (Statistics, Gradient, DeadFeatures))


class Options(TypedDict, total=False):
    """The keywords of `barlow_twins_loss`."""

    scale: float
    eps: float
    precision: Precision
    form: Form
    backend: Backend
    process_group: Literal["world"] | ProcessGroup | DeviceMesh | None
    statistics: Statistics
    gradient: Gradient
    layout: Layout


LARGEST = 1e100  # of a number; its squares and products stay finite in float64
_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_views(z_a: Tensor, z_b: Tensor, at_least: int) -> None:
    """ValueError unless both are (N, D) of one shape, floating dtype and device, N >= at_least."""
    shape = z_a.shape
    if not (
        len(shape) == 2
        and z_b.shape == shape
        and shape[0] >= at_least
        and shape[1] >= 1
        and z_a.dtype == z_b.dtype
        and z_a.dtype in _FLOATING
        and z_a.device == z_b.device
    ):
        raise ValueError(
            f"z_a and z_b must be (N, D) with N >= {at_least} and D >= 1, of one shape, device and "
            f"floating dtype, got {described(z_a)} and {described(z_b)}"
        )


def check_tensors(
    names: Sequence[str],
    tensors: Sequence[Tensor],
    layouts: Sequence[TensorLayout],
    device: torch.device,
) -> None:
    """ValueError unless each tensor is contiguous, on `device`, of its layout's shape and dtype."""
    for name, tensor, (shape, dtype) in zip(names, tensors, layouts, strict=True):
        if not (
            tensor.dtype == dtype
            and tensor.shape == shape
            and tensor.device == device
            and tensor.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be as the forward operator returned it, contiguous {dtype} "
                f"{tuple(shape)} on {device}, got {described(tensor)}"
            )


def check_number(name: str, value: Any, at_least: float = -LARGEST) -> None:
    """ValueError unless `value` is from `at_least` to `LARGEST`, or a real tensor of one element;
    numbers that a graph keeps open are checked when it runs."""
    if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
        raise ValueError(f"{name} must be a real tensor of one element, got {described(value)}")
    if isinstance(value, float | int) and not at_least <= value <= LARGEST:
        raise ValueError(f"{name} must be from {at_least:g} to {LARGEST:g}, got {value}")


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """ValueError unless `value` is 'auto' or one of `accepted`."""
    if value not in ("auto", *accepted):
        raise ValueError(f"{name} must be one of {('auto', *accepted)}, got {value!r}")


def check_choices(form: str, precision: str, backend: str) -> None:
    """ValueError for a word that is none of the accepted ones."""
    check_choice("form", form, FORMS)
    check_choice("precision", precision, PRECISIONS)
    check_choice("backend", backend, KERNEL_SETS)


def described(x: Tensor) -> str:
    layout = "" if x.is_contiguous() else ", not contiguous"
    return f"{x.dtype} {tuple(x.shape)} on {x.device}{layout}"
