"""The table of configurations: which blocks, warps and stages each product uses.

One row per kernel, operand family, architecture and size. The size is the largest N (Gram kernels)
or D (correlation kernels) that a row serves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

SUM_ALIGNMENT = 64  # the largest BLOCK_K: stored matrices are zero up to a multiple of it
OPERAND_ALIGNMENT = 256  # the largest BLOCK_N: blocks of a stored operand never leave its rows

# Operand families; MIXED: half-precision operands made from float32 inputs, where it has a row of
# its own.
HALF, MIXED, SINGLE, SPLIT_SINGLE = "half", "mixed", "tf32", "fp32"
FAMILIES = {"bf16": HALF, "fp16": HALF, "tf32": SINGLE, "fp32": SPLIT_SINGLE}

LARGE = 1 << 62  # the size without a bound, 'any'

# Paths of `gram`: 'fused' (z is standardised on its way into the product, both views in one
# launch), 'stored' (z_hat is stored first, view by view), 'tma' (stored, and read with TMA),
# 'cublas' (stored, and multiplied by torch). Paths of `gram_gradients`: 'owned' (a program owns all
# rows of its columns; block_m is the padded N), 'fused' (tiles, z as above), and of z_hat that is
# stored first, view by view, 'tiles', 'tma', 'cublas'. Paths of
# `correlation_gradients`: 'fused', 'stored', 'raw' (z is the operand and C is scaled, where both
# are bfloat16; 'fused' elsewhere).
PATHS = {
    "gram": ("fused", "stored", "tma", "cublas"),
    "gram_gradients": ("owned", "fused", "tiles", "tma", "cublas"),
    "correlation": ("fused",),
    "correlation_gradients": ("fused", "raw", "stored"),
}


class Product(NamedTuple):
    """A row of the table: the blocks of one product, and how it reads its operands."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    path: str


Key = tuple[str, int, str, int]  # kernel, architecture, family, size

# Where every element of z_hat would be made many times over, it is stored once. Of three TF32
# products with BLOCK_K = 32, Ampere's operands alone fill all 255 registers, and which version of
# the compiler then spills is chance. Of 8 warps at N = 128 ptxas wants 128 registers each on
# Ampere, and may spill to get there. A TF32 operand that Hopper's pipelined products read from
# registers is overwritten under them by Triton 3.6 (sass.py), and products of half-precision
# registers wait for each other, so z_hat is stored there; for a short sum, whose time goes to
# memory, it is not: bfloat16 inputs are operands themselves, and TF32 has one stage.
_ROWS = """
kernel                family architecture size  block_m, n, k  warps stages  path
gram                  half   80           256    64   64  64    8  3  fused
gram                  half   90,100       256    64   64  64    4  4  fused
gram                  half   80          1024   128  128  64    8  3  fused
gram                  half   90,100      2048   128  128  64    8  4  fused
gram                  half   80           any   128  128  64    8  3  stored
gram                  half   90,100       any   128  128  64    8  4  tma
gram                  tf32   80,90        256    64   64  32    4  3  fused
gram                  tf32   100          256    64   64  32    8  3  fused
gram                  tf32   80          1024   128  128  32    8  3  fused
gram                  tf32   90,100      2048   128  128  32    8  3  fused
gram                  tf32   80           any   128  128  32    8  3  stored
gram                  tf32   90,100       any   128  128  32    8  4  tma
gram                  fp32   80           any    64   64  16    4  4  fused
gram                  fp32   90           any    64   64  32    4  3  fused
gram                  fp32   100          any    64   64  32    8  3  fused
gram_gradients        half   80,90,100     64    64   64  64    4  2  owned
gram_gradients        half   80           128   128   64  64    4  3  owned
gram_gradients        half   90,100       128   128   64  64    8  3  owned
gram_gradients        half   80,90,100    256   256   64  64    8  3  owned
gram_gradients        half   80,90,100    512   512   32  64    8  3  owned
gram_gradients        half   80           any   128  128  64    8  3  tiles
gram_gradients        half   90,100      2048   256  128  64    8  3  fused
gram_gradients        half   90,100       any   128  256  64    8  4  tma
gram_gradients        mixed  90,100      2048   256  128  32    8  3  fused
gram_gradients        mixed  90,100       any   128  128  64    8  4  tma
gram_gradients        tf32   80,90,100     64    64   64  32    4  2  owned
gram_gradients        tf32   80,90,100    128   128   64  32    4  3  owned
gram_gradients        tf32   80,90,100    256   256   64  32    8  3  owned
gram_gradients        tf32   80,90,100    512   512   32  32    8  2  owned
gram_gradients        tf32   80           any   128  128  32    8  3  tiles
gram_gradients        tf32   90,100      2048   128  128  32    8  3  fused
gram_gradients        tf32   90,100       any   128  128  32    8  4  tma
gram_gradients        fp32   80,90,100     64    64   32  32    4  2  owned
gram_gradients        fp32   80,90,100    128   128   32  32    4  2  owned
gram_gradients        fp32   80,90,100    256   256   32  32    8  2  owned
gram_gradients        fp32   80           any    64   64  32    4  3  tiles
gram_gradients        fp32   90           any    64   64  32    4  3  fused
gram_gradients        fp32   100          any    64   64  32    8  3  fused
correlation           half   80,90,100    128    64   64  64    4  3  fused
correlation           half   80,90,100    any   128  128  64    8  3  fused
correlation           mixed  100          any   128  128  32    8  4  fused
correlation           tf32   80,90,100    128    64   64  32    4  3  fused
correlation           tf32   80,90,100    any   128  128  32    8  3  fused
correlation           fp32   80,90,100    any    64   64  32    4  3  fused
correlation_gradients half   80,100        64   128   64  64    4  3  fused
correlation_gradients half   90            64   128   64  64    4  3  raw
correlation_gradients half   90           512   128  128  64    8  3  raw
correlation_gradients half   80,100       any   128  128  64    8  3  fused
correlation_gradients half   90           any   128  128  64    8  3  stored
correlation_gradients mixed  90            64    64   64  64    4  3  fused
correlation_gradients mixed  90           512   128   64  64    8  3  fused
correlation_gradients mixed  80,100       any   128   64  64    8  3  fused
correlation_gradients mixed  90           any   128   64  64    8  4  stored
correlation_gradients tf32   80,100        64   128   64  32    4  3  fused
correlation_gradients tf32   90           512    64  128  32    8  1  fused
correlation_gradients tf32   80,100       any   128  128  32    8  3  fused
correlation_gradients tf32   90           any   128  128  32    8  3  stored
correlation_gradients fp32   80           any    64   64  16    4  4  fused
correlation_gradients fp32   90,100       any    64   64  32    4  3  fused
"""


def _parse(text: str) -> dict[Key, Product]:
    rows = {}
    for line in text.strip().splitlines()[1:]:
        kernel, family, architectures, size, *blocks, path = line.split()
        for architecture in architectures.split(","):
            key = (kernel, int(architecture), family, LARGE if size == "any" else int(size))
            rows[key] = Product(*map(int, blocks), path)
    return rows


TABLE = _parse(_ROWS)


def row_of(kernel: str, architecture: int, precision: str, dtype: torch.dtype, size: int) -> Key:
    """The key of the table for inputs of `dtype` whose N (Gram) or D (correlation) is `size`."""
    family = FAMILIES[precision]
    families = (HALF, MIXED) if family == HALF and dtype.itemsize > 2 else (family,)
    # The smallest size that fits; of two families, the more special one.
    fitting = {s: f for f in families for s in sizes(kernel, architecture, f) if s >= size}
    smallest = min(fitting)
    return kernel, architecture, fitting[smallest], smallest


def sizes(kernel: str, architecture: int, family: str) -> list[int]:
    """The sizes in the rows of a kernel, an architecture and a family."""
    return [s for k, a, f, s in TABLE if (k, a, f) == (kernel, architecture, family)]
