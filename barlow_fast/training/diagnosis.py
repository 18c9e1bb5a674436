"""Find the first non-finite tensor."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def gradients_finite(model: nn.Module) -> Tensor:
    """Whether every gradient is finite: a 0-dim bool tensor, without a wait for the device."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        return torch.tensor(True, device="cpu")
    # A sum of magnitudes is finite only if every one is, or where it overflows: then the gradient
    # is beyond use as well.
    norms = torch._foreach_norm(gradients, 1)
    return torch.stack([norm.float() for norm in norms]).isfinite().all()


@torch.no_grad()
def first_bad_tensor(
    model: nn.Module,
    views: Sequence[Tensor],
    autocast: Callable[[], AbstractContextManager],
    index: Tensor | None = None,
) -> str:
    """Names the first tensor, in the order of the computation, that holds a NaN or an infinity.

    Looks at the views, the weights and buffers, the output of every module (in a forward pass of a
    copy) and the gradients, in this order.

    Args:
        model: with the weights of the step in question, and its gradients where they were computed.
        views: of that step.
        autocast: makes the context that the step ran in.
        index: (B,) sample numbers, to name the image of a bad view.
    """
    for name, view in zip(string.ascii_lowercase, views, strict=False):
        bad = ~view.isfinite().flatten(1).all(1)
        if bad.any():
            place = int(bad.nonzero()[0])
            sample = "" if index is None else f", sample {int(index[place])}"
            return f"view {name} (row {place}{sample})"
    for kind, tensors in (("weight", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                return f"the {kind} {name} ({_count(tensor)})"
    found: list[str] = []
    # A copy, because the pass moves batch norm's statistics.
    watched = copy.deepcopy(model).train()
    for name, module in watched.named_modules():
        module.register_forward_hook(_noting(name, found))
    with autocast():
        watched(*views)
    if found:
        return found[0]
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name} ({_count(parameter.grad)})"
    return "the loss itself: embeddings and weights are finite"


def _noting(name: str, found: list[str]) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if found:
            return
        for tensor in _tensors(output):
            if not tensor.isfinite().all():
                kind = type(module).__name__
                found.append(f"the output of {name or 'the model'}, {kind} ({_count(tensor)})")
                return

    return note


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def _count(tensor: Tensor) -> str:
    bad = int((~tensor.isfinite()).sum())
    return f"{bad} of {tensor.numel()} values"
