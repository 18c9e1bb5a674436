"""The loss of embeddings that are standardised in another way than the paper's.

    u = (z - mean) * r                               per column, or u = z as it is given
    C = u_a^T u_b / divisor
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of (C_ij - t)^2

    r = 1 / (sqrt(v + eps_inside) + eps_outside),    v = sum (z - mean)^2 / (N - ddof)

Both forms run on the kernel sets as they are, on raw embeddings: u is never stored. Write z_hat for
what the kernels standardise with, z_hat = (z - mean) * rho; rho is r times a constant, and beta
takes up what is left, so that C = beta * C_hat with C_hat = z_hat_a^T z_hat_b / N:

    beta = (N - ddof) / divisor,    rho = sqrt(N / (N - ddof)) * r

With eps_outside = 0 that rho is (var + eps)^-1/2 of the biased variance, with
eps = eps_inside * (N - ddof) / N: the kernels' own norm, backward pass included. Otherwise the
norm's backward differs from theirs by a factor per column:

    dL/dz = rho * (G - z_hat * f * mean_n(G * z_hat))
    f = 1 + eps_outside / sqrt(v + eps_inside)

and f = 0 where u is given. In the correlation form that factor goes into the squared sums that the
kernels project with; in the Gram form the kernels leave the projection out and it is done here.

With one mean and variance for both views (`shared_norm_loss`) the kernels project nothing either,
and means in the norm's backward are those over the samples of both views:

    dL/dz = rho * (G - mean(G) - z_hat * mean(G * z_hat))

Sums over samples of g * (z - mean) are co-moments, which one pass over both inputs makes.

The target t expands: (beta C - t)^2 = beta^2 C^2 - 2 t beta C + t^2. The sum of all C_ij is the
inner product of row sums, s_n = sum_j z_hat_nj, whose gradient is of rank one:

    sum over all i, j of C_ij = s_a^T s_b / N,      d/dz_hat_a[n, i] = s_b[n] / N
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import arguments, ops, plan
from ..arguments import Backend, DeadFeatures, Form, Options, Precision
from ..differentiable import DifferentiableOperator
from ..forms import norms
from ..forms.norms import GIVEN, SHARED, Norm
from ..kernels import Coefficients, GradientInputs, KernelSet, Layout, load


class Arguments(NamedTuple):
    """The arguments of the operator behind its weight.

    divisor: 0 for N. The four fields from ddof on are those of `Norm`.
    """

    target: float
    divisor: float
    ddof: int
    eps_inside: float
    eps_outside: float
    dead_is_zero: bool
    form: str
    precision: str
    backend: str

    @property
    def norm(self) -> Norm:
        return Norm(*self[2:6])

    def beta(self, n: int) -> float:
        """C / C_hat."""
        return (n - max(self.ddof, 0)) / (self.divisor or n)

    def check(self, n: int) -> None:
        """ValueError for a number out of range."""
        arguments.check_number("off_diagonal_target", self.target)
        for name in ("divisor", "eps_inside", "eps_outside"):
            arguments.check_number(name, getattr(self, name), at_least=0)
        if self.divisor and n / self.divisor > arguments.LARGEST:
            raise ValueError(f"divisor is too small for N = {n}, got {self.divisor}")


def deviation_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    *,
    ddof: int = 1,
    eps_inside: float = 0.0,
    eps_outside: float = 0.0,
    divisor: float | None = None,
    off_diagonal_target: float = 0.0,
    dead_features: DeadFeatures = "nan",
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """The loss with columns divided by `sqrt(v + eps_inside) + eps_outside`.

    Args:
        z_a, z_b: embeddings of the two views, (N, D) or (..., D); dtypes as `barlow_twins_loss`.
        lambd: weight of the off-diagonal term.
        ddof: what is taken off N in the variance: 1 for torch.std's own, 0 for the biased one.
        eps_inside: added to the variance.
        eps_outside: added to the deviation.
        divisor: of the products; None for N.
        off_diagonal_target: t, what off-diagonal elements of C are drawn to.
        dead_features: what a constant column gives where both eps are 0: 'nan', as 0 / 0, or
            'zero': the column is zero in u, as with any eps, and has no gradient. A column is
            constant if it deviates from its mean by less than the mean can be resolved.
        precision, form, backend: as `barlow_twins_loss`.

    Returns:
        The scalar loss in float32 (float64 for fp64).

    Raises:
        TypeError, ValueError, RuntimeError: as `barlow_twins_loss`.
    """
    arguments.check_choice("dead_features", dead_features)
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof!r}")
    norm = Norm(ddof, float(eps_inside), float(eps_outside), dead_features == "zero")
    options = Options(lambd, precision=precision, form=form, backend=backend)
    return _loss(z_a, z_b, options, norm, divisor, off_diagonal_target)


def standardised_loss(
    u_a: Tensor,
    u_b: Tensor,
    lambd: float,
    *,
    divisor: float | None = None,
    off_diagonal_target: float = 0.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """The loss of embeddings as they are: standardised already, or never.

    Arguments, result and errors are those of `deviation_loss`; one sample is enough.
    """
    options = Options(lambd, precision=precision, form=form, backend=backend)
    return _loss(u_a, u_b, options, Norm(GIVEN), divisor, off_diagonal_target)


def shared_norm_loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    *,
    eps: float = 1e-5,
    scale: float = 1.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """The loss with one mean and one biased variance per column over the samples of both views.

        u = (z - mean) / sqrt(var + eps),    C = u_a^T u_b / N

    scale: factor on the whole loss. Other arguments, result and errors are those of
    `deviation_loss`; one sample is enough.
    """
    options = Options(lambd, scale, precision=precision, form=form, backend=backend)
    return _loss(z_a, z_b, options, Norm(SHARED, float(eps)))


def _loss(
    z_a: Tensor,
    z_b: Tensor,
    options: Options,
    norm: Norm,
    divisor: float | None = None,
    target: float = 0.0,
) -> Tensor:
    lambd = arguments.as_number("lambd", options.lambd)
    z_a, z_b = arguments.as_matrices(z_a, z_b, at_least=2 if norm.ddof >= 0 else 1)
    precision = plan.precision_under_autocast(z_a, options.precision)
    given = Arguments(
        float(target), float(divisor or 0), *norm, options.form, precision, options.backend
    )
    if not torch.compiler.is_compiling():
        options._replace(lambd=lambd).check()
        if divisor == 0:
            raise ValueError("divisor must be more than 0, got 0")
        given.check(z_a.shape[0])
    (loss,) = deviation(z_a, z_b, lambd, given)
    return loss if options.scale == 1.0 else loss * options.scale


def forward(z_a: Tensor, z_b: Tensor, lambd: float, given: Arguments) -> tuple[Tensor, ...]:
    """(loss, statistics, matrix, centres or squares, factors, row_sums); z_a, z_b are (N, D).

    What `backward` needs: statistics, matrix, and centres or squares as in `ops.forward`; factors
    (2, D) float64, the f of both views, empty where the kernels' own projection is right; row_sums
    (2, N), empty without a target.
    """
    given = plan.resolved(z_a, given)
    with plan.without_autocast(z_a.device.type):
        precision = given.precision
        kernels = load(given.backend, precision)
        n, d = z_a.shape
        beta, target = given.beta(n), given.target
        statistics, sums, diagonal, factors = norms.statistics(
            kernels, z_a, z_b, given.norm, precision
        )
        squares = diagonal.square().sum()
        if given.form == "gram":
            matrix, kept, inner = kernels.gram_pair(z_a, z_b, statistics, sums, precision)
            off_diagonal = beta**2 * (inner.sum() / n**2 - squares)
        else:
            matrix, kept = kernels.correlation(z_a, z_b, statistics, precision)
            off_diagonal = beta**2 * kept[0].sum()
        row_sums = statistics.new_empty(0)
        if target:
            row_sums = torch.stack(
                [
                    norms.standardised(z, statistics[i : i + 3]).sum(1)
                    for z, i in ((z_a, 0), (z_b, 3))
                ]
            )
            everything = (row_sums[0].double() * row_sums[1]).sum() / n
            off_diagonal = off_diagonal - 2 * target * beta * (everything - diagonal.sum())
            off_diagonal = off_diagonal + target**2 * d * (d - 1)
        loss = (beta * diagonal - 1).square().sum() + lambd * off_diagonal
        return loss.to(statistics.dtype), statistics, matrix, kept, factors, row_sums


def backward(
    grad: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    kept: tuple[Tensor, ...],
    lambd: float,
    given: Arguments,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss times the scalar `grad`; the one that is not needed is empty."""
    given = plan.resolved(z_a, given)
    statistics, _, _, factors, row_sums = kept
    with plan.without_autocast(z_a.device.type):
        kernels = load(given.backend, given.precision)
        shared = given.ddof == SHARED
        views = (z_a, z_b)
        pull = 2 * given.target * given.beta(z_a.shape[0]) * lambd / z_a.shape[0]
        # What is finished here is rounded to half precision once, at the end.
        projected_here = given.form == "gram" and given.eps_outside > 0
        if given.target or projected_here or shared:
            views = tuple(z.to(torch.promote_types(z.dtype, torch.float32)) for z in views)
        # Both views' gradients go through a norm that they share.
        wanted = (True, True) if shared else need
        grads = _unfinished_gradients(kernels, views, grad, kept, lambd, given, pull, wanted)
        if shared:
            norms.project_shared(kernels, grads, views, statistics[0:3], given.precision)
        for view, g in enumerate(grads):
            rows = statistics[3 * view : 3 * view + 3]
            if wanted[view] and projected_here:
                norms.project(kernels, g, views[view], rows, factors[view], given.precision)
            if wanted[view] and given.target:
                f = factors[view] if factors.numel() else None
                _add_target(g, views[view], rows, f, row_sums[1 - view], pull * grad)
        pairs = zip(grads, (z_a, z_b), need, strict=True)
        return tuple(g.to(z.dtype) if needed else z.new_empty(0) for g, z, needed in pairs)


def _unfinished_gradients(
    kernels: KernelSet,
    views: tuple[Tensor, Tensor],
    grad: Tensor,
    kept: tuple[Tensor, ...],
    lambd: float,
    given: Arguments,
    pull: float,
    need: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """What the kernel set makes of both gradients; third of `kept` are centres or squares, by form.

    pull: of the target on the diagonal, which has none.
    """
    statistics, matrix, third, factors, _ = kept
    n = views[0].shape[0]
    beta = given.beta(n)
    slope, offset = 2 * beta**2 / n, pull - 2 * beta / n
    if given.form == "gram":
        coefficients = Coefficients(
            2 * lambd * beta**2 / n**2, slope - 2 * lambd * beta**2 / n, offset,
            given.norm.kernel_eps(n), projected=factors.numel() == 0,
        )  # fmt: skip
        return kernels.gram_gradients(
            GradientInputs(
                *views, statistics, (matrix, third), grad, coefficients, given.precision, need
            )
        )
    squares, coefficient = third, 2 * lambd * beta**2 / n
    if coefficient == 0:  # the squares below could not carry anything
        matrix, squares, coefficient = torch.zeros_like(matrix), squares * 0, 1.0
    if factors.numel():
        diagonal = statistics[6].double()
        known = (slope * diagonal + offset) * diagonal / coefficient
        squares = factors * squares + (factors - 1) * known
    coefficients = Coefficients(coefficient, slope, offset)
    return kernels.correlation_gradients(
        GradientInputs(
            *views, statistics, (matrix, squares), grad, coefficients, given.precision, need
        )
    )


def _add_target(
    g: Tensor, z: Tensor, rows: Tensor, factor: Tensor | None, other: Tensor, pull: Tensor
) -> None:
    """Adds the target's part, -pull s_other in G, in place. Its mean over samples is zero wherever
    there is a norm to project with."""
    hat = norms.standardised(z, rows)
    f = 1.0 if factor is None else factor.to(hat.dtype)
    extra = other[:, None] - hat * (f * (other @ hat / z.shape[0]))
    g.sub_((extra * (pull * rows[1])).to(g.dtype))


def _layouts(z: Tensor, given: Arguments) -> tuple[Layout, ...]:
    n, d = z.shape
    given.check(n)
    if given.ddof not in (0, 1, GIVEN, SHARED) or (given.ddof == 1 and n == 1):
        raise ValueError(f"ddof must be 0, {GIVEN}, {SHARED} or, of N >= 2, 1, got {given.ddof}")
    kept = ops.kept_layouts(z, given)
    factors = (0,) if given.ddof >= 0 and given.eps_outside == 0 else (2, d)
    row_sums = (2, n) if given.target else (0,)
    return *kept, (factors, torch.float64), (row_sums, kept[0][1])


deviation = DifferentiableOperator(
    "deviation_forward_1", "deviation_backward_1", forward, backward, Arguments,
    ("statistics", "matrix", "companion", "factors", "row_sums"), _layouts, results=1, at_least=1,
    flops=ops.flops,
)  # fmt: skip
