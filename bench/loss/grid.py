"""Which shapes are timed, and where peers that compile take part."""

from __future__ import annotations

from bench.inputs import parse_shapes

Shape = tuple[int, int]

# The most important first: where a run has only so much time, the last are left out.
SHAPES = parse_shapes(
    "256x1024,256x2048,256x4096,256x8192,1024x1024,4096x512,1024x4096,512x8192,"
    "16384x256,65536x128,128x16384"
)
QUICK_SHAPES = parse_shapes("256x1024,256x2048,1024x1024,4096x512")
# Compiling takes ten seconds for each peer and shape.
COMPILED_SHAPES = parse_shapes("256x1024,256x4096,1024x1024,4096x512")
COMPILED_VARIANTS = ("fp32",)

BATCHES = (32, 128, 512, 2048, 8192, 65536)
DIMENSIONS = (64, 256, 1024, 4096, 16384, 65536, 131072)
MOST_ELEMENTS = 2**26  # of one input
MOST_OPERATIONS = 5e11  # of one forward and backward pass: a few seconds on two cores


def full() -> list[Shape]:
    """The shapes of the tables, then all pairs of BATCHES and DIMENSIONS that are affordable."""
    pairs = [(n, d) for n in BATCHES for d in DIMENSIONS]
    affordable = (
        (n, d)
        for n, d in pairs
        if n * d <= MOST_ELEMENTS and 6 * n * d * min(n, d) <= MOST_OPERATIONS
    )
    return list(dict.fromkeys((*SHAPES, *affordable)))
