"""Embeddings that losses meet in practice and those that break them: all tests draw from here."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("random", "correlated", "badly_scaled", "constant_columns", "heavy_tailed")

# One, primes, one more and one less than a panel or tile of any instruction set, both sides of N =
# D.
AWKWARD_SHAPES = (
    (2, 1), (2, 3), (3, 2), (7, 13), (13, 7), (31, 33), (33, 31), (32, 64), (64, 64), (65, 129),
    (129, 65), (127, 255), (257, 130), (100, 521), (521, 100), (33, 1025), (1025, 33),
)  # fmt: skip

# The same numbers in memory of other strides.
ARRANGED = {
    "transposed": lambda z: z.T.contiguous().T,
    "sliced": lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
    "rows_skipped": lambda z: torch.stack([z, z], 1).flatten(0, 1)[::2],
}


def draw(
    kind: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Two (n, d) views of one kind, drawn in float64 and rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    z_a, noise = normal(), normal()
    if kind == "random":
        z_b = noise
    elif kind == "correlated":  # trained: the views agree
        z_b = z_a + 0.05 * noise
    elif kind == "badly_scaled":  # deviations over eight decades, means a thousand times as large
        scale = 10 ** torch.empty(d, dtype=torch.float64).uniform_(-4, 4, generator=generator)
        z_b = (z_a + 0.5 * noise) * scale - 1e3 * scale
        z_a = z_a * scale + 1e3 * scale
    elif kind == "constant_columns":  # dead features, in one view or both
        z_b = z_a + 0.5 * noise
        z_a[:, ::3], z_b[:, ::5] = 2.5, -1.0
    elif kind == "heavy_tailed":
        z_a, z_b = z_a / normal().abs().clamp_min(1e-3), noise**3
    else:
        raise ValueError(kind)
    return z_a.to(dtype), z_b.to(dtype)
