"""The Barlow Twins loss of two or more views: function, module and terms."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from torch import Tensor, compiler, nn

from .. import ops, plan
from ..arguments import (
    Backend,
    Form,
    Gradient,
    Keywords,
    Layout,
    Options,
    Precision,
    Ranks,
    Statistics,
    Views,
    as_matrices,
    as_number,
    as_views,
)
from ..forms.family import BARLOW_TWINS
from . import family

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
    z_a: Views,
    z_b: Tensor | None = ...,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[Keywords],
) -> Tensor: ...
@overload
def barlow_twins_loss(
    z_a: Views,
    z_b: Tensor | None = ...,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[Keywords],
) -> tuple[Tensor, Terms]: ...
@overload
def barlow_twins_loss(
    z_a: Views,
    z_b: Tensor | None = ...,
    lambd: float | Tensor = ...,
    *,
    return_terms: bool,
    **options: Unpack[Keywords],
) -> Tensor | tuple[Tensor, Terms]: ...


def barlow_twins_loss(
    z_a: Views,
    z_b: Tensor | None = None,
    lambd: float | Tensor = 0.0051,
    *,
    scale: float = 1.0,
    eps: float = 1e-5,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
    process_group: Ranks = None,
    statistics: Statistics = "global",
    gradient: Gradient = "exact",
    layout: Layout = "auto",
    off_diagonal_target: float = 0.0,
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, Terms]:
    """The exact Barlow Twins loss of two batches of embeddings, or its mean over all pairs of more.

        z_hat = (z - mean) / sqrt(var + eps)              per column, biased variance
        C = z_hat_a^T z_hat_b / N                         built only where N is about D or more
        loss = scale * (sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2)

    V views take V Gram matrices, not one product for each of their V (V - 1) / 2 pairs.

    Source: Zbontar et al., *Barlow Twins* (ICML 2021), eq. 1 and 2. The forms and gradients are
    derived in kernels/README.md.

    Args:
        z_a, z_b: embeddings of the two views, (N, D) or (..., D) with N the product of the leading
            sizes; float64, float32, bfloat16 or float16, on one device, any strides. Without z_b,
            z_a is a sequence of V >= 2 views or one (V, N, D) tensor. Differing dtypes are
            promoted. Four and more sizes warn in eager mode: they may be feature maps
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
            ranks together, each passing its own samples, whose number may differ between ranks
            and be 0. All ranks must make the same calls, and the same backward passes.
        statistics: mean and variance over the samples of all ranks ('global', as the original with
            SyncBN) or over each rank's own ('local', as lightly and solo-learn).
        gradient: 'exact': the mean of all ranks' parameter gradients, which
            DistributedDataParallel and FSDP take, is the gradient of the global loss. 'official':
            it is 1/W of that, as in the original implementation.
        layout: how ranks share the work: 'features', 'rows' (both Gram form), 'correlation', or
            'auto' (the fastest by `explain`'s model). More than two views have no 'rows', and
            global statistics alone.
        off_diagonal_target: t of (C_ij - t)^2 off the diagonal; -1 is the variant of Tsai et al.,
            *A Note on Connecting Barlow Twins with Negative-Sample-Free Contrastive Learning*
            (2021).
        return_terms: also return `Terms`.

    Returns:
        The scalar loss in float32 (float64 for fp64), or (loss, terms).

    Raises:
        TypeError: inputs that are not tensors or not floating point; options of the wrong type.
        ValueError: mismatched shapes or devices, N < 2, D < 1, unknown or out-of-range options.
        RuntimeError: a requested backend cannot run here; second or forward-mode
            derivatives, torch.jit.trace; an export whose batch sizes need both forms; an input that
            was changed in place before the backward pass; another rank has stopped.
        With a group, all ranks raise the error of one of them, or of calls that differ.
    """
    options = Options(
        lambd, scale, eps, precision, form, backend, process_group, statistics, gradient, layout,
        off_diagonal_target,
    )  # fmt: skip
    if z_b is None or off_diagonal_target != 0:
        return _of_views(z_a, z_b, options, return_terms)
    options = options._replace(lambd=as_number("lambd", lambd))
    if process_group is None:
        loss, on_diagonal, off_diagonal = _compute(z_a, z_b, options)
    else:
        from ..distributed.eager import outside_graphs

        loss, on_diagonal, off_diagonal = outside_graphs(_compute, z_a, z_b, options)
    if scale != 1.0:
        loss = loss * scale
    return (loss, _terms(on_diagonal, off_diagonal, z_a.shape[-1])) if return_terms else loss


def _terms(on_diagonal: Tensor, off_diagonal: Tensor, d: int) -> Terms:
    return Terms(on_diagonal, off_diagonal, on_diagonal / d, off_diagonal / max(d * (d - 1), 1))


def _of_views(
    z_a: Views, z_b: Tensor | None, options: Options, return_terms: bool
) -> Tensor | tuple[Tensor, Terms]:
    """The loss of more than two views, or with a target; of two without, `barlow_twins_loss`."""
    if z_b is None and not isinstance(z_a, Tensor) and len(z_a) == 2:
        z_a, z_b = z_a
    elif z_b is None and isinstance(z_a, Tensor) and z_a.dim() == 3 and z_a.shape[0] == 2:
        z_a, z_b = z_a.unbind(0)
    if z_b is not None and options.off_diagonal_target == 0:
        return barlow_twins_loss(z_a, z_b, return_terms=return_terms, **options._asdict())
    if options.process_group is not None and options.statistics != "global":
        raise ValueError(
            "more than two views, or an off_diagonal_target, take statistics='global' alone, got "
            f"{options.statistics!r}"
        )
    call = family.Call(BARLOW_TWINS, {"lambd": options.lambd}, options)
    loss, terms = family.compute(call, lambda needed: (as_views(z_a, z_b, needed, fewest=2), None))
    if not return_terms:
        return loss
    d = (z_a if isinstance(z_a, Tensor) else z_a[0]).shape[-1]
    return loss, _terms(*terms.unbind(), d)


def _compute(z_a: Tensor, z_b: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal), without `scale`, of this process or of a group."""
    group, errors = None, nullcontext()
    if options.process_group is not None:
        from ..distributed import agreement, groups

        group = groups.resolve(options.process_group)
        errors = agreement.errors_reported(group)
    with errors:
        z_a, z_b = as_matrices(z_a, z_b, at_least=2 if group is None else 0)
        if not compiler.is_compiling():
            options.check()
        precision = plan.precision_under_autocast(z_a, options.precision)
        if group is not None:  # the layout decides on the form
            _, precision, backend = plan.resolve(z_a, "gram", precision, options.backend)
    if group is None:
        given = ops.Options(options.eps, options.form, precision, options.backend)
        return ops.barlow_twins(z_a, z_b, options.lambd, given)
    from ..distributed import autograd

    options = options._replace(precision=precision, backend=backend)
    return autograd.forward(z_a, z_b, options, group)


_NAMES = Options._fields
_ACROSS_RANKS = ("process_group", "statistics", "gradient", "layout")  # shown with a group only


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
        process_group: Ranks = None,
        statistics: Statistics = "global",
        gradient: Gradient = "exact",
        layout: Layout = "auto",
        off_diagonal_target: float = 0.0,
    ) -> None:
        super().__init__()
        options = Options(
            lambd, scale, eps, precision, form, backend, process_group, statistics, gradient,
            layout, off_diagonal_target,
        )  # fmt: skip
        options.check()
        (
            self.lambd, self.scale, self.eps, self.precision, self.form, self.backend,
            self.process_group, self.statistics, self.gradient, self.layout,
            self.off_diagonal_target,
        ) = options  # fmt: skip

    def forward(
        self, z_a: Views, z_b: Tensor | None = None, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, Terms]:
        """The loss of two or more batches of embeddings, or (loss, terms): see
        `barlow_twins_loss`."""
        return barlow_twins_loss(
            z_a, z_b, return_terms=return_terms, **{name: getattr(self, name) for name in _NAMES}
        )

    if TYPE_CHECKING:  # they take what a module's call returns for Any

        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., return_terms: Literal[False] = ...
        ) -> Tensor: ...
        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., *, return_terms: Literal[True]
        ) -> tuple[Tensor, Terms]: ...
        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., *, return_terms: bool
        ) -> Tensor | tuple[Tensor, Terms]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...

    def extra_repr(self) -> str:
        alone = self.process_group is None
        shown = [name for name in _NAMES if not (alone and name in _ACROSS_RANKS)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
