"""What is timed: shapes, dtype variants and the random inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench import cli

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """A dtype of the inputs, with or without autocast to bfloat16.

    Attributes:
        name: as in the results.
        title: as in the tables.
        dtype: of both inputs and both gradients.
        autocast: whether the forward pass runs under torch.autocast to `half`.
        gemm: which measured peak bounds the matrix products.
        tolerance: largest relative error that a result may have at a timed shape. Generous: it is
            there to catch a wrong result, not to rank accuracy.
        noise: relative error that a result at a small shape may have beyond its definition's.
        half: the dtype of autocast.
        matmul: the float32 matmul precision of both passes; None leaves it as it is.
        loss_scale: factor on the gradients, as a GradScaler would apply; float16 needs one.
    """

    name: str
    title: str
    dtype: torch.dtype
    autocast: bool
    gemm: str
    tolerance: float
    noise: float = 1e-2
    half: torch.dtype = torch.bfloat16
    matmul: str | None = None
    loss_scale: float = 1.0

    def context(self, device_type: str = "cpu") -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.autocast:
            return torch.autocast(device_type, dtype=self.half)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """Both passes run under the float32 matmul precision of this variant; the caller's is put
        back."""
        before = torch.get_float32_matmul_precision()
        if self.matmul is not None:
            torch.set_float32_matmul_precision(self.matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


FP64 = Variant(
    "fp64", "float64", torch.float64, False, "fp32", 1e-9, 1e-11
)  # for checks, never timed
VARIANTS = {
    "fp32": Variant("fp32", "float32", torch.float32, False, "fp32", 1e-3, 1e-6),
    "bf16-autocast": Variant(
        "bf16-autocast", "float32 inputs under bfloat16 autocast", torch.float32, True, "bf16", 5e-2
    ),
    "bf16-inputs": Variant(
        "bf16-inputs", "bfloat16 inputs under bfloat16 autocast", torch.bfloat16, True, "bf16", 5e-2
    ),
    "tf32": Variant(
        "tf32", "float32 inputs, float32 matmul precision 'high'", torch.float32, False, "tf32",
        2e-2, matmul="high",
    ),
}  # fmt: skip
# What is timed on CUDA devices. 4096 keeps the small off-diagonal gradients of float16 out of the
# subnormals and its diagonal ones, up to 2 times the scale, away from overflow.
CUDA_VARIANTS = {
    "fp32": replace(VARIANTS["fp32"], matmul="highest"),
    "tf32": Variant(
        "tf32", "float32 inputs, TF32 products", torch.float32, False, "tf32", 2e-2, 1e-3,
        matmul="high",
    ),
    "bf16-autocast": VARIANTS["bf16-autocast"],
    "bf16-inputs": VARIANTS["bf16-inputs"],
    "fp16-inputs": Variant(
        "fp16-inputs", "float16 inputs under float16 autocast", torch.float16, True, "fp16", 5e-2,
        half=torch.float16, loss_scale=4096.0,
    ),
}  # fmt: skip
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


def parse_variants(text: str, variants: Mapping[str, Variant] = VARIANTS) -> list[Variant]:
    """'fp32,bf16' -> variants, 'bf16' being both of its own; ValueError for an unknown name."""
    names = cli.listed(text, [*variants, *ALIASES], "dtype")
    names = [full for name in names for full in ALIASES.get(name, (name,))]
    return [variant for name, variant in variants.items() if name in names]


def random_pair(n: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Pair:
    """Two views that correlate by about a half, gradients wanted, on the generator's device."""

    def normal() -> Tensor:
        return torch.randn(n, d, generator=generator, device=generator.device)

    shared = normal()
    views = (shared + normal() for _ in range(2))
    z_a, z_b = (view.to(dtype).requires_grad_() for view in views)
    return z_a, z_b


def rotation(
    n: int, d: int, dtype: torch.dtype, cache_bytes: int, device: torch.device | str = "cpu"
) -> list[Pair]:
    """Pairs to take turns: twice the last-level cache in all, so each has left it when due."""
    count = -(-2 * cache_bytes // (2 * n * d * dtype.itemsize))
    generator = torch.Generator(device).manual_seed(0)
    return [random_pair(n, d, dtype, generator) for _ in range(min(max(count, 2), 64))]
