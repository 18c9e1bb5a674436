"""Compiling ahead of the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .arguments import Keywords
from .explain import named
from .forms.family import BARLOW_TWINS, FROSSL, MIXED
from .losses.barlow_twins import barlow_twins_loss
from .losses.frossl import frossl_loss
from .losses.mixed_barlow_twins import mixed_barlow_twins_loss
from .losses.vicreg import vicreg_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


def warmup(
    shapes: Iterable[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cuda",
    *,
    loss: str = "barlow-twins",
    views: int | None = None,
    **options: Unpack[Keywords],
) -> None:
    """Runs a loss forward and backward once per shape, so that no later step compiles.

    Triton compiles a kernel when it first meets its types and block sizes, a second or so each, and
    keeps the result on disk. Call this before the first step, before CUDA graphs are captured, or
    once per node before many ranks start at the same time.

    Args:
        shapes: (N, D) of the embeddings; a last, shorter batch is a shape of its own only where it
            falls into another bucket of the configuration table.
        dtype: dtype of the embeddings; call under autocast for what runs under autocast.
        device: where the embeddings will be.
        loss: 'barlow-twins', 'mixed-barlow-twins', 'vicreg' or 'frossl'.
        views: how many embeddings; None for two, of mixed Barlow Twins three.
        options: `precision`, `form`, `backend` and so on, as given to the loss. With
            `process_group`, all ranks call, with shapes of their own rows.

    Raises:
        TypeError: a number of views that is none.
        ValueError: a shape that the loss refuses, an unknown loss, views that it does not take.
    """
    device = torch.device(device)
    name, count = named(loss, views)
    for n, d in shapes:
        z = [torch.randn(n, d, device=device).to(dtype).requires_grad_() for _ in range(count)]
        if name == MIXED:
            order = torch.arange(n, device=device)
            value = mixed_barlow_twins_loss(*z, order, 0.5, **options)
        elif name == BARLOW_TWINS:
            value = barlow_twins_loss(z, **options)
        else:
            value = (frossl_loss if name == FROSSL else vicreg_loss)(z, **options)
        value.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
