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
and means in the norm's backward are those over the rows of both views:

    dL/dz = rho * (G - mean(G) - z_hat * mean(G * z_hat))

Sums over rows of g * (z - mean) are co-moments: the kernel that reads both inputs once makes them.

The target t expands: (beta C - t)^2 = beta^2 C^2 - 2 t beta C + t^2. The sum of all C_ij is the
inner product of row sums, s_n = sum_j z_hat_nj, whose gradient is of rank one:

    sum over all i, j of C_ij = s_a^T s_b / N,      d/dz_hat_a[n, i] = s_b[n] / N
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import arguments, functional, ops
from .arguments import DEAD_FEATURES, Backend, DeadFeatures, Form, Precision
from .differentiable import DifferentiableOperator
from .kernels import Coefficients, GradientInputs, KernelSet, Layout, load
from .kernels.precision import accumulation_dtype, reciprocal, reciprocal_deviation

# In place of a ddof: embeddings as they are, and one mean and variance for both views.
_GIVEN, _SHARED = -1, -2

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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
    scale: float = 1.0,
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
        scale: factor on the whole loss.
        precision, form, backend: as `barlow_twins_loss`.

    Returns:
        The scalar loss in float32 (float64 for fp64).

    Raises:
        TypeError, ValueError, RuntimeError: as `barlow_twins_loss`.
    """
    if dead_features not in DEAD_FEATURES:
        raise ValueError(f"dead_features must be one of {DEAD_FEATURES}, got {dead_features!r}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof!r}")
    norm = (ddof, float(eps_inside), float(eps_outside), dead_features == "zero")
    options = (precision, form, backend)
    return _loss(z_a, z_b, lambd, scale, divisor, off_diagonal_target, norm, options, at_least=2)


def standardised_loss(
    u_a: Tensor,
    u_b: Tensor,
    lambd: float,
    *,
    divisor: float | None = None,
    off_diagonal_target: float = 0.0,
    scale: float = 1.0,
    precision: Precision = "auto",
    form: Form = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """The loss of embeddings as they are: standardised already, or never.

    Arguments, result and errors are those of `deviation_loss`; one sample is enough.
    """
    norm = (_GIVEN, 0.0, 0.0, False)
    options = (precision, form, backend)
    return _loss(u_a, u_b, lambd, scale, divisor, off_diagonal_target, norm, options, at_least=1)


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
    """The loss with one mean and one biased variance per column for the rows of both views.

        u = (z - mean) / sqrt(var + eps),    C = u_a^T u_b / N

    Arguments, result and errors are those of `deviation_loss`; one sample is enough.
    """
    norm = (_SHARED, float(eps), 0.0, False)
    options = (precision, form, backend)
    return _loss(z_a, z_b, lambd, scale, None, 0.0, norm, options, at_least=1)


def _loss(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    scale: float,
    divisor: float | None,
    target: float,
    norm: tuple[int, float, float, bool],
    options: tuple[str, str, str],
    at_least: int,
) -> Tensor:
    precision, form, backend = options
    lambd = functional.as_number("lambd", lambd)
    z_a, z_b = functional.as_matrices(z_a, z_b, at_least=at_least)
    if not torch.compiler.is_compiling():
        functional.check_options(
            lambd, scale, 0.0, precision, form, backend, None, "global", "exact", "auto"
        )
        if divisor == 0:
            raise ValueError("divisor must be more than 0, got 0")
        _check_numbers(z_a.shape[0], target, divisor or 0, norm[1], norm[2])
    (loss,) = deviation(
        z_a, z_b, lambd, float(target), float(divisor or 0), *norm, form,
        functional.given_precision(z_a, precision), backend,
    )  # fmt: skip
    return loss if scale == 1.0 else loss * scale


def _check_numbers(
    n: int, target: float, divisor: float, eps_inside: float, eps_outside: float
) -> None:
    """ValueError for a number out of range; a divisor of 0 is N."""
    arguments.check_number("off_diagonal_target", target)
    numbers = {"divisor": divisor, "eps_inside": eps_inside, "eps_outside": eps_outside}
    for name, number in numbers.items():
        arguments.check_number(name, number, at_least=0)
    if divisor and n / divisor > arguments.LARGEST:
        raise ValueError(f"divisor is too small for N = {n}, got {divisor}")


def forward(
    z_a: Tensor,
    z_b: Tensor,
    lambd: float,
    target: float,
    divisor: float,
    ddof: int,
    eps_inside: float,
    eps_outside: float,
    dead_is_zero: bool,
    form: str,
    precision: str,
    backend: str,
) -> Outputs:
    """(loss, statistics, matrix, companion, factors, row_sums); z_a, z_b are (N, D).

    divisor: 0 for N. ddof: 0, 1, `_GIVEN` or `_SHARED`. What `backward` needs: statistics,
    matrix and companion as in `ops.forward`; factors (2, D) float64, the f of both views, empty
    where the kernels' own projection is right; row_sums (2, N), empty without a target.
    """
    form, precision, backend = ops.resolve(z_a, form, precision, backend)
    with ops.without_autocast(z_a.device.type):
        kernels = load(backend, precision)
        n, d = z_a.shape
        beta = _beta(n, ddof, divisor)
        statistics, sums, diagonal, factors = _statistics(
            kernels, z_a, z_b, ddof, eps_inside, eps_outside, dead_is_zero, precision
        )
        squares = diagonal.square().sum()
        if form == "gram":
            matrix, companion, inner = kernels.gram_pair(z_a, z_b, statistics, sums, precision)
            off_diagonal = beta**2 * (inner.sum() / n**2 - squares)
        else:
            matrix, companion = kernels.correlation(z_a, z_b, statistics, precision)
            off_diagonal = beta**2 * companion[0].sum()
        row_sums = statistics.new_empty(0)
        if target:
            row_sums = torch.stack(
                [_hat(z, statistics[i : i + 3]).sum(1) for z, i in ((z_a, 0), (z_b, 3))]
            )
            everything = (row_sums[0].double() * row_sums[1]).sum() / n
            off_diagonal = off_diagonal - 2 * target * beta * (everything - diagonal.sum())
            off_diagonal = off_diagonal + target**2 * d * (d - 1)
        loss = (beta * diagonal - 1).square().sum() + lambd * off_diagonal
        return loss.to(statistics.dtype), statistics, matrix, companion, factors, row_sums


def backward(
    grad: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    statistics: Tensor,
    matrix: Tensor,
    companion: Tensor,
    factors: Tensor,
    row_sums: Tensor,
    lambd: float,
    target: float,
    divisor: float,
    ddof: int,
    eps_inside: float,
    eps_outside: float,
    dead_is_zero: bool,
    form: str,
    precision: str,
    backend: str,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss times the scalar `grad`; the one that is not needed is empty."""
    form, precision, backend = ops.resolve(z_a, form, precision, backend)
    with ops.without_autocast(z_a.device.type):
        kernels, shared = load(backend, precision), ddof == _SHARED
        # Both views' gradients go through a norm that they share.
        need = (True, True) if shared else (need_a, need_b)
        n = z_a.shape[0]
        beta = _beta(n, ddof, divisor)
        given = (z_a, z_b)
        # What is finished here is rounded to half precision once, at the end.
        projected_here = form == "gram" and eps_outside > 0
        finished_here = bool(target) or projected_here or shared
        if finished_here:
            given = tuple(z.to(torch.promote_types(z.dtype, torch.float32)) for z in given)
        pull = 2 * target * beta * lambd / n  # of the target on the diagonal, which has none
        slope, offset = 2 * beta**2 / n, pull - 2 * beta / n
        if form == "gram":
            coefficients = Coefficients(
                2 * lambd * beta**2 / n**2, slope - 2 * lambd * beta**2 / n, offset,
                _kernel_eps(n, ddof, eps_inside), projected=factors.numel() == 0,
            )  # fmt: skip
            gradients = kernels.gram_gradients
        else:
            coefficient = 2 * lambd * beta**2 / n
            if coefficient == 0:  # the squares below could not carry anything
                matrix, companion, coefficient = torch.zeros_like(matrix), companion * 0, 1.0
            if factors.numel():
                diagonal = statistics[6].double()
                known = (slope * diagonal + offset) * diagonal / coefficient
                companion = factors * companion + (factors - 1) * known
            coefficients = Coefficients(coefficient, slope, offset)
            gradients = kernels.correlation_gradients
        matrices = (matrix, companion)
        grads = gradients(
            GradientInputs(*given, statistics, matrices, grad, coefficients, precision, need)
        )
        if shared:
            _project_shared(kernels, grads, given, statistics, precision)
        elif finished_here:
            for view, g in enumerate(grads):
                if need[view] and projected_here:
                    rows = statistics[3 * view : 3 * view + 3]
                    _project(kernels, g, given[view], rows, factors[view], precision)
                if need[view] and target:
                    _pull(view, g, given[view], statistics, factors, row_sums, pull * grad)
        wanted = zip(grads, (z_a, z_b), (need_a, need_b), strict=True)
        return tuple(g.to(z.dtype) if yes else z.new_empty(0) for g, z, yes in wanted)


def _project(
    kernels: KernelSet, g: Tensor, z: Tensor, rows: Tensor, factor: Tensor, precision: str
) -> None:
    """g = rho G becomes rho (G - z_hat f mean(G z_hat)), in place."""
    # sum g (z - mean), because z - mean sums to zero.
    products = kernels.column_moments(g, z, precision)[4]
    taken = factor * rows[1].double() * products / z.shape[0]
    g.addcmul_(_hat(z, rows).to(g.dtype), taken.to(g.dtype), value=-1)


def _project_shared(
    kernels: KernelSet,
    grads: tuple[Tensor, Tensor],
    given: tuple[Tensor, Tensor],
    statistics: Tensor,
    precision: str,
) -> None:
    """g = rho G of both views becomes rho (G - mean(G) - z_hat mean(G z_hat)), in place."""
    rows, n = statistics[0:3], given[0].shape[0]
    mean, rho = rows[0].double() + rows[2].double() / rows[1].double(), rows[1].double()
    moments = [kernels.column_moments(g, z, precision) for g, z in zip(grads, given, strict=True)]
    means = torch.stack([m[0] for m in moments]).mean(0)
    # sum g (z - mean) of each view: its co-moment is about the view's own means.
    products = sum(m[4] + n * m[0] * (m[1] - mean) for m in moments)
    taken = rho * products / (2 * n)
    for g, z in zip(grads, given, strict=True):
        g.sub_(means.to(g.dtype))
        g.addcmul_(_hat(z, rows).to(g.dtype), taken.to(g.dtype), value=-1)


def _pull(
    view: int,
    g: Tensor,
    z: Tensor,
    statistics: Tensor,
    factors: Tensor,
    row_sums: Tensor,
    pull: Tensor,
) -> None:
    """Adds the target's part, -pull s_other in G, in place. Its mean over rows is zero wherever
    there is a norm to project with."""
    rows, other = statistics[3 * view : 3 * view + 3], row_sums[1 - view]
    hat = _hat(z, rows)
    f = factors[view].to(hat.dtype) if factors.numel() else 1.0
    extra = other[:, None] - hat * (f * (other @ hat / z.shape[0]))
    g.sub_((extra * (pull * rows[1])).to(g.dtype))


def _beta(n: int, ddof: int, divisor: float) -> float:
    return (n - max(ddof, 0)) / (divisor or n)


def _kernel_eps(n: int, ddof: int, eps_inside: float) -> float:
    return eps_inside * (n - max(ddof, 0)) / n


def _hat(z: Tensor, rows: Tensor) -> Tensor:
    mean, rho, shift = rows
    return (z.to(mean.dtype) - mean) * rho - shift


def _statistics(
    kernels: KernelSet,
    z_a: Tensor,
    z_b: Tensor,
    ddof: int,
    eps_inside: float,
    eps_outside: float,
    dead_is_zero: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(statistics, sums, diagonal, factors): the kernels' two, the diagonal of C_hat in float64
    and the f of both views."""
    n = z_a.shape[0]
    moments = kernels.column_moments(z_a, z_b, precision)
    means, squares, comoment = moments[0:2], moments[2:4].clamp_min(0), moments[4]
    dtype = accumulation_dtype(precision)
    factors = moments.new_empty(0)
    if ddof == _SHARED:
        mean = means.mean(0)
        squares = squares + n * (means - mean).square()
        rho = reciprocal_deviation(squares.sum(0) / (2 * n) + eps_inside, dtype).expand_as(means)
        diagonal = (comoment / n + (means[0] - mean) * (means[1] - mean)) * rho[0].square()
        means = mean.expand_as(means)
        factors = torch.zeros_like(squares)
    elif ddof == _GIVEN:
        # Moments about zero: what is given is not centred, or need not be.
        squares = squares + n * means.square()
        diagonal = comoment / n + means[0] * means[1]
        means = torch.zeros_like(means)
        rho = torch.ones_like(means)
        factors = torch.zeros_like(means)
    else:
        if eps_outside:
            deviation = (squares / (n - ddof) + eps_inside).sqrt()
            rho = math.sqrt(n / (n - ddof)) * reciprocal(deviation + eps_outside, dtype)
            # At a deviation of zero torch takes the derivative of the root for zero.
            factors = (1 + eps_outside / deviation).masked_fill(deviation == 0, 0.0)
        else:
            rho = reciprocal_deviation(squares / n + _kernel_eps(n, ddof, eps_inside), dtype)
        if eps_inside == 0 and eps_outside == 0:
            resolved = torch.finfo(torch.promote_types(z_a.dtype, torch.float32)).eps
            dead = (squares / n).sqrt() <= resolved * means.abs()
            rho = rho.masked_fill(dead, 0.0 if dead_is_zero else math.nan)
        diagonal = comoment / n * rho[0] * rho[1]
    shift = (means - means.to(dtype)) * rho
    statistics = torch.stack((means[0], rho[0], shift[0], means[1], rho[1], shift[1], diagonal)).to(
        dtype
    )
    # The Triton set reads the mean of each K's diagonal from columns 2 and 3.
    centres = (squares / n * rho.square()).sum(1)
    ones = torch.stack(((diagonal - 1).square().sum(), diagonal.square().sum()))
    return statistics, torch.cat((ones, centres))[None], diagonal, factors


def _flops(z: Tensor, *options: Any) -> tuple[float, float]:
    form, precision, backend = options[-3:]
    return ops.flops(z, 0.0, form, precision, backend)


def _layouts(
    z: Tensor,
    lambd: Any,
    target: float,
    divisor: float,
    ddof: int,
    eps_inside: float,
    eps_outside: float,
    dead_is_zero: bool,
    *choices: str,
) -> tuple[Layout, ...]:
    n, d = z.shape
    arguments.check_choices(*choices)
    arguments.check_number("lambd", lambd)
    _check_numbers(n, target, divisor, eps_inside, eps_outside)
    if ddof not in (0, 1, _GIVEN, _SHARED) or (ddof == 1 and n == 1):
        raise ValueError(f"ddof must be 0, {_GIVEN}, {_SHARED} or, of N >= 2, 1, got {ddof}")
    kept = ops.kept_layouts(z, *choices)
    factors = (0,) if ddof >= 0 and eps_outside == 0 else (2, d)
    row_sums = (2, n) if target else (0,)
    return *kept, (factors, torch.float64), (row_sums, kept[0][1])


deviation = DifferentiableOperator(
    "deviation_forward_1", "deviation_backward_1", forward, backward, _layouts, results=1,
    at_least=1, flops=_flops,
)  # fmt: skip
