"""The losses of any number of views by name: their options, weights, work and passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_number, described
from ..kernels import Layout
from ..plan import Work
from . import mixed, views
from .objectives import BarlowTwins, FroSSL, VICReg
from .views import Objective, Run

BARLOW_TWINS, MIXED, VICREG, FROSSL = "barlow_twins", "mixed_barlow_twins", "vicreg", "frossl"
WEIGHTS = {BARLOW_TWINS: 1, MIXED: 3, VICREG: 3, FROSSL: 1}  # how many each loss has


class ViewOptions(NamedTuple):
    """The arguments of the operator of the family behind its weights.

    loss: one of the names above. gamma: of the variance term of VICReg; of Mixed Barlow Twins what
    the diagonal is drawn to. target: of the elements off the diagonal of Barlow Twins.
    """

    loss: str
    gamma: float
    target: float
    eps: float
    form: str
    precision: str
    backend: str

    @property
    def objective(self) -> Objective:
        if self.loss == VICREG:
            return VICReg(self.gamma)
        return FroSSL() if self.loss == FROSSL else BarlowTwins(self.target)

    def check(self, given: Sequence[Tensor], permutation: Tensor | None) -> None:
        """ValueError for what does not fit each other."""
        if self.loss not in WEIGHTS:
            raise ValueError(f"loss must be one of {tuple(WEIGHTS)}, got {self.loss!r}")
        for name in ("eps", "gamma"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("target", self.target)
        if self.loss == MIXED:
            check_permutation(permutation, given[0])
        elif permutation is not None:
            raise ValueError(f"permutation must be None for {self.loss}")
        least = {MIXED: 3, VICREG: 1}.get(self.loss, 2)
        if len(given) < least or (self.loss == MIXED and len(given) > least):
            raise ValueError(f"{self.loss} takes {least} views, got {len(given)}")


def check_permutation(permutation: Tensor | None, z: Tensor) -> None:
    """ValueError unless it is int64, of the samples of z."""
    if (
        permutation is None
        or permutation.shape != z.shape[:1]
        or permutation.dtype != torch.int64
        or permutation.device != z.device
    ):
        got = "None" if permutation is None else described(permutation)
        raise ValueError(
            f"permutation must be torch.int64 ({z.shape[0]},) on {z.device}, got {got}"
        )


def work_of(loss: str, count: int) -> Work:
    """The matrix products of a loss of `count` views."""
    if loss == MIXED:
        return Work(3, 3, 3, 6)
    if loss == BARLOW_TWINS:
        pairs = count * (count - 1) // 2
        return Work(count, count, pairs, 2 * pairs)
    return Work(count, count, count, count)


def forward(
    run: Run,
    given: Sequence[Tensor],
    permutation: Tensor | None,
    weights: Sequence[float],
    options: ViewOptions,
) -> tuple[Tensor, ...]:
    """(loss, terms, *what `backward` needs)."""
    if options.loss == MIXED:
        loss, terms, kept = mixed.forward(
            run, given, permutation, weights, options.eps, options.gamma
        )
    else:
        loss, terms, kept = views.forward(run, options.objective, given, weights, options.eps)
    return loss, terms, *kept[:-1], *kept[-1]


def backward(
    run: Run,
    given: Sequence[Tensor],
    permutation: Tensor | None,
    kept: Sequence[Tensor],
    weights: Sequence[float],
    options: ViewOptions,
    n: int,
    grad: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of the loss times the scalar `grad`; one that is not needed is empty.

    n: samples of all ranks.
    """
    if options.loss == MIXED:
        fields = mixed.Kept(*kept[:3], tuple(kept[3:]))
        return mixed.backward(
            run, given, permutation, fields, weights, options.eps, options.gamma, n, grad, need
        )
    fields = views.Kept(*kept[:5], tuple(kept[5:]))
    return views.backward(run, options.objective, given, fields, options.eps, n, grad, need)


def layouts(run: Run, given: Sequence[Tensor], options: ViewOptions) -> list[Layout]:
    """Shapes and dtypes of what `forward` returns on one process."""
    n = given[0].shape[0]
    if options.loss == MIXED:
        terms, kept = 3, mixed.kept_layouts(run, n, given[0].dtype)
    else:
        objective = options.objective
        terms, kept = objective.terms, views.kept_layouts(run, objective, n, len(given))
    return [((), run.dtype), ((terms,), run.dtype), *kept]
