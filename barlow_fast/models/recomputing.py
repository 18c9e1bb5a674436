"""Gradient checkpointing of encoders: activations inside a block are computed again in the
backward pass instead of being kept."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
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
    residual blocks, transformer blocks, the stages of `SmallEncoder`. Works under
    torch.compile, but for blocks with synchronised norms or norms without a momentum: those keep
    their activations there.

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
    return _twice(forward, [self], self, *inputs, **named)


def _forward_by_stage(self: SmallEncoder, images: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return SmallEncoder.forward(self, images)
    end = 0
    for start, end in _small_stages(self):
        layers = list(self)[start:end]
        images = _twice(_in_turn, layers, layers, images)
    return _in_turn(list(self)[end:], images)


def _twice(forward: Callable, modules: list[nn.Module], *inputs: Any, **named: Any) -> Any:
    """`forward` of the inputs, to be computed again in the backward pass; `modules` are those in
    it."""
    if torch.compiler.is_compiling():
        # It takes no context. What a graph computes again changes no buffers, but a norm that
        # breaks the graph would be back in plain Python without its context.
        if not all(map(_compiles_whole, modules)):
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(modules)),
        **named,
    )


def _in_turn(layers: list[nn.Module], images: Tensor) -> Tensor:
    for layer in layers:
        images = layer(images)
    return images


def _compiles_whole(module: nn.Module) -> bool:
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return all(
        isinstance(part, plain) and part.momentum is not None
        for part in module.modules()
        if isinstance(part, _NormBase)
    )


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
