"""The loss as a function: checks its input, resolves the precision, calls the operator."""

from __future__ import annotations

import math
import sys
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from .. import ops, plan
from ..arguments import (
    GRADIENTS,
    STATISTICS,
    Backend,
    Form,
    Gradient,
    Layout,
    Options,
    Precision,
    Statistics,
    check_choices,
)
from ..distributed import cost
from ..kernels.precision import float32_matmul_precision

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Terms(NamedTuple):
    """The two terms of the loss, detached and without `scale`; scalars in the accumulation type.

    loss = scale * (on_diagonal + lambd * off_diagonal)
    """

    on_diagonal: Tensor  # sum_i (C_ii - 1)^2
    off_diagonal: Tensor  # sum over i != j of C_ij^2
    on_diagonal_mean: Tensor  # on_diagonal / D: readable whatever D is, 0 when both views agree
    off_diagonal_mean: Tensor  # off_diagonal / (D (D - 1)); 0 for D = 1


@overload
def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Terms]: ...
@overload
def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Terms]: ...


def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float | Tensor = 0.0051,
    *,
    scale: float = 1.0,
    eps: float = 1e-5,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
    process_group: Any = None,
    statistics: Statistics = "global",
    gradient: Gradient = "exact",
    layout: Layout = "auto",
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, Terms]:
    """The exact Barlow Twins loss of two batches of embeddings.

        z_hat = (z - mean) / sqrt(var + eps)              per column, biased variance
        C = z_hat_a^T z_hat_b / N                         built only where N is about D or more
        loss = scale * (sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2)

    Source: Zbontar et al., *Barlow Twins* (ICML 2021), eq. 1 and 2. The forms and gradients are
    derived in kernels/README.md.

    Args:
        z_a, z_b: embeddings of the two views, (N, D) or (..., D) with N the product of the leading
            sizes; float64, float32, bfloat16 or float16, on one device, any strides. Differing
            dtypes are promoted. Four and more sizes warn in eager mode: they may be feature maps
            (N, C, H, W), whose channels are second.
        lambd: weight of the off-diagonal term; the paper's is 0.0051. A number or a tensor of one
            element without gradient, which the host reads: keep it on the CPU. Under torch.compile
            a weight that changes from step to step compiles no graph of its own, with inputs on a
            CUDA device only where it is a tensor.
        scale: factor on the whole loss.
        eps: added to the variance, inside the root.
        precision: operand type of the matrix products: 'fp64', 'fp32', 'tf32', 'bf16', 'fp16', or
            'auto': the autocast dtype under autocast, the inputs' own half precision, else what
            torch is set to for float32 matrix products on the device, by
            `torch.set_float32_matmul_precision` or `torch.backends.cuda.matmul.fp32_precision`
            (on CPUs `torch.backends.mkldnn.matmul.fp32_precision`).
            Sums and statistics are float32 (float64 for fp64) always.
        form: 'gram' (N x N), 'correlation' (D x D) or 'auto' (the one with less work).
        backend: 'triton', 'cpu', 'aten' or 'auto' (the first usable one).
        process_group: None: the batch is this process's own. 'world', a
            `torch.distributed.ProcessGroup` or a 1-D `DeviceMesh`: the batch is that of all its
            ranks together, each passing its own rows, of which it may have more or fewer than
            others, or none. All ranks must call, and go backward, alike.
        statistics: mean and variance over the rows of all ranks ('global', as the original with
            SyncBN) or over each rank's own ('local', as lightly and solo-learn).
        gradient: 'exact': the mean of all ranks' parameter gradients, which
            DistributedDataParallel and FSDP take, is the gradient of the global loss. 'official':
            it is 1/W of that, as in the original implementation.
        layout: how ranks share the work: 'features', 'rows' (both Gram form), 'correlation', or
            'auto' (the fastest by `explain`'s model).
        return_terms: also return `Terms`.

    Returns:
        The scalar loss in float32 (float64 for fp64), or (loss, terms).

    Raises:
        TypeError: inputs that are not tensors or not floating point; options of the wrong type.
        ValueError: mismatched shapes or devices, N < 2, D < 1, unknown or out-of-range options.
        RuntimeError: a backend that was asked for cannot run here; second or forward-mode
            derivatives, torch.jit.trace; an export whose batch sizes need both forms; an input that
            was changed in place before the backward pass; another rank has stopped.
        Of a group, all ranks raise what one of them finds wrong, or in what their calls differ.
    """
    lambd = as_number("lambd", lambd)
    if process_group is not None:
        from ..distributed import entry

        loss, on_diagonal, off_diagonal = entry.of_group(
            z_a, z_b, process_group, lambd=lambd, scale=scale, eps=eps, precision=precision,
            form=form, backend=backend, statistics=statistics, gradient=gradient, layout=layout,
        )  # fmt: skip
    else:
        z_a, z_b = as_matrices(z_a, z_b, at_least=2)
        if not torch.compiler.is_compiling():
            check_options(
                lambd, scale, eps, precision, form, backend, None, statistics, gradient, layout
            )
        loss, on_diagonal, off_diagonal = ops.barlow_twins(
            z_a, z_b, lambd, eps, form, given_precision(z_a, precision), backend
        )
    if scale != 1.0:
        loss = loss * scale
    if not return_terms:
        return loss
    d = z_a.shape[-1]
    return loss, Terms(
        on_diagonal, off_diagonal, on_diagonal / d, off_diagonal / max(d * (d - 1), 1)
    )


class BarlowTwinsLoss(nn.Module):
    """The exact Barlow Twins loss; the options are those of `barlow_twins_loss`.

    The module has no parameters and no buffers: adding it to a model changes no checkpoint.

        criterion = BarlowTwinsLoss(lambd=0.0051)
        loss = criterion(z_a, z_b)
        loss, terms = criterion(z_a, z_b, return_terms=True)    # see `Terms`
    """

    def __init__(
        self,
        lambd: float | Tensor = 0.0051,
        scale: float = 1.0,
        eps: float = 1e-5,
        precision: Precision = "auto",
        form: Form = "auto",
        backend: Backend = "auto",
        process_group: Any = None,
        statistics: Statistics = "global",
        gradient: Gradient = "exact",
        layout: Layout = "auto",
    ) -> None:
        super().__init__()
        check_options(
            lambd, scale, eps, precision, form, backend, process_group, statistics, gradient, layout
        )
        self.lambd = lambd
        self.scale = scale
        self.eps = eps
        self.precision = precision
        self.form = form
        self.backend = backend
        self.process_group = process_group
        self.statistics = statistics
        self.gradient = gradient
        self.layout = layout

    def forward(
        self, z_a: Tensor, z_b: Tensor, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, Terms]:
        """The loss of two batches of embeddings, or (loss, terms): see `barlow_twins_loss`."""
        return barlow_twins_loss(
            z_a,
            z_b,
            self.lambd,
            scale=self.scale,
            eps=self.eps,
            precision=self.precision,
            form=self.form,
            backend=self.backend,
            process_group=self.process_group,
            statistics=self.statistics,
            gradient=self.gradient,
            layout=self.layout,
            return_terms=return_terms,
        )

    if TYPE_CHECKING:  # they take what a module's call returns for Any

        @overload
        def __call__(
            self, z_a: Tensor, z_b: Tensor, return_terms: Literal[False] = ...
        ) -> Tensor: ...
        @overload
        def __call__(
            self, z_a: Tensor, z_b: Tensor, return_terms: Literal[True]
        ) -> tuple[Tensor, Terms]: ...
        @overload
        def __call__(
            self, z_a: Tensor, z_b: Tensor, return_terms: bool
        ) -> Tensor | tuple[Tensor, Terms]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...

    def extra_repr(self) -> str:
        text = (
            f"lambd={self.lambd}, scale={self.scale}, eps={self.eps}, "
            f"precision={self.precision!r}, "
            f"form={self.form!r}, backend={self.backend!r}"
        )
        if self.process_group is not None:
            text += (
                f", statistics={self.statistics!r}, gradient={self.gradient!r}, "
                f"layout={self.layout!r}"
            )
        return text


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


def check_options(
    lambd: float | Tensor,
    scale: float,
    eps: float,
    precision: str,
    form: str,
    backend: str,
    process_group: Any,
    statistics: str,
    gradient: str,
    layout: str,
) -> None:
    """Raises the error that `barlow_twins_loss` documents for the first bad option."""
    lambd = as_number("lambd", lambd)
    for name, value in (("lambd", lambd), ("scale", scale), ("eps", eps)):
        if name == "lambd" and isinstance(value, Tensor):  # that a dispatch mode keeps
            continue
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a Python number, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    check_choices(form, precision, backend)
    if statistics not in STATISTICS:
        raise ValueError(f"statistics must be one of {STATISTICS}, got {statistics!r}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}")
    cost.check(layout, form)
    if process_group is not None:
        from ..distributed import groups

        groups.check(process_group)


def as_matrices(z_a: Tensor, z_b: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
        if type(z) is not Tensor and _is_distributed(z):
            raise TypeError(
                f"{name} is a DTensor: pass the rows of this rank, {name}.to_local(), with "
                "process_group=... for the loss of all ranks, or the whole, "
                f"{name}.full_tensor(), for each rank's own"
            )
        if not z.is_floating_point():
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {z.dtype}")
        if z.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {z.layout}")
        if z.dtype.itemsize < 2:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {z.dtype}")
    if z_a.shape != z_b.shape:
        raise ValueError(
            f"z_a and z_b must have the same shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
    if z_a.device != z_b.device:
        raise ValueError(f"z_a and z_b must be on one device, got {z_a.device} and {z_b.device}")
    if z_a.dim() < 2:
        raise ValueError(f"z_a and z_b must be (N, D) or (..., D), got shape {tuple(z_a.shape)}")
    if z_a.shape[-1] < 1:
        raise ValueError(f"D, the last size, must be at least 1, got shape {tuple(z_a.shape)}")
    if z_a.dim() > 3 and not torch.compiler.is_compiling():
        _warn_of_maps(z_a.shape)
    if z_a.dim() > 2:
        z_a, z_b = z_a.flatten(0, -2), z_b.flatten(0, -2)
    if z_a.shape[0] < at_least:
        raise ValueError(
            f"the loss needs at least 2 samples to standardise over, got N = {z_a.shape[0]} "
            "(a last batch of one? use drop_last=True)"
        )
    if z_a.dtype != z_b.dtype:
        dtype = torch.promote_types(z_a.dtype, z_b.dtype)
        z_a, z_b = z_a.to(dtype), z_b.to(dtype)
    return z_a, z_b


def _warn_of_maps(shape: torch.Size) -> None:
    """UserWarning of what may be feature maps with their channels second."""
    sizes = ", ".join(("N", *map(str, shape[1:])))
    warnings.warn(
        f"the last size of z_a and z_b, ({sizes}), is D = {shape[-1]}, all others are samples. Of "
        "feature maps with the channels second, pass z.flatten(1) for one sample per map, or "
        "z.movedim(1, -1).flatten(0, -2) for one per position",
        UserWarning,
        stacklevel=4,
    )


def _is_distributed(z: Tensor) -> bool:
    """Whether z is a DTensor. Who has one has imported its module, which takes a while."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(z, module.DTensor)


def given_precision(z: Tensor, precision: str) -> str:
    """What 'auto' stands for now, for both passes.

    In a graph, outside autocast, 'auto': the operator decides when it runs, by torch's settings of
    that moment.
    """
    autocast = plan.autocast_dtype(z.device.type)
    if precision != "auto" or (autocast is None and torch.compiler.is_compiling()):
        return precision
    if autocast is not None:  # decides alone; torch 2.10 cannot trace the other setting
        return plan.choose_precision("auto", z.dtype, autocast)[0]
    return plan.choose_precision("auto", z.dtype, None, float32_matmul_precision(z.device.type))[0]
