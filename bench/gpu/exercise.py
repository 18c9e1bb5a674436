"""Every kernel a few times on small, odd shapes: what compute-sanitizer watches.

Small, because a watched kernel runs hundreds of times slower; odd, because that is where an index
leaves its tensor.
"""

from __future__ import annotations

import itertools
import sys

import torch

import barlow_fast
from barlow_fast.kernels import why_unusable
from bench.gpu import exits

SHAPES = ((33, 257), (130, 200), (200, 96), (257, 65))
FORMS = ("gram", "correlation")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    """Runs both forms at every shape and precision; an exit status of `bench.gpu.exits`."""
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
    return exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
