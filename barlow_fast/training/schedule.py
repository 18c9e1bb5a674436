"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.001) -> float:
    """Linear warm-up from peak / warmup, then half a cosine down to `final` * peak, for step 0 ..
    steps - 1.

    Raises:
        ValueError: warmup outside [0, steps].
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"warm-up of {warmup} steps does not fit into {steps} steps")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
