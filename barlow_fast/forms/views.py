"""Losses of any number of views, exact, without D x D matrices where N is the smaller side.

A loss of the family is a function of few numbers: the moments of the columns, and for each view,
or over all pairs of views, one sum of squares of the matrix C_vu = z_hat_v^T z_hat_u / N without
its diagonal,

    O_vu = sum over i != j of (C_vu)_ij^2
         = <K_v, K_u> / N^2 - sum_i (C_vu)_ii^2,     K_v = z_hat_v z_hat_v^T       (Gram form)

whose gradients take one product for each view,

    dO_vu / dz_hat_v = 2 / N^2 K_u z_hat_v - 2 / N (C_vu)_ii z_hat_u               (v != u)
    dO_vv / dz_hat_v = twice that
    sum over u != v of dO_vu / dz_hat_v:  K = S - K_v with S = sum_u K_u

and all that is left of a gradient is a sum of views with a weight for each column. `objectives.py`
has each loss as such a function; this module computes the sums and the gradients with the
primitives of a kernel set. In the correlation form O_vu comes from the D x D matrices of its pairs.

A target t for the elements off the diagonal needs the sum of these besides,

    sum over all i, j of (C_vu)_ij = s_v^T s_u / N,     s_v[n] = sum_j z_hat_v[n, j]

whose gradient is s_u[n] / N in every column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels import Coefficients, GradientInputs, KernelSet, Layout, ViewGradients, tiles
from ..kernels.precision import OPERAND_DTYPE, accumulation_dtype
from .norms import standardised

EACH, BETWEEN = "each", "between"
BLOCK = 2**18  # elements of a block whose temporaries stay in the caches of a CPU


class Moments(NamedTuple):
    """Of the columns that this process has, over all samples; float64."""

    means: Tensor  # (V, D)
    comoments: Tensor  # (V, V, D): sum over samples of (z_v - mean_v)(z_u - mean_u)
    n: int  # samples


class Standardised(NamedTuple):
    """How columns are standardised."""

    statistics: Tensor  # (V, 3, D) in the accumulation type: mean, rstd, shift
    diagonals: Tensor  # (V, V, D) float64: mean over samples of z_hat_v z_hat_u
    scales: Tensor | None = None  # (V,) float64: 1 / rstd where all columns of a view share it


class Value(NamedTuple):
    """A loss and its derivatives by what it is a function of.

    Attributes:
        loss: scalar, float64.
        terms: (T,) float64.
        factors: dL/dO, float64: (V,) of each view, or (1,) of the sum over pairs.
        weights: (V, V, D) float64: dL/dz_hat_v = ... + sum_u weights[v, u] z_hat_u.
        offsets: (V, D) float64, what is added to each row of dL/dz_hat_v; None for nothing.
        rows: float64, dL/dz_hat_v[n, i] = ... + rows * sum over u != v of s_u[n].
    """

    loss: Tensor
    terms: Tensor
    factors: Tensor
    weights: Tensor
    offsets: Tensor | None = None
    rows: float = 0.0


class Sums(NamedTuple):
    """Of the matrices C, float64.

    Attributes:
        squares: O of each view, (V,), or its sum over all pairs, (1,).
        elements: where there is a target, the sum over all pairs and all i, j of (C_vu)_ij; else 0.
    """

    squares: Tensor
    elements: Tensor


class Objective(Protocol):
    """A loss as a function of moments and sums of squares.

    Attributes:
        squares: of which matrices: 'each' view's with itself, or 'between' all pairs of views.
        projected: whether the norm's backward applies.
        terms: how many terms it returns.
        target: of the elements of C off the diagonal.
        scaled: whether the norm makes all columns equally long.
    """

    squares: str
    projected: bool
    terms: int
    target: float
    scaled: bool

    def standardised(
        self, moments: Moments, eps: float, dtype: torch.dtype, run: Run
    ) -> Standardised:
        """May use the memory of the co-moments."""
        ...

    def kernel_eps(self, eps: float) -> float:
        """The eps inside the root of the norm; 0 where there is none."""
        ...

    def value(
        self,
        views: Sequence[Tensor],
        moments: Moments,
        standardised: Standardised,
        sums: Sums,
        weights: Sequence[float],
        eps: float,
        run: Run,
    ) -> Value: ...


@dataclass(frozen=True)
class Run:
    """Where and with what a loss is computed: on one process, all hooks do nothing."""

    kernels: KernelSet
    form: str
    precision: str
    d: int  # columns, of all ranks

    @property
    def dtype(self) -> torch.dtype:
        return accumulation_dtype(self.precision)

    def total(self, values: Tensor) -> Tensor:
        """Sums over columns, added up over the ranks that hold the others."""
        return values

    def moments(self, views: Sequence[Tensor]) -> Moments:
        return Moments(*self.kernels.view_moments(views, self.precision), views[0].shape[0])

    def gram_tiles(self, z: Tensor, statistics: Tensor) -> Tensor:
        """(T, B, B): K over the columns of all ranks."""
        return self.kernels.gram_tiles(z, statistics, self.precision)

    def total_of_samples(self, values: Tensor) -> Tensor:
        """Sums over samples, added up over the ranks that hold the others."""
        return values

    def correlation(self, z_v: Tensor, z_u: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """(matrix, squares) over the samples of all ranks."""
        return self.kernels.correlation(z_v, z_u, statistics, self.precision)

    def view_gradients(self, inputs: ViewGradients) -> tuple[Tensor, ...]:
        """That of the kernels; a rank may have no samples or no columns."""
        if inputs.views[0].numel():
            return self.kernels.view_gradients(inputs)
        return _empty(inputs.views, inputs.need)

    def correlation_gradients(self, inputs: GradientInputs) -> tuple[Tensor, ...]:
        """As `view_gradients`."""
        if inputs.z_a.numel():
            return self.kernels.correlation_gradients(inputs)
        return _empty((inputs.z_a, inputs.z_b), inputs.need)


def _empty(views: Sequence[Tensor], need: Sequence[bool]) -> tuple[Tensor, ...]:
    pairs = zip(views[: len(need)], need, strict=True)
    return tuple(z.new_empty(z.shape if needed else 0) for z, needed in pairs)


class Kept(NamedTuple):
    """What the backward pass needs.

    Attributes:
        statistics, factors, offsets: see `Standardised` and `Value`; offsets are (0,) for none.
        weights: (V, V, D) in the accumulation type: those of `Value`, and in the Gram form what the
            diagonals of C add.
        rows: (V, N) what is added to all columns of dL/dz_hat_v, in the accumulation type; (0,) for
            nothing.
        matrices: by form the V tiled K, or matrix and squares of each pair.
    """

    statistics: Tensor
    factors: Tensor
    weights: Tensor
    offsets: Tensor
    rows: Tensor
    matrices: tuple[Tensor, ...]


def pairs(squares: str, views: int) -> list[tuple[int, int]]:
    """The matrices C_vu that a loss takes squares of."""
    if squares == EACH:
        return [(v, v) for v in range(views)]
    return [(v, u) for v in range(views) for u in range(v)]


def forward(
    run: Run, objective: Objective, views: Sequence[Tensor], weights: Sequence[float], eps: float
) -> tuple[Tensor, Tensor, Kept]:
    """(loss, terms, what `backward` needs); loss in the accumulation type, terms (T,) in it."""
    moments = run.moments(views)
    norm = objective.standardised(moments, eps, run.dtype, run)
    statistics, diagonals = norm.statistics, norm.diagonals
    between = objective.squares == BETWEEN
    if run.form == "gram":
        matrices = tuple(run.gram_tiles(*x) for x in zip(views, statistics, strict=True))
        inner = gram_products(matrices, moments.n, objective.squares)
        own = diagonals.diagonal().T
        if not objective.scaled and OPERAND_DTYPE[run.precision].itemsize == 2:
            # Of the rounded operands that K is of: one long column would not cancel otherwise.
            rounded = [_rounded_products(run, *x) for x in zip(views, statistics, strict=True)]
            own = torch.stack(rounded) / moments.n
        own = squares_of_pairs(diagonals)[None] if between else torch.linalg.vecdot(own, own)
        squares = inner / moments.n**2 - run.total(own)
    else:
        matrices = ()
        for v, u in pairs(objective.squares, len(views)):
            rows = torch.cat((*statistics[[v, u]], diagonals[v, u][None].to(run.dtype)))
            matrices += run.correlation(views[v], views[u], rows)
        squares = torch.stack([found[0].sum() for found in matrices[1::2]])
        squares = squares.sum()[None] if between else squares
    rows = elements = statistics.new_zeros((), dtype=torch.float64)
    if objective.target:
        rows = run.total(torch.stack([_row_sums(*x) for x in zip(views, statistics, strict=True)]))
        rows = rows.sum(0) - rows
        # Half of what all rows have with the sums of the others.
        elements = run.total_of_samples((rows * (rows.sum(0) / (len(views) - 1) - rows)).sum())
        elements = elements / 2 / moments.n
    sums = Sums(squares, elements)
    value = objective.value(views, moments, norm, sums, weights, eps, run)
    if run.form == "gram":
        _add_diagonals(diagonals, value, moments.n, between)
    elif objective.projected:
        _project(run, views, norm, value, rows)
    offsets, rows = (
        statistics.new_empty(0) if x is None else x.to(run.dtype)
        for x in (value.offsets, value.rows * rows if objective.target else None)
    )
    kept = Kept(statistics, value.factors, value.weights.to(run.dtype), offsets, rows, matrices)
    return value.loss.to(run.dtype), value.terms.to(run.dtype), kept


def squares_of_pairs(x: Tensor) -> Tensor:
    """The sum over pairs of views and columns of x^2, x (V, V, D) symmetric in the views."""
    total = x.new_zeros(())
    for v in range(1, len(x)):
        below = x[v, :v].flatten()
        total += below @ below
    return total


def _add_diagonals(diagonals: Tensor, value: Value, n: int, between: bool) -> None:
    """Adds to the weights what the squares of the diagonals of C, which O lacks, have as gradient:
    of all pairs of views, or of each view with itself."""
    if between:
        steps = diagonals.new_full((*diagonals.shape[:2], 1), -2 / n).mul_(value.factors)
        steps.diagonal().zero_()
        value.weights.addcmul_(diagonals, steps)
    else:
        value.weights.diagonal().addcmul_(diagonals.diagonal(), value.factors * (-4 / n))


def _project(
    run: Run, views: Sequence[Tensor], norm: Standardised, value: Value, rows: Tensor
) -> None:
    """Takes mean_n(G z_hat) of all but the products out of the weights of each view's own z_hat:
    where ranks have some of the samples, kernels do not know it."""
    taken = (value.weights * norm.diagonals).sum(1)
    if value.rows:
        n = run.total_of_samples(torch.full_like(rows[0, :1], rows.shape[1]).sum())
        products = [
            column_products(x, z, s) for x, z, s in zip(rows, views, norm.statistics, strict=True)
        ]
        taken = taken + value.rows * run.total_of_samples(torch.stack(products)) / n
    value.weights.diagonal().sub_(taken.T)


def column_products(x: Tensor, z: Tensor, statistics: Tensor) -> Tensor:
    """(D,) float64: the sum over samples of x z_hat, x (N,) or (N, D)."""
    total = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    rows = max(BLOCK // max(z.shape[1], 1), 1)
    for part, block in zip(x.split(rows), z.split(rows), strict=True):
        hat = standardised(block, statistics)
        part = part.to(hat.dtype)
        total += part @ hat if part.dim() == 1 else torch.linalg.vecdot(part, hat, dim=0)
    return total


def _rounded_products(run: Run, z: Tensor, statistics: Tensor) -> Tensor:
    """(D,) float64: the sum over samples of z_hat^2, z_hat rounded to the operand type."""
    total = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    for block in z.split(max(BLOCK // max(z.shape[1], 1), 1)):
        if block.numel():
            hat = run.kernels.standardise(block, *statistics, run.precision).to(run.dtype)
            total += torch.linalg.vecdot(hat, hat, dim=0)
    return total


def _row_sums(z: Tensor, statistics: Tensor) -> Tensor:
    """(N,) float64: the sum of each row of z_hat over this process's columns."""
    # Not from sums of z: those of columns with large means would cancel.
    blocks = z.split(max(BLOCK // max(z.shape[1], 1), 1))
    return torch.cat([standardised(x, statistics).sum(1, dtype=torch.float64) for x in blocks])


def gram_products(matrices: Sequence[Tensor], n: int, squares: str) -> Tensor:
    """<K_v, K_v> of each view, (V,), or the sum of <K_v, K_u> over all pairs, (1,); float64.

    The pairs take no products of their own: each K is multiplied with the sum of those before it.
    """
    if squares == EACH:
        return torch.stack([tiles.inner(k, k, n) for k in matrices])
    before, total = matrices[0].clone(), 0
    for k in matrices[1:]:
        total = total + tiles.inner(before, k, n)
        before += k
    return total[None]


def backward(
    run: Run,
    objective: Objective,
    views: Sequence[Tensor],
    kept: Kept,
    eps: float,
    n: int,
    grad_scale: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    """dL/dz of each view times the one-element `grad_scale`; one that is not needed is empty.

    n: samples of all ranks.
    """
    count, (_, d) = len(views), views[0].shape
    matrices, products = None, kept.factors[:0]
    most = run.d * max(count - 1, 1)  # no element of a sum of K exceeds N times this
    between = objective.squares == BETWEEN
    factors = kept.factors.expand(count) if between else kept.factors
    if run.form == "gram":
        packed = _gradient_matrices(kept.matrices, between)
        centres = tiles.take_centres(packed, n, run.precision)
        matrices = run.kernels.gram_from_tiles(packed, centres, n, most, run.precision)
        products = factors * ((2 if between else 4) / n**2)
    every, statistics, weights = tuple(views), kept.statistics, kept.weights
    linked = [tuple(range(count))] * count
    if kept.rows.numel():  # equal in all columns: views that are not to be standardised
        every += tuple(rows[:, None].expand(-1, d).to(views[0].dtype) for rows in kept.rows)
        linked = [(*of, count + v) for v, of in enumerate(linked)]
        weights = torch.cat((weights, torch.ones_like(weights[:, :1])), 1)
        statistics = torch.cat((statistics, identity_statistics(statistics).expand(count, -1, -1)))
    links = tuple((v, u) for v, of in enumerate(linked) for u in of)
    offsets = kept.offsets if kept.offsets.numel() else None
    projected = objective.projected and run.form == "gram"
    grads = run.view_gradients(
        ViewGradients(
            every, statistics, matrices, products, links, weights.flatten(0, 1), offsets,
            grad_scale, most, objective.kernel_eps(eps),
            projected, run.precision, tuple(need),
        )
    )  # fmt: skip
    if run.form == "gram":
        return grads
    return _add_correlation_gradients(run, objective, views, kept, n, grad_scale, need, grads)


def identity_statistics(statistics: Tensor) -> Tensor:
    """(3, D) statistics of what is standardised already, or never, beside (V, 3, D) of views."""
    rows = torch.zeros_like(statistics[0])
    rows[1] = 1
    return rows


def _gradient_matrices(matrices: Sequence[Tensor], between: bool) -> Tensor:
    """(V, T, B, B): S - K_v of each view, or K_v itself."""
    if not between:
        return torch.stack(list(matrices))
    packed = matrices[0].new_empty((len(matrices), *matrices[0].shape))
    whole = torch.add(*matrices[:2], out=packed[-1])
    for k in matrices[2:]:
        whole += k
    for out, own in zip(packed, matrices, strict=True):
        torch.sub(whole, own, out=out)
    return packed


def _add_correlation_gradients(
    run: Run,
    objective: Objective,
    views: Sequence[Tensor],
    kept: Kept,
    n: int,
    grad_scale: Tensor,
    need: Sequence[bool],
    grads: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """`grads` and what each C_vu adds to those of its views, summed in float32 at least."""
    between = objective.squares == BETWEEN
    sums = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    for index, (v, u) in enumerate(pairs(objective.squares, len(views))):
        matrix, squares = kept.matrices[2 * index : 2 * index + 2]
        if not objective.projected:
            squares = torch.zeros_like(squares)
        wanted = (need[v], need[u] and between)
        if not any(wanted):
            continue
        # Without diagonals, which are in the weights.
        rows = torch.cat((*kept.statistics[[v, u]], torch.zeros_like(kept.statistics[v, :1])))
        scale = grad_scale * kept.factors[0 if between else v].to(grad_scale.dtype)
        coefficients = Coefficients((2 if between else 4) / n, 0.0, 0.0)
        found = run.correlation_gradients(
            GradientInputs(
                views[v], views[u], rows, (matrix, squares), scale, coefficients, run.precision,
                wanted,
            )
        )  # fmt: skip
        for view, g in zip((v, u), found, strict=True):
            if g.numel():
                sums[view] += g
    return tuple(x.to(z.dtype) for x, z in zip(sums, views, strict=True))


def kept_layouts(run: Run, objective: Objective, n: int, views: int) -> list[Layout]:
    """Shapes and dtypes of the fields of `Kept`, the matrices last; `offsets` by what the loss
    has."""
    d, wide = run.d, torch.float64
    offsets = (0,) if objective.projected else (views, d)
    chosen = pairs(objective.squares, views)
    if run.form == "gram":
        b = tiles.side(n, run.precision)
        matrices = [((tiles.count(n, run.precision), b, b), run.dtype)] * views
    else:
        matrix = run.kernels.correlation_layout(d, run.precision)
        matrices = [matrix, ((2, d), wide)] * len(chosen)
    factors = views if objective.squares == EACH else 1
    return [
        ((views, 3, d), run.dtype), ((factors,), wide), ((views, views, d), run.dtype),
        (offsets, run.dtype), ((views, n) if objective.target else (0,), run.dtype), *matrices,
    ]  # fmt: skip
