"""The loss as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor, nn

from .arguments import Backend, Form, Gradient, Layout, Precision, Statistics
from .functional import Terms, barlow_twins_loss, check_options


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
