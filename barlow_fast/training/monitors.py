"""Whether embeddings collapse: numbers that fall long before a score does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import standardise
from ..statistics.rank import entropy_rank, singular_values

# The part of C that is looked at: 2048² values are enough to see a mean.
MOST_DIMENSIONS = 2048

MONITORS = ("embedding_std", "effective_rank", "diagonal_mean", "off_diagonal_abs_mean")


# Below these, embeddings are one vector or one line.
LOWEST_STD, LOWEST_RANK = 0.01, 2.0
CRITERION = (
    f"collapse: a standard deviation below {LOWEST_STD:g} (all embeddings are one vector; 1: they "
    f"fill the sphere) or an effective rank below {LOWEST_RANK:g} (all are on one line)"
)


def has_collapsed(monitors: dict[str, float]) -> bool:
    """Whether the numbers of `collapse_monitors` meet `CRITERION`, or are not finite."""
    spread, rank = (monitors[name] for name in ("embedding_std", "effective_rank"))
    return not (spread >= LOWEST_STD and rank >= LOWEST_RANK)


@torch.no_grad()
def collapse_monitors(z_a: Tensor, z_b: Tensor, singular: Tensor | None = None) -> dict[str, float]:
    """Monitors of collapse, from the embeddings of the two views of N images.

    Args:
        z_a, z_b: (N, D) floating point, on one device; N of at least 2.
        singular: `singular_values(z_a)`, where they are at hand: the costly part.

    Returns:
        - `embedding_std`: mean over dimensions of the standard deviation of view a's embeddings,
          each of length 1 before, times sqrt(D): about 1 for vectors that fill the sphere, 0 when
          all are one vector (Chen and He, *Exploring Simple Siamese Representation Learning*,
          CVPR 2021, section 4.1);
        - `effective_rank`: `entropy` of `barlow_fast.statistics.effective_rank`, of view a's;
        - `diagonal_mean`: mean of C_ii, 1 where the views agree;
        - `off_diagonal_abs_mean`: mean |C_ij| over i != j, of the first 2048 dimensions; noise
          alone makes sqrt(2/(pi N)).

        All are NaN where an embedding is not finite: a failing run is to be reported, not
        ended by what watches it.

    Raises:
        ValueError: shapes that differ, or fewer than two images.
    """
    if z_a.shape != z_b.shape or z_a.dim() != 2 or len(z_a) < 2:
        raise ValueError(
            f"z_a and z_b must be (N, D) of the same shape with N of at least 2, got "
            f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
    a, b = z_a.double(), z_b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        return dict.fromkeys(MONITORS, math.nan)
    n, d = a.shape
    sphere = torch.nn.functional.normalize(a, dim=1)
    hat_a, hat_b = standardise(a), standardise(b)
    used = min(d, MOST_DIMENSIONS)
    c = hat_a[:, :used].T @ hat_b[:, :used] / n
    # Taken out before summing, so that a large diagonal cancels nothing.
    c.fill_diagonal_(0)
    return {
        "embedding_std": (sphere.std(0, unbiased=False).mean() * d**0.5).item(),
        "effective_rank": entropy_rank(singular_values(z_a) if singular is None else singular),
        "diagonal_mean": (hat_a * hat_b).mean().item(),
        "off_diagonal_abs_mean": (c.abs().sum() / max(1, used * (used - 1))).item(),
    }
