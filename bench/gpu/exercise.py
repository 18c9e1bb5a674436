"""Every kernel a few times on small, odd shapes: what compute-sanitizer watches.

Small, because a watched kernel runs hundreds of times slower; odd, because that is where an index
leaves its tensor.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import torch

import barlow_fast
from barlow_fast import kernels
from barlow_fast.data import PRESETS, draw
from barlow_fast.kernels import why_unusable
from bench import exits

SHAPES = ((33, 257), (130, 200), (200, 96), (257, 65))
VIEWS = ((5, 33, 31), (3, 7, 5), (2, 40, 224))  # number, height, width
FORMS = ("gram", "correlation")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    """Runs both forms at every shape and precision; an exit status of `bench.exits`."""
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return exits.NO_DEVICE
    device = torch.device("cuda")
    reason = why_unusable("triton", device)
    if reason is not None:
        print(f"nothing to exercise: {reason}")
        return exits.COMPLETE
    generator = torch.Generator(device).manual_seed(0)
    for (n, d), form, precision in itertools.product(SHAPES, FORMS, PRECISIONS):
        dtype = DTYPE.get(precision, torch.float32)
        pair = [
            torch.randn(n, d, device=device, generator=generator).to(dtype).requires_grad_()
            for _ in range(2)
        ]
        options = {"form": form, "precision": precision, "backend": "triton"}
        loss = barlow_fast.barlow_twins_loss(*pair, **options)
        gradients = torch.autograd.grad(loss, pair)
        torch.cuda.synchronize()
        if not all(value.isfinite().all() for value in (loss, *gradients)):
            print(f"not finite: {n} x {d} {form} {precision}")
            return exits.FAILED
        print(f"{n} x {d} {form} {precision}: loss {loss.item():.6g}", flush=True)
    return _exercise_views(device)


def _exercise_views(device: torch.device) -> int:
    """The photometric kernels, with and without colour, to every type."""
    views = PRESETS["imagenet"]
    run = kernels.load("triton").photometric
    for (count, height, width), channels in itertools.product(VIEWS, (1, 3)):
        crops = torch.randint(
            0, 256, (count, height, width, channels), dtype=torch.uint8, device=device
        )
        statistics = [torch.full((channels,), 0.5, device=device) for _ in range(2)]
        for number, view in enumerate(views.views):
            parameters = draw(view, 0, 0, np.arange(count), number)
            rows = torch.from_numpy(parameters.photometric_rows(height, width)).to(device)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                found = run(crops, rows, *statistics, dtype)
                torch.cuda.synchronize()
                if not found.isfinite().all():
                    print(f"not finite: view {number} of {height} x {width} x {channels}")
                    return exits.FAILED
        print(f"{count} views of {height} x {width} x {channels}", flush=True)
    return exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
