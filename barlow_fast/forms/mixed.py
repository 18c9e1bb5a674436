"""Mixed Barlow Twins: the loss of two views, and a third one that is to be their mixture.

    R = z_hat_m - alpha z_hat_a - (1 - alpha) z_hat_b[permutation]
    loss = Barlow Twins loss of z_a, z_b
           + mixing lambd (||R^T z_hat_a||^2 + ||R^T z_hat_b||^2) / N^2

which is the squared distance of two cross-correlation matrices of the mixed view from the mixtures
of the others'. Source: Bandara, De Melo, Patel, *Guarding Barlow Twins Against Overfitting with
Mixed Samples* (2023), eq. 4 to 7. The diagonal of C is drawn to g = 1, or to another number for
views whose deviation has another divisor (adapters/mix_bt.py): sum_i (C_ii - g)^2.

With T = R R^T the mixed term is mixing lambd <T, K_a + K_b> / N^2, and with mu = mixing lambd

    dL/dR = 2 mu / N^2 (K_a + K_b) R
    dL/dz_hat_a = 2 lambd / N^2 (K_b + mixing T) z_hat_a + w z_hat_b - alpha dL/dR
    dL/dz_hat_b = 2 lambd / N^2 (K_a + mixing T) z_hat_b + w z_hat_a - (1 - alpha) dL/dR,
                  row n of which goes to row permutation[n]
    dL/dz_hat_m = dL/dR

so that one more Gram matrix takes the place of six D x D products; in the correlation form two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import Coefficients, GradientInputs, ViewGradients, tiles
from .objectives import BarlowTwins
from .views import Run, column_products, identity_statistics


class Kept(NamedTuple):
    """What the backward pass needs.

    Attributes:
        statistics: (3, 3, D) of z_a, z_b and z_m.
        diagonals: (3, D) in the accumulation type: mean over samples of z_hat_a z_hat_b, R z_hat_a
            and R z_hat_b.
        difference: R (N, D) in the views' dtype.
        matrices: by form tiles of K_a, K_b and T, or matrix and squares of (a, b), (R, a), (R, b).
    """

    statistics: Tensor
    diagonals: Tensor
    difference: Tensor
    matrices: tuple[Tensor, ...]


def _combination(
    run: Run, views: Sequence[Tensor], statistics: Tensor, factors: Sequence[float]
) -> Tensor:
    """sum_v factors[v] z_hat_v, (N, D) in the views' dtype."""
    count, d = len(views), views[0].shape[1]
    weights = torch.tensor(factors, dtype=statistics.dtype, device="cpu").to(statistics.device)
    rows = torch.cat((identity_statistics(statistics)[None], statistics))
    (out,) = run.view_gradients(
        ViewGradients(
            (views[0], *views), rows, None,
            weights.new_empty(0, dtype=torch.float64),
            tuple((0, v + 1) for v in range(count)), weights[:, None].expand(-1, d).contiguous(),
            None, statistics.new_ones(()), d, 0.0, False, run.precision, (True,),
        )
    )  # fmt: skip
    return out


def forward(
    run: Run,
    views: Sequence[Tensor],
    permutation: Tensor,
    weights: Sequence[float],
    eps: float,
    goal: float,
) -> tuple[Tensor, Tensor, Kept]:
    """(loss, terms, what `backward` needs).

    Args:
        views: z_a, z_b, z_m.
        permutation: (N,) int64.
        weights: (lambd, mixing, alpha).
        goal: g, what the diagonal of C is drawn to.

    terms: the sums on and off the diagonal, and (||R^T z_hat_a||^2 + ||R^T z_hat_b||^2) / N^2.
    """
    lambd, mixing, alpha = weights
    moments = run.moments(views)
    n = moments.n
    statistics, diagonals, _ = BarlowTwins().standardised(moments, eps, run.dtype, run)
    z_a, z_b, z_m = views
    sources = (z_m, z_a, z_b.index_select(0, permutation))
    difference = _combination(run, sources, statistics[[2, 0, 1]], (1.0, -alpha, alpha - 1.0))
    identity = identity_statistics(statistics)
    rstd = statistics[:2, 1].double()
    together = run.moments((difference, z_a, z_b))
    diagonal = diagonals[0, 1]
    with_difference = together.comoments[0, 1:] * rstd / n
    every = torch.cat((diagonal[None], with_difference))
    on_diagonal = run.total((diagonal - goal).square().sum())
    if run.form == "gram":
        matrices = (
            run.gram_tiles(z_a, statistics[0]),
            run.gram_tiles(z_b, statistics[1]),
            run.gram_tiles(difference, identity),
        )
        k_a, k_b, t = matrices
        off_diagonal = tiles.inner(k_a, k_b, n) / n**2 - run.total(diagonal.square().sum())
        mixed = (tiles.inner(t, k_a, n) + tiles.inner(t, k_b, n)) / n**2
    else:
        matrices = ()
        for first, second, rows, i in (
            (z_a, z_b, statistics[:2], 0),
            (difference, z_a, torch.stack((identity, statistics[0])), 1),
            (difference, z_b, torch.stack((identity, statistics[1])), 2),
        ):
            every_row = torch.cat((*rows, every[i][None].to(run.dtype)))
            matrices += run.correlation(first, second, every_row)
        off_diagonal = matrices[1][0].sum()
        mixed = matrices[3][0].sum() + matrices[5][0].sum() + with_difference.square().sum()
    loss = on_diagonal + lambd * (off_diagonal + mixing * mixed)
    terms = torch.stack((on_diagonal, off_diagonal, mixed))
    kept = Kept(statistics, every.to(run.dtype), difference, matrices)
    return loss.to(run.dtype), terms.to(run.dtype), kept


def backward(
    run: Run,
    views: Sequence[Tensor],
    permutation: Tensor,
    kept: Kept,
    weights: Sequence[float],
    eps: float,
    goal: float,
    n: int,
    grad_scale: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    """dL/dz of z_a, z_b and z_m times the one-element `grad_scale`; one that is not needed is
    empty."""
    by_form = _by_gram if run.form == "gram" else _by_correlation
    return by_form(run, views, permutation, kept, weights, eps, goal, n, grad_scale, need)


def _linear(
    views: Sequence[Tensor], permutation: Tensor, kept: Kept, pulled: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The views with dL/dR, as far as `pulled` is that, and with it scattered to the rows that z_b
    had; and the statistics of all five."""
    scattered = torch.zeros_like(pulled).index_add_(0, permutation, pulled)
    identity = identity_statistics(kept.statistics)[None]
    return (*views, pulled, scattered), torch.cat((kept.statistics, identity, identity))


# Of those five: z_a takes w times z_b and dL/dR, z_b w times z_a and the scattered one, z_m dL/dR.
_LINKS = ((0, 1), (0, 3), (1, 0), (1, 4), (2, 3))


def _link_weights(weight: Tensor, alpha: float, step: float) -> Tensor:
    """(5, D) of `_LINKS`; weight (D,) is w, and `step` what dL/dR is of what stands for it."""
    ones = step * torch.ones_like(weight)
    return torch.stack((weight, -alpha * ones, weight, (alpha - 1) * ones, ones))


def _by_gram(
    run: Run,
    views: Sequence[Tensor],
    permutation: Tensor,
    kept: Kept,
    weights: Sequence[float],
    eps: float,
    goal: float,
    n: int,
    grad_scale: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    lambd, mixing, alpha = weights
    k_a, k_b, t = kept.matrices
    one = kept.statistics.new_ones(())
    both = (k_a + k_b)[None]
    centres = tiles.take_centres(both, n, run.precision)
    # Divided by D, so that it is neither large nor small in half precision.
    (pulled,) = run.view_gradients(
        ViewGradients(
            (kept.difference,), identity_statistics(kept.statistics)[None],
            run.kernels.gram_from_tiles(both, centres, n, 2 * run.d, run.precision),
            torch.full((1,), 1 / run.d, dtype=torch.float64, device=both.device), (),
            kept.statistics.new_empty((0, kept.statistics.shape[2])), None, one, 2 * run.d, 0.0,
            False, run.precision, (True,),
        )
    )  # fmt: skip
    weight = (2 - 2 * lambd) / n * kept.diagonals[0] - 2 * goal / n
    step = 2 * mixing * lambd * run.d / n**2
    every, statistics = _linear(views, permutation, kept, pulled)
    packed = torch.stack((k_b, k_a)).add_(t, alpha=mixing)
    centres = tiles.take_centres(packed, n, run.precision)
    # No row of R is longer than 1 + |alpha| + |1 - alpha| rows of a view.
    most = math.ceil(run.d * (1 + abs(mixing) * (1 + abs(alpha) + abs(1 - alpha)) ** 2))
    matrices = run.kernels.gram_from_tiles(packed, centres, n, most, run.precision)
    products = torch.full((2,), 2 * lambd / n**2, dtype=torch.float64, device=packed.device)
    return run.view_gradients(
        ViewGradients(
            every, statistics, matrices, products, _LINKS, _link_weights(weight, alpha, step),
            None, grad_scale, most, eps, True, run.precision, tuple(need),
        )
    )  # fmt: skip


def _by_correlation(
    run: Run,
    views: Sequence[Tensor],
    permutation: Tensor,
    kept: Kept,
    weights: Sequence[float],
    eps: float,
    goal: float,
    n: int,
    grad_scale: Tensor,
    need: Sequence[bool],
) -> tuple[Tensor, ...]:
    lambd, mixing, alpha = weights
    z_a, z_b, _ = views
    wide = torch.promote_types(z_a.dtype, torch.float32)
    sums = [
        torch.zeros_like(z, dtype=wide) if w else z.new_empty(0)
        for z, w in zip(views, need, strict=True)
    ]
    one, identity = kept.statistics.new_ones(()), identity_statistics(kept.statistics)

    def pair(
        first: Tensor,
        second: Tensor,
        rows: Tensor,
        i: int,
        scale: Tensor,
        wanted: tuple,
        full: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ||C||^2 with C's diagonal (`full`), which `first` has no norm for, or
        without it."""
        matrix, squares = kept.matrices[2 * i : 2 * i + 2]
        diagonal = kept.diagonals[i]
        if full:
            squares = torch.stack((-diagonal.double().square(), squares[1]))
        rows = torch.cat((*rows, diagonal[None]))
        coefficients = Coefficients(2 / n, 2 / n if full else 0.0, 0.0)
        return run.correlation_gradients(
            GradientInputs(
                first, second, rows, (matrix, squares), scale, coefficients, run.precision, wanted
            )
        )

    found = pair(z_a, z_b, kept.statistics[:2], 0, lambd * grad_scale, tuple(need[:2]), False)
    for i, g in enumerate(found):
        if need[i]:
            sums[i] += g
    # Of ||R^T z_hat||^2 / N^2 times N: neither large nor small in half precision.
    step, pulled = mixing * lambd / n, torch.zeros_like(kept.difference, dtype=wide)
    for i, z in enumerate((z_a, z_b)):
        rows = torch.stack((identity, kept.statistics[i]))
        wanted = (True, need[i])
        by_difference, by_view = pair(kept.difference, z, rows, i + 1, n * one, wanted, True)
        pulled += by_difference
        if need[i]:
            sums[i] += by_view.to(wide) * (step * grad_scale)
    every, statistics = _linear(views, permutation, kept, pulled.to(z_a.dtype))
    weight = 2 / n * kept.diagonals[0] - 2 * goal / n
    weights = _link_weights(weight, alpha, step)
    # What the norm's backward takes out: where ranks have some of the samples, kernels do not know
    # the means over all.
    products = [
        column_products(every[other], z, rows)
        for other, z, rows in zip((3, 4, 3), views, kept.statistics, strict=True)
    ]
    taken = run.total_of_samples(torch.stack(products)).to(run.dtype) / n * weights[[1, 3, 4]]
    taken[:2] += weight * kept.diagonals[0]
    grads = run.view_gradients(
        ViewGradients(
            every, statistics, None, statistics.new_empty(0, dtype=torch.float64),
            (*_LINKS[:2], (0, 0), *_LINKS[2:4], (1, 1), _LINKS[4], (2, 2)),
            torch.stack((*weights[:2], -taken[0], *weights[2:4], -taken[1], weights[4], -taken[2])),
            None, grad_scale, run.d, eps, False, run.precision, tuple(need),
        )
    )  # fmt: skip
    return tuple(
        (x + g).to(z.dtype) if w else g for x, g, z, w in zip(sums, grads, views, need, strict=True)
    )


def kept_layouts(run: Run, n: int, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of the fields of `Kept`, the matrices last."""
    d = run.d
    if run.form == "gram":
        b = tiles.side(n, run.precision)
        matrices = [((tiles.count(n, run.precision), b, b), run.dtype)] * 3
    else:
        matrices = [run.kernels.correlation_layout(d, run.precision), ((2, d), torch.float64)] * 3
    return [((3, 3, d), run.dtype), ((3, d), run.dtype), ((n, d), dtype), *matrices]
