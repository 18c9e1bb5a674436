"""Every kernel a few times on small, odd shapes: what compute-sanitizer watches.

Small, because a watched kernel runs hundreds of times slower; odd, because that is where an index
leaves its tensor.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import numpy as np
import torch

import barlow_fast
from barlow_fast import kernels
from barlow_fast.data import PRESETS, draw
from barlow_fast.kernels import why_unusable
from bench import exits
from bench.inputs import random_pair

SHAPES = ((33, 257), (130, 200), (200, 96), (257, 65))
VIEWS = ((5, 33, 31), (3, 7, 5), (2, 40, 224))  # number, height, width
FORMS = ("gram", "correlation")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
Results = Iterator[tuple[str, tuple[torch.Tensor, ...]]]
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    """Runs all kernels at every shape; an exit status of `bench.exits`."""
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return exits.NO_DEVICE
    device = torch.device("cuda")
    reason = why_unusable("triton", device)
    if reason is not None:
        print(f"nothing to exercise: {reason}")
        return exits.COMPLETE
    for name, results in itertools.chain(losses(device), views(device)):
        torch.cuda.synchronize()
        if not all(result.isfinite().all() for result in results):
            print(f"not finite: {name}")
            return exits.FAILED
        print(name, flush=True)
    return exits.COMPLETE


def losses(device: torch.device) -> Results:
    """Loss and gradients of both forms, in every precision."""
    generator = torch.Generator(device).manual_seed(0)
    for (n, d), form, precision in itertools.product(SHAPES, FORMS, PRECISIONS):
        pair = random_pair(n, d, DTYPE.get(precision, torch.float32), generator)
        options = {"form": form, "precision": precision, "backend": "triton"}
        loss = barlow_fast.barlow_twins_loss(*pair, **options)
        yield f"{n} x {d} {form} {precision}", (loss, *torch.autograd.grad(loss, pair))


def views(device: torch.device) -> Results:
    """The photometric kernels, with and without colour, to every type."""
    run = kernels.load("triton").photometric
    for (count, height, width), channels in itertools.product(VIEWS, (1, 3)):
        size = (count, height, width, channels)
        crops = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
        statistics = [torch.full((channels,), 0.5, device=device) for _ in range(2)]
        for number, view in enumerate(PRESETS["imagenet"].views):
            parameters = draw(view, 0, 0, np.arange(count), number)
            rows = torch.from_numpy(parameters.photometric_rows(height, width)).to(device)
            for dtype in (torch.float32, *DTYPE.values()):
                yield f"view {number} of {size} to {dtype}", (run(crops, rows, *statistics, dtype),)


if __name__ == "__main__":
    sys.exit(main())
