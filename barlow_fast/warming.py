"""Compiling ahead of the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .arguments import Keywords
from .losses.barlow_twins import barlow_twins_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


def warmup(
    shapes: Iterable[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cuda",
    **options: Unpack[Keywords],
) -> None:
    """Runs the loss forward and backward once per shape, so that no later step compiles.

    Triton compiles a kernel when it first meets its types and block sizes, a second or so each, and
    keeps the result on disk. Call this before the first step, before CUDA graphs are captured, or
    once per node before many ranks start at the same time.

    Args:
        shapes: (N, D) of the embeddings; a last, shorter batch is a shape of its own only where it
            falls into another bucket of the configuration table.
        dtype: dtype of the embeddings; call under autocast for what runs under autocast.
        device: where the embeddings will be.
        options: `precision`, `form`, `backend` and so on, as given to the loss. With
            `process_group`, all ranks call, with shapes of their own rows.

    Raises:
        ValueError: a shape that the loss refuses.
    """
    device = torch.device(device)
    for n, d in shapes:
        z_a, z_b = (torch.randn(n, d, device=device).to(dtype).requires_grad_() for _ in range(2))
        barlow_twins_loss(z_a, z_b, **options).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
