"""Whether embeddings collapse: numbers that fall long before a score does."""

from __future__ import annotations

import torch
from torch import Tensor

# The part of C that is looked at: d² values are enough to see a mean.
MOST_DIMENSIONS = 2048


@torch.no_grad()
def collapse_monitors(z_a: Tensor, z_b: Tensor) -> dict[str, float]:
    """Numbers that tell a collapse, from the embeddings of the two views of N images.

    Args:
        z_a, z_b: (N, D) floating point.

    Returns:
        - `embedding_std`: mean over dimensions of the standard deviation of view a's embeddings,
          each of length 1 before, times sqrt(D): about 1 for vectors that fill the sphere, 0 when
          all are one vector (Chen and He, *Exploring Simple Siamese Representation Learning*,
          CVPR 2021, section 4.1);
        - `effective_rank`: exp of the entropy of the singular values of view a's centred
          embeddings, at most min(N - 1, D): how many dimensions are in use (Roy and Vetterli,
          *The Effective Rank*, EUSIPCO 2007);
        - `diagonal_mean`: mean of C_ii, 1 where the views agree;
        - `off_diagonal_abs_mean`: mean |C_ij| over i != j, of the first 2048 dimensions; noise
          alone makes sqrt(2/(pi N)).

    Raises:
        ValueError: shapes that differ, or fewer than two images.
    """
    if z_a.shape != z_b.shape or z_a.dim() != 2 or len(z_a) < 2:
        raise ValueError(
            f"z_a and z_b must be (N, D) of the same shape with N of at least 2, got "
            f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
    a, b = z_a.double(), z_b.double()
    n, d = a.shape
    sphere = torch.nn.functional.normalize(a, dim=1)
    centred = a - a.mean(0)
    # By way of the smaller Gram matrix: twenty times faster than a decomposition of the whole, and
    # what float64 loses by it is 1e-8 of the largest.
    gram = centred @ centred.T if n <= d else centred.T @ centred
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.xlogy(shares, shares).sum()
    standard = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (a, b)]
    diagonal = (standard[0] * standard[1]).mean(0)
    used = min(d, MOST_DIMENSIONS)
    c = standard[0][:, :used].T @ standard[1][:, :used] / n
    off = c.abs().sum() - c.diagonal().abs().sum()
    return {
        "embedding_std": (sphere.std(0, unbiased=False).mean() * d**0.5).item(),
        "effective_rank": entropy.exp().item() if singular.sum() > 0 else 0.0,
        "diagonal_mean": diagonal.mean().item(),
        "off_diagonal_abs_mean": (off / max(1, used * (used - 1))).item(),
    }
