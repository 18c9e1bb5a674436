"""What losses and their registered operators take: options, accepted values, and checks.

`torch.ops.barlow_fast.*` are public: saved graphs and other people's scripts call them, and kernels
read tensors by the shapes and types that they expect. Operators and their fakes check everything
here first. The eager route does not: the functions have checked the same.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels import Layout as TensorLayout

# The values of each option, for type checkers and for the checks below.
Form = Literal["auto", "gram", "correlation"]
Precision = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
Backend = Literal["auto", "triton", "cpu", "aten"]
Statistics = Literal["global", "local"]
Gradient = Literal["exact", "official"]
Layout = Literal["auto", "features", "rows", "correlation"]
DeadFeatures = Literal["nan", "zero"]
if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Ranks = Literal["world"] | ProcessGroup | DeviceMesh | None
else:
    Ranks = Any  # a torch without torch.distributed has no ProcessGroup

# Views of a loss that takes any number of them.
Views = Tensor | Sequence[Tensor]

FORMS = get_args(Form)[1:]
LAYOUTS = get_args(Layout)[1:]
FORM_OF_LAYOUT = {"features": "gram", "rows": "gram", "correlation": "correlation"}
WORLD = "world"
LARGEST = 1e100  # of a number; its squares and products stay finite in float64
_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Keywords(TypedDict, total=False):
    """The fields of `Options` that `barlow_twins_loss` takes by keyword, for type checkers."""

    scale: float
    eps: float
    precision: Precision
    form: Form
    backend: Backend
    process_group: Ranks
    statistics: Statistics
    gradient: Gradient
    layout: Layout
    off_diagonal_target: float


class FamilyKeywords(TypedDict, total=False):
    """What the losses of any number of views take by keyword, for type checkers."""

    gamma: float
    mixing: float | Tensor
    eps: float
    scale: float
    precision: Precision
    form: Form
    backend: Backend
    process_group: Ranks
    gradient: Gradient
    layout: Layout


class Options(NamedTuple):
    """The options of the loss: names, types, defaults, and one check of all.

    The function and the module repeat names, types and defaults, which `inspect`, type checkers and
    the documentation read there; tests/test_types.py holds them equal.
    """

    lambd: float | Tensor = 0.0051
    scale: float = 1.0
    eps: float = 1e-5
    precision: Precision = "auto"
    form: Form = "auto"
    backend: Backend = "auto"
    process_group: Ranks = None
    statistics: Statistics = "global"
    gradient: Gradient = "exact"
    layout: Layout = "auto"
    off_diagonal_target: float = 0.0

    def check(self) -> None:
        """Raises the error that `barlow_twins_loss` documents for the first bad option."""
        check_weight(as_number("lambd", self.lambd))
        check_number("scale", self.scale)
        check_number("eps", self.eps, at_least=0)
        check_number("off_diagonal_target", self.off_diagonal_target)
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                check_choice(name, getattr(self, name))
        check_layout(self.layout, self.form)
        check_process_group(self.process_group)


def _literals(options: type) -> dict[str, tuple[str, ...]]:
    """The accepted values of the fields that are a Literal."""
    hints = get_type_hints(options)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


_CHOICES = _literals(Options)
ACCEPTED = _CHOICES | {"dead_features": get_args(DeadFeatures)}


def check_choice(name: str, value: str) -> None:
    """ValueError unless `value` is accepted for the option `name`."""
    if value not in ACCEPTED[name]:
        raise ValueError(f"{name} must be one of {ACCEPTED[name]}, got {value!r}")


def check_number(name: str, value: Any, at_least: float = -LARGEST) -> None:
    """Checks that `value` is a number from `at_least` to `LARGEST`. Numbers that a graph leaves
    open are checked when it runs.

    Raises:
        TypeError: something else than a real number.
        ValueError: out of range, or not finite.
    """
    if type(value) is float and at_least <= value <= LARGEST:
        return
    if isinstance(value, torch.SymFloat | torch.SymInt):
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a Python number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if not at_least <= value <= LARGEST:
        raise ValueError(f"{name} must be from {at_least:g} to {LARGEST:g}, got {value}")


def check_weight(weight: Any, name: str = "lambd") -> None:
    """As `check_number`, for a weight, which may be a real tensor of one element."""
    if not isinstance(weight, Tensor):
        check_number(name, weight)
    elif weight.numel() != 1 or weight.is_complex():
        raise ValueError(f"{name} must be a real tensor of one element, got {described(weight)}")


def as_number(name: str, value: float | Tensor) -> float | Tensor:
    """`value`, with a tensor read by the host; graphs and dispatch modes keep it a tensor.

    Raises:
        TypeError: a tensor of more than one element, or that requires a gradient.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1 or value.requires_grad or value.is_complex():
        raise TypeError(
            f"{name} must be a number, or a real tensor of one element without gradient, got "
            f"shape {tuple(value.shape)}, {value.dtype}, requires_grad={value.requires_grad}"
        )
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return value
    if torch._C._functorch.is_batchedtensor(value):
        raise TypeError(f"{name} must be the same for all losses of a torch.func.vmap")
    return float(value)


def check_layout(layout: str, form: str) -> None:
    """ValueError unless `layout` is 'auto' or a layout of the form."""
    check_choice("layout", layout)
    if layout != "auto" and form not in ("auto", FORM_OF_LAYOUT[layout]):
        raise ValueError(
            f"layout={layout!r} computes the {FORM_OF_LAYOUT[layout]} form, but form={form!r}"
        )


def check_process_group(process_group: Any) -> None:
    """TypeError unless `process_group` is None, 'world', a process group or a 1-D device mesh."""
    if process_group is None or process_group == WORLD or is_group(process_group):
        return
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        return  # an error of the call, not of the type: raised where the group is resolved
    if hasattr(process_group, "get_group"):
        if process_group.ndim != 1:
            raise TypeError(
                f"process_group must be a 1-D DeviceMesh, got {process_group.ndim} dimensions; "
                "pass mesh['name']"
            )
        return
    raise TypeError(
        "process_group must be None, 'world', a torch.distributed.ProcessGroup or a 1-D "
        f"DeviceMesh, got {type(process_group).__name__}"
    )


def is_group(value: Any) -> bool:
    return dist.is_available() and isinstance(value, dist.ProcessGroup)


def as_matrices(z_a: Tensor, z_b: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Both views as (N, D) of one dtype, with all leading sizes flattened into N.

    Raises:
        TypeError: not tensors, not dense, not of a floating dtype.
        ValueError: mismatched shapes or devices, N < at_least, D < 1.
    """
    z_a, z_b = _as_matrices(("z_a", "z_b"), (z_a, z_b), at_least)
    return z_a, z_b


def as_views(z_a: Views, z_b: Tensor | None, at_least: int, fewest: int) -> tuple[Tensor, ...]:
    """All views as (N, D) of one dtype: z_a and z_b, each (N, D) or (..., D), or without z_b those
    of z_a, a sequence of them or one (V, N, D) tensor; (N, D) is one view.

    Raises:
        TypeError, ValueError: as `as_matrices`; fewer than `fewest` views.
    """
    if z_b is not None:
        return as_matrices(z_a, z_b, at_least)
    if isinstance(z_a, Tensor):
        if z_a.dim() not in (2, 3):
            raise ValueError(
                f"views without z_b must be a sequence of tensors or one (V, N, D) tensor, got "
                f"shape {tuple(z_a.shape)}"
            )
        views = z_a.unbind(0) if z_a.dim() == 3 else (z_a,)
    elif isinstance(z_a, Sequence):
        views = tuple(z_a)
    else:
        raise TypeError(
            f"views must be tensors, or a sequence of tensors, got {type(z_a).__name__}"
        )
    if len(views) < fewest:
        raise ValueError(
            f"the loss takes at least {fewest} views, got {len(views)}: pass z_b, a sequence of "
            "tensors or one (V, N, D) tensor"
        )
    return _as_matrices([f"views[{i}]" for i in range(len(views))], views, at_least)


def _as_matrices(
    names: Sequence[str], views: Sequence[Tensor], at_least: int
) -> tuple[Tensor, ...]:
    for name, z in zip(names, views, strict=True):
        check_view(name, z)
    first, shape = views[0], views[0].shape
    for name, z in zip(names[1:], views[1:], strict=True):
        both = f"{names[0]} and {name}"
        if z.shape != shape:
            raise ValueError(
                f"{both} must have the same shape, got {tuple(shape)} and {tuple(z.shape)}"
            )
        if z.device != first.device:
            raise ValueError(f"{both} must be on one device, got {first.device} and {z.device}")
    every = f"{names[0]} and {names[-1]}" if len(names) > 1 else names[0]
    if len(shape) < 2:
        raise ValueError(f"{every} must be (N, D) or (..., D), got shape {tuple(shape)}")
    if shape[-1] < 1:
        raise ValueError(f"D, the last size, must be at least 1, got shape {tuple(shape)}")
    if len(shape) > 3 and not torch.compiler.is_compiling():
        _warn_of_maps(shape)
    if len(shape) > 2:
        views = [z.flatten(0, -2) for z in views]
    if views[0].shape[0] < at_least:
        raise ValueError(
            f"the loss needs at least 2 samples to standardise over, got N = {views[0].shape[0]} "
            "(a last batch of one? use drop_last=True)"
        )
    if any(z.dtype != first.dtype for z in views):
        dtype = functools.reduce(torch.promote_types, [z.dtype for z in views])
        views = [z.to(dtype) for z in views]
    return tuple(views)


def check_view(name: str, z: Any) -> None:
    """TypeError unless z is a dense tensor of a floating dtype that kernels take."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
    if type(z) is not Tensor and _is_distributed(z):
        raise TypeError(
            f"{name} is a DTensor: pass the samples of this rank, {name}.to_local(), with "
            "process_group=... for the loss of all ranks, or the whole, "
            f"{name}.full_tensor(), for each rank's own"
        )
    if not z.is_floating_point() or z.dtype.itemsize < 2:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {z.dtype}")
    if z.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {z.layout}")


def _warn_of_maps(shape: torch.Size) -> None:
    """UserWarning of what may be feature maps with their channels second."""
    sizes = ", ".join(("N", *map(str, shape[1:])))
    warnings.warn(
        f"the last size of z_a and z_b, ({sizes}), is D = {shape[-1]}, all others are samples. Of "
        "feature maps with the channels second, pass z.flatten(1) for one sample per map, or "
        "z.movedim(1, -1).flatten(0, -2) for one per position",
        UserWarning,
        stacklevel=6,
    )


def _is_distributed(z: Tensor) -> bool:
    """Whether z is a DTensor, whose module is imported only where there is one: it is slow."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(z, module.DTensor)


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


def check_view_list(views: Sequence[Tensor], at_least: int = 2) -> None:
    """ValueError unless all are (N, D) of one shape, floating dtype and device, N >= at_least."""
    if not views:
        raise ValueError("views must hold at least one tensor")
    for z in views:
        check_views(views[0], z, at_least)


def check_weights(weights: Tensor, count: int) -> None:
    """ValueError unless `weights` are `count` float64 numbers on the CPU."""
    if weights.shape != (count,) or weights.dtype != torch.float64 or weights.device.type != "cpu":
        raise ValueError(
            f"weights must be torch.float64 ({count},) on cpu, got {described(weights)}"
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


def described(x: Tensor) -> str:
    """The dtype, shape and device of a tensor, and whether it is contiguous."""
    layout = "" if x.is_contiguous() else ", not contiguous"
    return f"{x.dtype} {tuple(x.shape)} on {x.device}{layout}"
