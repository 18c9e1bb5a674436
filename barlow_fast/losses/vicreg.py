"""The VICReg loss of any number of views, and VCReg of one: function, module and terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from torch import Tensor

from ..arguments import (
    Backend,
    FamilyKeywords,
    Form,
    Gradient,
    Layout,
    Options,
    Precision,
    Ranks,
    Views,
    as_views,
)
from ..forms.family import VICREG
from .family import Call, FamilyLoss, compute

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VICRegTerms(NamedTuple):
    """The terms of the loss, detached, without weights and `scale`; scalars in the accumulation
    type.

    loss = scale * (invariance * i + variance * v + covariance * c)
    """

    invariance: Tensor  # i: mean squared difference of two views; 0 of one view
    variance: Tensor  # v: mean of relu(gamma - standard deviation)
    covariance: Tensor  # c: squared covariances off the diagonal, divided by D
    covariance_mean: Tensor  # c / (D - 1): readable whatever D is; 0 for D = 1


@overload
def vicreg_loss(
    z_a: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    variance: float | Tensor = ...,
    covariance: float | Tensor = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[FamilyKeywords],
) -> Tensor: ...
@overload
def vicreg_loss(
    z_a: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    variance: float | Tensor = ...,
    covariance: float | Tensor = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[FamilyKeywords],
) -> tuple[Tensor, VICRegTerms]: ...
@overload
def vicreg_loss(
    z_a: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    variance: float | Tensor = ...,
    covariance: float | Tensor = ...,
    *,
    return_terms: bool,
    **options: Unpack[FamilyKeywords],
) -> Tensor | tuple[Tensor, VICRegTerms]: ...


def vicreg_loss(
    z_a: Views,
    z_b: Tensor | None = None,
    invariance: float | Tensor = 25.0,
    variance: float | Tensor = 25.0,
    covariance: float | Tensor = 1.0,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    scale: float = 1.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
    process_group: Ranks = None,
    gradient: Gradient = "exact",
    layout: Layout = "auto",
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, VICRegTerms]:
    """The exact VICReg loss of two or more views, or of one view VCReg.

        i = mean over pairs of views of mean (z_a - z_b)^2
        v = mean over views and columns of relu(gamma - sqrt(var + eps))
        c = min(V, 2) / V * sum over views of sum over i != j of cov_ij^2 / D
        loss = scale * (invariance * i + variance * v + covariance * c)

    with the variances and covariances of N - 1. A D x D covariance matrix is built only where N is
    larger than about D. For two views this is the authors' loss with their factors.

    Sources: Bardes, Ponce, LeCun, *VICReg* (ICLR 2022), eq. 1 to 6; of one view Zhu et al.,
    *Variance-Covariance Regularization Improves Representation Learning* (2023). Derivation:
    `barlow_fast/forms/views.py` and `objectives.py`.

    Args:
        z_a, z_b: embeddings of two views, (N, D) or (..., D) with N the product of the leading
            sizes; float64, float32, bfloat16 or float16, on one device, any strides. Without z_b,
            z_a is a sequence of V >= 1 views, one (V, N, D) tensor, or one (N, D) view.
        invariance, variance, covariance: weights of the terms, numbers or tensors of one element
            without gradient, which the host reads.
        gamma: the least standard deviation without a loss.
        eps: added to the variance, inside the root.
        scale, precision, form, backend, gradient: as `barlow_twins_loss`.
        process_group: as `barlow_twins_loss`: all statistics are those of the samples of all
            ranks. None: of each process's own; the mean of these losses over ranks, which
            DistributedDataParallel takes, is what the authors call without gathering.
        layout: how ranks share the work: 'features' (Gram form), 'correlation', or 'auto'.
        return_terms: also return `VICRegTerms`.

    Returns:
        The scalar loss in float32 (float64 for fp64), or (loss, terms).

    Raises:
        TypeError, ValueError, RuntimeError: as `barlow_twins_loss`.
    """
    options = Options(
        scale=scale, eps=eps, precision=precision, form=form, backend=backend,
        process_group=process_group, gradient=gradient, layout=layout,
    )  # fmt: skip
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    call = Call(VICREG, weights, options, gamma)
    loss, terms = compute(call, lambda needed: (as_views(z_a, z_b, needed, fewest=1), None))
    if not return_terms:
        return loss
    d = (z_a if isinstance(z_a, Tensor) else z_a[0]).shape[-1]
    i, v, c = terms.unbind()
    return loss, VICRegTerms(i, v, c, c / max(d - 1, 1))


class VICRegLoss(FamilyLoss):
    """The exact VICReg loss; the options are those of `vicreg_loss`.

    The module has no parameters and no buffers.

        criterion = VICRegLoss()
        loss = criterion(z_a, z_b)
        loss, terms = criterion([z_0, z_1, z_2], return_terms=True)    # see `VICRegTerms`
    """

    def __init__(
        self,
        invariance: float | Tensor = 25.0,
        variance: float | Tensor = 25.0,
        covariance: float | Tensor = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
        scale: float = 1.0,
        precision: Precision = "auto",
        form: Form = "auto",
        backend: Backend = "auto",
        process_group: Ranks = None,
        gradient: Gradient = "exact",
        layout: Layout = "auto",
    ) -> None:
        options = Options(
            scale=scale, eps=eps, precision=precision, form=form, backend=backend,
            process_group=process_group, gradient=gradient, layout=layout,
        )  # fmt: skip
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        super().__init__(Call(VICREG, weights, options, gamma), "gamma", "eps")

    def forward(
        self, z_a: Views, z_b: Tensor | None = None, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, VICRegTerms]:
        """The loss of two views, or of those of z_a, or (loss, terms): see `vicreg_loss`."""
        return vicreg_loss(z_a, z_b, return_terms=return_terms, **self.options)

    if TYPE_CHECKING:  # they take what a module's call returns for Any

        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., return_terms: Literal[False] = ...
        ) -> Tensor: ...
        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., *, return_terms: Literal[True]
        ) -> tuple[Tensor, VICRegTerms]: ...
        @overload
        def __call__(
            self, z_a: Views, z_b: Tensor | None = ..., *, return_terms: bool
        ) -> Tensor | tuple[Tensor, VICRegTerms]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...
