"""The FroSSL loss of any number of views: function, module and terms."""

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
from ..forms.family import FROSSL
from .family import Call, FamilyLoss, compute

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FroSSLTerms(NamedTuple):
    """The terms of the loss, detached, without weight and `scale`; scalars in the accumulation
    type.

    loss = scale * (regularisation + invariance * i)
    """

    invariance: Tensor  # i: squared distances of u from its mean over views, divided by N
    regularisation: Tensor  # sum over views of 2 log(||u u^T||_F / tr(u u^T))


@overload
def frossl_loss(
    views: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[FamilyKeywords],
) -> Tensor: ...
@overload
def frossl_loss(
    views: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[FamilyKeywords],
) -> tuple[Tensor, FroSSLTerms]: ...
@overload
def frossl_loss(
    views: Views,
    z_b: Tensor | None = ...,
    invariance: float | Tensor = ...,
    *,
    return_terms: bool,
    **options: Unpack[FamilyKeywords],
) -> Tensor | tuple[Tensor, FroSSLTerms]: ...


def frossl_loss(
    views: Views,
    z_b: Tensor | None = None,
    invariance: float | Tensor = 1.0,
    *,
    scale: float = 1.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
    process_group: Ranks = None,
    gradient: Gradient = "exact",
    layout: Layout = "auto",
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, FroSSLTerms]:
    """The exact FroSSL loss of two or more views.

        u = z / max(||z||, 1e-12)                   per column, over the samples
        i = V * D * mean of (u - mean over views of u)^2
        loss = scale * (sum over views of 2 log(||u u^T||_F / tr(u u^T)) + invariance * i)

    Source: Skean, Dhakal, Jacobs, Giraldo, *FroSSL: Frobenius Norm Minimization for Efficient
    Multiview Self-Supervised Learning* (ECCV 2024), with the factors of solo-learn's code.
    Derivation: `barlow_fast/forms/views.py` and `objectives.py`.

    Args:
        views, z_b: the views, as `vicreg_loss` takes them; at least two.
        invariance: weight of i, a number or a tensor of one element without gradient, which the
            host reads.
        scale, precision, form, backend, process_group, gradient: as `barlow_twins_loss`.
        layout: as `vicreg_loss`.
        return_terms: also return `FroSSLTerms`.

    Returns:
        The scalar loss in float32 (float64 for fp64), or (loss, terms).

    Raises:
        TypeError, ValueError, RuntimeError: as `barlow_twins_loss`.
    """
    options = Options(
        scale=scale, precision=precision, form=form, backend=backend,
        process_group=process_group, gradient=gradient, layout=layout,
    )  # fmt: skip
    call = Call(FROSSL, {"invariance": invariance}, options)
    loss, terms = compute(call, lambda needed: (as_views(views, z_b, needed, fewest=2), None))
    return (loss, FroSSLTerms(*terms.unbind())) if return_terms else loss


class FroSSLLoss(FamilyLoss):
    """The exact FroSSL loss; the options are those of `frossl_loss`.

    The module has no parameters and no buffers.

        criterion = FroSSLLoss()
        loss = criterion([z_0, z_1, z_2])
        loss, terms = criterion([z_0, z_1, z_2], return_terms=True)    # see `FroSSLTerms`
    """

    def __init__(
        self,
        invariance: float | Tensor = 1.0,
        scale: float = 1.0,
        precision: Precision = "auto",
        form: Form = "auto",
        backend: Backend = "auto",
        process_group: Ranks = None,
        gradient: Gradient = "exact",
        layout: Layout = "auto",
    ) -> None:
        options = Options(
            scale=scale, precision=precision, form=form, backend=backend,
            process_group=process_group, gradient=gradient, layout=layout,
        )  # fmt: skip
        super().__init__(Call(FROSSL, {"invariance": invariance}, options))

    def forward(
        self, views: Views, z_b: Tensor | None = None, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, FroSSLTerms]:
        """The loss of two or more views, or (loss, terms): see `frossl_loss`."""
        return frossl_loss(views, z_b, return_terms=return_terms, **self.options)

    if TYPE_CHECKING:  # they take what a module's call returns for Any

        @overload
        def __call__(
            self, views: Views, z_b: Tensor | None = ..., return_terms: Literal[False] = ...
        ) -> Tensor: ...
        @overload
        def __call__(
            self, views: Views, z_b: Tensor | None = ..., *, return_terms: Literal[True]
        ) -> tuple[Tensor, FroSSLTerms]: ...
        @overload
        def __call__(
            self, views: Views, z_b: Tensor | None = ..., *, return_terms: bool
        ) -> Tensor | tuple[Tensor, FroSSLTerms]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...
