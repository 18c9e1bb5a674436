"""The loss inside `train` of wgcban/mix-bt (`main.py`, e2c6af0) with mixed samples.

    u = (out - mean) / std                           per column, unbiased std
    C_xy = u_x^T u_y / batch_size
    loss = sum_i (C_12 ii - 1)^2 + lmbda * sum over i != j of C_12 ij^2
           + mixup_loss_scale * lmbda * (||R^T u_1||^2 + ||R^T u_2||^2) / batch_size^2
    R = u_m - alpha u_1 - (1 - alpha) u_2[index]

Source: Bandara, De Melo, Patel, *Guarding Barlow Twins Against Overfitting with Mixed Samples*
(2023), eq. 4 to 7; R^T u / batch_size is the difference of the mixed view's matrix from the mixture
of the others'. There it is a piece of a script, with `lmbda`, `mixup_loss_scale` and `batch_size`
global: here they are arguments. Its plain term alone is `adapters.hsic`, whose `corr_neg_one` has
no mixed term here.

With the biased deviation's z_hat, u = sqrt((N - 1) / N) z_hat, so that C is beta times the one of
`mixed_barlow_twins_loss`, beta = (N - 1) / batch_size, and

    sum_i (beta C_ii - 1)^2 = beta^2 sum_i (C_ii - 1 / beta)^2

Kept: the unbiased std caps the diagonal at (N - 1) / N; a dead (constant) feature gives NaN; each
process has a loss of its own.

Differs: one sample is refused, where the script's loss is NaN. The loss of half-precision
embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Options, as_number, as_views, check_number
from ..forms.family import MIXED
from ..losses.family import Call, compute
from ..losses.mixed_barlow_twins import check_permutation
from .batch_normalised import check_matrices

__all__ = ["mixed_barlow_twins_loss"]


def mixed_barlow_twins_loss(
    out_1: Tensor,
    out_2: Tensor,
    out_m: Tensor,
    index: Tensor,
    alpha: float,
    mixup_loss_scale: float,
    lmbda: float = 0.005,
    batch_size: int | None = None,
) -> Tensor:
    """The scalar loss of three (N, D) batches of projections.

    Args:
        out_1, out_2: (N, D) projections of the two views.
        out_m: (N, D) projections of alpha pos_1 + (1 - alpha) pos_2[index].
        index: (N,) int64, the permutation of the mixture.
        alpha: the share of the first view in the mixture.
        mixup_loss_scale: further weight of the mixed term.
        lmbda: weight of the off-diagonal and of the mixed term.
        batch_size: what C is divided by; None for N. The script's is its option `--batch_size`.

    Raises:
        ValueError: inputs that are not (N, D), N = 1, or an index that is no permutation.
        RuntimeError: different N.
        AssertionError: different D.
        TypeError: an index that is not int64.
    """
    for name, z in (("out_2", out_2), ("out_m", out_m)):
        check_matrices(out_1, z, ("out_1", name), AssertionError)
    n = out_1.shape[0]
    divisor = n if batch_size is None else batch_size
    check_number("batch_size", divisor, at_least=1)
    beta = (n - 1) / divisor
    weights = {
        "lambd": as_number("lmbda", lmbda),
        "mixing": as_number("mixup_loss_scale", mixup_loss_scale),
        "alpha": as_number("alpha", alpha),
    }

    def checked(needed: int) -> tuple[tuple[Tensor, ...], Tensor]:
        views = as_views([out_1, out_2, out_m], None, needed, fewest=3)
        check_permutation(index, views[0])
        return views, index

    call = Call(MIXED, weights, Options(scale=beta**2, eps=0.0), gamma=1 / beta)
    return compute(call, checked)[0]
