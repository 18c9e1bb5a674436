"""What is timed: dtype variants, random inputs, and the shapes of each kind of device, most
important first."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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


Shape = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """Two (n, d) views in one variant."""

    n: int
    d: int
    variant: Variant

    def __str__(self) -> str:
        return f"{self.n}x{self.d} {self.variant.name}"

    def columns(self) -> dict[str, Any]:
        """Of its rows."""
        return {"n": self.n, "d": self.d, "dtype": self.variant.name}


@dataclass(frozen=True)
class Grid:
    """The shapes of one kind of device.

    Attributes:
        waves: (shapes, names of dtypes; None for all) one after the other, most important first.
        quick: shapes of a quick look.
        more: shapes that `--full` adds, in the first dtype.
        compiled: shapes, and names of dtypes, at which peers take part that compile for each.
        main: shapes that tables show first.
        memory: shapes, and names of dtypes, of the suite memory.
    """

    waves: tuple[tuple[Sequence[Shape], Sequence[str] | None], ...]
    quick: Sequence[Shape]
    more: Sequence[Shape]
    compiled: tuple[Sequence[Shape], Sequence[str]]
    main: Sequence[Shape]
    memory: tuple[str, str]

    def cases(
        self, variants: Sequence[Variant], shapes: Sequence[Shape] | None = None, full: bool = False
    ) -> list[Case]:
        """All cases, each once: those of `shapes` in every variant, else the waves."""
        waves = self.waves if shapes is None else ((shapes, None),)
        if full:
            waves = (*waves, (self.more, [variants[0].name]))
        known = {variant.name: variant for variant in variants}
        found = {
            Case(*shape, known[name]): None
            for shapes, names in waves
            for name in (known if names is None else names)
            if name in known
            for shape in shapes
        }
        return list(found)

    def compiles(self, case: Case) -> bool:
        """Whether peers that compile take part."""
        shapes, dtypes = self.compiled
        return (case.n, case.d) in shapes and case.variant.name in dtypes


_MAIN = parse_shapes(
    "256x1024,256x2048,256x4096,256x8192,1024x1024,4096x512,1024x4096,512x8192,"
    "16384x256,65536x128,128x16384"
)
# Where products take most of the time: float32 matmul precision 'high' changes nothing else.
_MATRIX = parse_shapes("256x8192,512x8192,1024x1024,1024x4096,2048x2048,4096x512")
_BATCHES = (32, 128, 512, 2048, 8192, 65536)
_DIMENSIONS = (64, 256, 1024, 4096, 16384, 65536, 131072)
_MOST_ELEMENTS = 2**26  # of one input
_MOST_OPERATIONS = 5e11  # of one forward and backward pass: a few seconds on two cores
CPU_GRID = Grid(
    waves=((_MAIN, ("fp32", "bf16-autocast", "bf16-inputs")), (_MATRIX, ("tf32",))),
    quick=parse_shapes("256x1024,256x2048,1024x1024,4096x512"),
    more=[
        (n, d)
        for n, d in itertools.product(_BATCHES, _DIMENSIONS)
        if n * d <= _MOST_ELEMENTS and 6 * n * d * min(n, d) <= _MOST_OPERATIONS
    ],
    # Compiling takes ten seconds for each peer and shape.
    compiled=(parse_shapes("256x1024,256x4096,1024x1024,4096x512"), ("fp32",)),
    main=_MAIN,
    memory=("256x8192,512x65536", "fp32"),
)

_MANY_SAMPLES = (169343, 256)  # all nodes of a large graph at once: N far beyond D
_FIRST_SHAPES = ((2048, 8192), (256, 8192), _MANY_SAMPLES)
_FIRST = ("bf16-inputs", "bf16-autocast", "fp32")
_REST = ("tf32", "fp16-inputs")
_COMPILED = ((2048, 8192), (256, 8192), (256, 2048), (4096, 512))
_EVERY = (
    _MANY_SAMPLES,
    *itertools.product((64, 256, 1024, 2048, 4096), (512, 2048, 8192, 16384, 65536)),
)
CUDA_GRID = Grid(
    waves=(
        (_FIRST_SHAPES, _FIRST),
        (_COMPILED, _FIRST),
        (_EVERY, _FIRST),
        (_FIRST_SHAPES, _REST),
        (_EVERY, _REST),
    ),
    quick=_FIRST_SHAPES,
    more=(),
    # Each peer compiles for up to a minute, tuning included.
    compiled=(_COMPILED, ("bf16-inputs", "fp32")),
    main=(*_FIRST_SHAPES, *_COMPILED),
    memory=("256x8192,2048x8192,169343x256,4096x16384,512x65536", "fp32,bf16-inputs"),
)
