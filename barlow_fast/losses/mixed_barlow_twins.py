"""The Mixed Barlow Twins loss: mixing of inputs, function, module and terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, compiler

from ..arguments import (
    Backend,
    FamilyKeywords,
    Form,
    Gradient,
    Layout,
    Options,
    Precision,
    Ranks,
    as_views,
    check_number,
    described,
)
from ..forms.family import MIXED
from .family import Call, FamilyLoss, compute

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MixedTerms(NamedTuple):
    """The terms of the loss, detached, without weights and `scale`; scalars in the accumulation
    type.

    loss = scale * (on_diagonal + lambd * (off_diagonal + mixing * m))
    """

    on_diagonal: Tensor  # sum_i (C_ii - 1)^2
    off_diagonal: Tensor  # sum over i != j of C_ij^2
    mixing: Tensor  # m: (||R^T z_hat_a||^2 + ||R^T z_hat_b||^2) / N^2
    on_diagonal_mean: Tensor  # on_diagonal / D
    off_diagonal_mean: Tensor  # off_diagonal / (D (D - 1)); 0 for D = 1
    mixing_mean: Tensor  # m / (2 D^2)


def mix_inputs(
    x_a: Tensor, x_b: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, float]:
    """(x_mixed, permutation, alpha): x_mixed = alpha x_a + (1 - alpha) x_b[permutation].

    Args:
        x_a, x_b: the inputs of both views, of one shape, samples first.
        beta: alpha is drawn from Beta(beta, beta), uniform for 1.
        generator: of random numbers, on the CPU; None for torch's own.

    Returns:
        The mixed inputs, (N,) int64 on the device of x_a, and a number: what
        `mixed_barlow_twins_loss` takes.

    Raises:
        ValueError: shapes that differ or have no samples, a beta that is not positive.
    """
    check_number("beta", beta)
    if x_a.shape != x_b.shape or x_a.dim() < 1:
        raise ValueError(
            f"x_a and x_b must have the same shape, samples first, got {described(x_a)} and "
            f"{described(x_b)}"
        )
    if beta <= 0:
        raise ValueError(f"beta must be more than 0, got {beta}")
    # Two gamma variables: torch's Beta distribution takes no generator.
    shape = torch.full((2,), float(beta), dtype=torch.float64, device="cpu")
    gammas = torch._standard_gamma(shape, generator=generator)
    alpha = float(gammas[0] / gammas.sum())
    permutation = torch.randperm(x_a.shape[0], generator=generator, device="cpu").to(x_a.device)
    return torch.lerp(x_b.index_select(0, permutation), x_a, alpha), permutation, alpha


@overload
def mixed_barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    z_mixed: Tensor,
    permutation: Tensor,
    alpha: float | Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[FamilyKeywords],
) -> Tensor: ...
@overload
def mixed_barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    z_mixed: Tensor,
    permutation: Tensor,
    alpha: float | Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[FamilyKeywords],
) -> tuple[Tensor, MixedTerms]: ...
@overload
def mixed_barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    z_mixed: Tensor,
    permutation: Tensor,
    alpha: float | Tensor,
    lambd: float | Tensor = ...,
    *,
    return_terms: bool,
    **options: Unpack[FamilyKeywords],
) -> Tensor | tuple[Tensor, MixedTerms]: ...


def mixed_barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    z_mixed: Tensor,
    permutation: Tensor,
    alpha: float | Tensor,
    lambd: float | Tensor = 0.0051,
    *,
    mixing: float | Tensor = 1.0,
    eps: float = 1e-5,
    scale: float = 1.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
    process_group: Ranks = None,
    gradient: Gradient = "exact",
    layout: Layout = "auto",
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, MixedTerms]:
    """The exact Mixed Barlow Twins loss: that of two views, and of a mixture of their inputs.

        R = z_hat_mixed - alpha z_hat_a - (1 - alpha) z_hat_b[permutation]
        m = (||R^T z_hat_a||^2 + ||R^T z_hat_b||^2) / N^2
        loss = scale * (sum_i (C_ii - 1)^2 + lambd * (sum over i != j of C_ij^2 + mixing * m))

    with z_hat and C as in `barlow_twins_loss`. R^T z_hat / N is the difference of the mixed view's
    cross-correlation from the mixture of the others'. One N x N matrix more takes the place of six
    D x D products.

    Source: Bandara, De Melo, Patel, *Guarding Barlow Twins Against Overfitting with Mixed Samples*
    (2023), eq. 4 to 7. Derivation: `barlow_fast/forms/mixed.py`.

    Args:
        z_a, z_b, z_mixed: embeddings of both views and of their mixture, (N, D), of one shape; as
            `barlow_twins_loss` otherwise.
        permutation: (N,) int64 on their device, of 0 ... N - 1, as `mix_inputs` returns it. On CUDA
            devices it is not checked to be a permutation: that would wait for the device.
        alpha: the share of x_a in the mixture, a number or a tensor of one element without
            gradient, which the host reads.
        lambd: weight of the off-diagonal and of the mixing term.
        mixing: further weight of the mixing term.
        eps, scale, precision, form, backend, process_group, gradient: as `barlow_twins_loss`. With
            a process group the permutation is one within the rank's own samples, as each rank
            mixes them.
        layout: as `vicreg_loss`.
        return_terms: also return `MixedTerms`.

    Returns:
        The scalar loss in float32 (float64 for fp64), or (loss, terms).

    Raises:
        TypeError, ValueError, RuntimeError: as `barlow_twins_loss`; a permutation that is none.
    """
    options = Options(
        scale=scale, eps=eps, precision=precision, form=form, backend=backend,
        process_group=process_group, gradient=gradient, layout=layout,
    )  # fmt: skip
    call = Call(MIXED, {"lambd": lambd, "mixing": mixing, "alpha": alpha}, options)

    def checked(needed: int) -> tuple[tuple[Tensor, ...], Tensor]:
        views = as_views([z_a, z_b, z_mixed], None, needed, fewest=3)
        check_permutation(permutation, views[0])
        return views, permutation

    loss, terms = compute(call, checked)
    if not return_terms:
        return loss
    d = z_a.shape[-1]
    on, off, mixed = terms.unbind()
    return loss, MixedTerms(on, off, mixed, on / d, off / max(d * (d - 1), 1), mixed / (2 * d * d))


def check_permutation(permutation: Tensor, z: Tensor) -> None:
    """Checks that it is one of the samples of z.

    Raises:
        TypeError: not a tensor of int64.
        ValueError: another shape or device, or on the CPU, an index that is missing.
    """
    if not isinstance(permutation, Tensor) or permutation.dtype != torch.int64:
        got = permutation.dtype if isinstance(permutation, Tensor) else type(permutation).__name__
        raise TypeError(f"permutation must be a torch.int64 tensor, got {got}")
    n = z.shape[0]
    if permutation.shape != (n,) or permutation.device != z.device:
        raise ValueError(
            f"permutation must be ({n},) on {z.device}, as the views, got {described(permutation)}"
        )
    if permutation.device.type != "cpu" or compiler.is_compiling():
        return
    if n and not torch.equal(permutation.sort().values, torch.arange(n, device="cpu")):
        raise ValueError(f"permutation must hold each of 0 ... {n - 1} once")


class MixedBarlowTwinsLoss(FamilyLoss):
    """The exact Mixed Barlow Twins loss; the options are those of `mixed_barlow_twins_loss`.

    The module has no parameters and no buffers.

        criterion = MixedBarlowTwinsLoss(lambd=0.0051, mixing=1.0)
        x_mixed, permutation, alpha = mix_inputs(x_a, x_b)
        loss = criterion(model(x_a), model(x_b), model(x_mixed), permutation, alpha)
    """

    def __init__(
        self,
        lambd: float | Tensor = 0.0051,
        mixing: float | Tensor = 1.0,
        eps: float = 1e-5,
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
        super().__init__(Call(MIXED, {"lambd": lambd, "mixing": mixing}, options), "eps")

    def forward(
        self,
        z_a: Tensor,
        z_b: Tensor,
        z_mixed: Tensor,
        permutation: Tensor,
        alpha: float | Tensor,
        return_terms: bool = False,
    ) -> Tensor | tuple[Tensor, MixedTerms]:
        """The loss, or (loss, terms): see `mixed_barlow_twins_loss`."""
        return mixed_barlow_twins_loss(
            z_a, z_b, z_mixed, permutation, alpha, return_terms=return_terms, **self.options
        )

    if TYPE_CHECKING:  # they take what a module's call returns for Any

        @overload
        def __call__(
            self,
            z_a: Tensor,
            z_b: Tensor,
            z_mixed: Tensor,
            permutation: Tensor,
            alpha: float | Tensor,
            return_terms: Literal[False] = ...,
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            z_a: Tensor,
            z_b: Tensor,
            z_mixed: Tensor,
            permutation: Tensor,
            alpha: float | Tensor,
            *,
            return_terms: Literal[True],
        ) -> tuple[Tensor, MixedTerms]: ...
        @overload
        def __call__(
            self,
            z_a: Tensor,
            z_b: Tensor,
            z_mixed: Tensor,
            permutation: Tensor,
            alpha: float | Tensor,
            *,
            return_terms: bool,
        ) -> Tensor | tuple[Tensor, MixedTerms]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...
