"""Which shapes are timed on a device, most important first, and where peers that compile take
part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.inputs import Variant, parse_shapes

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
