"""What is timed: shapes, dtype variants and the random inputs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """A dtype of the inputs, with or without autocast to bfloat16.

    Attributes:
        name: as in the results.
        title: as in the tables.
        dtype: of both inputs and both gradients.
        autocast: whether the forward pass runs under torch.autocast('cpu', torch.bfloat16).
        gemm: which measured peak bounds the matrix products.
        tolerance: largest relative error that a result may have at a timed shape. Generous: it is
            there to catch a wrong result, not to rank accuracy.
    """

    name: str
    title: str
    dtype: torch.dtype
    autocast: bool
    gemm: str
    tolerance: float

    def context(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.autocast:
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()


FP64 = Variant("fp64", "float64", torch.float64, False, "fp32", 1e-9)  # for checks, never timed
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("fp32", "float32", torch.float32, False, "fp32", 1e-3),
        Variant(
            "bf16-autocast",
            "float32 inputs under bfloat16 autocast",
            torch.float32,
            True,
            "bf16",
            5e-2,
        ),
        Variant(
            "bf16-inputs",
            "bfloat16 inputs under bfloat16 autocast",
            torch.bfloat16,
            True,
            "bf16",
            5e-2,
        ),
    )
}
ALIASES = {"bf16": ("bf16-autocast", "bf16-inputs")}


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """'256x8192,512x8192' -> [(256, 8192), (512, 8192)]; ValueError for anything else."""
    shapes = []
    for part in text.split(","):
        n, _, d = part.strip().partition("x")
        if not (n.isdigit() and d.isdigit() and int(n) >= 2 and int(d) >= 2):
            raise ValueError(
                f"a shape is NxD with N and D at least 2, such as 256x8192; got {part!r}"
            )
        shapes.append((int(n), int(d)))
    return shapes


def parse_variants(text: str) -> list[Variant]:
    """'fp32,bf16' -> variants, 'bf16' being both of its own; ValueError for an unknown name."""
    names = [name.strip() for name in text.split(",")]
    names = [full for name in names for full in ALIASES.get(name, (name,))]
    for name in names:
        if name not in VARIANTS:
            known = ", ".join((*VARIANTS, *ALIASES))
            raise ValueError(f"unknown dtype {name!r}; known are {known}")
    return [variant for name, variant in VARIANTS.items() if name in names]


def random_pair(n: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Pair:
    """Two views that correlate by about a half, with gradients wanted."""
    shared = torch.randn(n, d, generator=generator)
    views = (shared + torch.randn(n, d, generator=generator) for _ in range(2))
    z_a, z_b = (view.to(dtype).requires_grad_() for view in views)
    return z_a, z_b


def rotation(n: int, d: int, dtype: torch.dtype, cache_bytes: int) -> list[Pair]:
    """Pairs to take turns: twice the last-level cache in all, so each has left it when due."""
    count = -(-2 * cache_bytes // (2 * n * d * dtype.itemsize))
    generator = torch.Generator().manual_seed(0)
    return [random_pair(n, d, dtype, generator) for _ in range(min(max(count, 2), 64))]
