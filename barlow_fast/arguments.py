"""What the registered operators demand of their arguments.

`torch.ops.barlow_fast.*` are public: saved graphs and other people's scripts call them, and kernels
read tensors by the shapes and types that they expect. Operators and their fakes check everything
here first. The eager route does not: `barlow_twins_loss` has checked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import plan
from .kernels import Layout
from .kernels.precision import PRECISIONS

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
    layouts: Sequence[Layout],
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


def check_choices(form: str, precision: str, backend: str) -> None:
    """ValueError for a word that is none of the accepted ones."""
    plan.check_choice("form", form, plan.FORMS)
    plan.check_choice("precision", precision, PRECISIONS)
    plan.check_choice("backend", backend, plan.KERNEL_SETS)


def described(x: Tensor) -> str:
    layout = "" if x.is_contiguous() else ", not contiguous"
    return f"{x.dtype} {tuple(x.shape)} on {x.device}{layout}"
