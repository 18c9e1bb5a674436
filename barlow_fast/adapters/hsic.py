"""The loss inside `train` of yaohungt/Barlow-Twins-HSIC (`main.py`, a30baba).

    u = (out - mean) / std                           per column, unbiased std
    C = u_1^T u_2 / batch_size
    loss = sum_i (C_ii - 1)^2 + lmbda * sum over i != j of (C_ij - t)^2

with t = 0, or t = -1 with `corr_neg_one`: off-diagonal elements are drawn to -1, as the
Hilbert-Schmidt criterion suggests (Tsai et al., *A Note on Connecting Barlow Twins with
Negative-Sample-Free Contrastive Learning*, 2021).

There it is a piece of a script, with `lmbda`, `corr_neg_one` and `batch_size` global: here they are
arguments, with the script's defaults. mix-bt's plain term is this function with the defaults.

Kept: the unbiased std caps the diagonal at (N - 1) / N; a dead (constant) feature gives NaN
(`dead_features="zero"`: C_ii = 0 and no gradient); each process has a loss of its own.

Differs: one sample is refused, where the script's loss is NaN. A feature that is constant but for
rounding counts as dead. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import DeadFeatures, as_number
from .batch_normalised import check_matrices
from .standardised import deviation_loss

__all__ = ["barlow_twins_hsic_loss"]


def barlow_twins_hsic_loss(
    out_1: Tensor,
    out_2: Tensor,
    lmbda: float = 0.005,
    corr_neg_one: bool = False,
    batch_size: int | None = None,
    *,
    dead_features: DeadFeatures = "nan",
) -> Tensor:
    """The scalar loss of two (N, D) batches of projections.

    Args:
        out_1, out_2: (N, D) projections of the two views.
        lmbda: weight of the off-diagonal term.
        corr_neg_one: draw off-diagonal elements to -1 instead of 0.
        batch_size: what C is divided by; None for N. The script's is its option `--batch_size`.
        dead_features: 'nan' or 'zero', see above.

    Raises:
        ValueError: inputs that are not (N, D), or N = 1.
        RuntimeError: different N.
        AssertionError: different D.
    """
    check_matrices(out_1, out_2, ("out_1", "out_2"), AssertionError)
    return deviation_loss(
        out_1,
        out_2,
        as_number("lmbda", lmbda),
        divisor=batch_size,
        off_diagonal_target=-1.0 if corr_neg_one else 0.0,
        dead_features=dead_features,
    )
