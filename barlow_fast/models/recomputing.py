"""Gradient checkpointing of encoders: activations inside a block are computed again in the
backward pass instead of being kept."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from .encoders import _small_stages
from .small import SmallEncoder


def checkpoint_activations(encoder: nn.Module) -> int:
    """Makes every block of an encoder keep its input alone; the rest is computed a second time in
    the backward pass. Returns the number of blocks.

    Gradients are those without it, and so are the running statistics of batch norm: the second
    computation leaves them alone. Dropout draws the same numbers again. Keys of the state dict,
    parameters and hooks stay as they are. A block is what stands in a sequence of the network:
    residual blocks, transformer blocks, the stages of `SmallEncoder`. Not for use under
    torch.compile, which decides on its own what to compute again.

    Raises:
        ValueError: no part of the encoder is a block (such as in a VGG).
    """
    if isinstance(encoder, SmallEncoder):
        encoder.forward = types.MethodType(_forward_by_stage, encoder)
        return len(list(_small_stages(encoder)))
    blocks = list(_blocks(encoder))
    if not blocks:
        raise ValueError(
            f"{type(encoder).__name__} has no blocks whose activations could be computed again"
        )
    for block in blocks:
        # Of the instance, bound, so that a copy of the encoder calls its own blocks.
        block.forward = types.MethodType(_forward_block, block)
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parts of their own that stand in a sequence."""
    in_sequence = isinstance(module, (nn.Sequential, nn.ModuleList))
    for child in module.children():
        if next(child.children(), None) is None:
            continue
        if in_sequence and not isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield child
        else:
            yield from _blocks(child)


def _forward_block(self: nn.Module, *inputs: Any, **named: Any) -> Any:
    forward = type(self).forward
    if not torch.is_grad_enabled():
        return forward(self, *inputs, **named)
    return checkpoint(
        forward,
        self,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept([self])),
        **named,
    )


def _forward_by_stage(self: SmallEncoder, images: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return SmallEncoder.forward(self, images)
    end = 0
    for start, end in _small_stages(self):
        layers = list(self)[start:end]
        images = checkpoint(
            _in_turn,
            layers,
            images,
            use_reentrant=False,
            context_fn=lambda layers=layers: (contextlib.nullcontext(), _statistics_kept(layers)),
        )
    return _in_turn(list(self)[end:], images)


def _in_turn(layers: list[nn.Module], images: Tensor) -> Tensor:
    for layer in layers:
        images = layer(images)
    return images


@contextlib.contextmanager
def _statistics_kept(modules: list[nn.Module]) -> Iterator[None]:
    """Batch norms inside go through their motions with momentum 0 and without counting: what they
    save for the backward pass must be as it was the first time, what they remember must not move.
    """
    norms = {
        norm: (norm.momentum, norm.num_batches_tracked)
        for module in modules
        for norm in module.modules()
        if isinstance(norm, _NormBase) and norm.track_running_stats
    }
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counted) in norms.items():
            norm.momentum, norm.num_batches_tracked = momentum, counted
