"""Baselines of an encoder: its architecture without training, and raw pixels."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..models import Architecture, build_encoder


def random_weights(encoder: nn.Module, seed: int) -> nn.Module:
    """The same architecture with random weights, as before any training, in the same mode and on
    the same device.

    An encoder of `barlow_fast.models.build_encoder` is built again. In a copy of any other every
    module draws its weights as at its construction (`reset_parameters`, in the order of
    `modules()`); parameters of modules without that method, such as a vision transformer's
    position embedding, become normal with standard deviation 0.02, or 0 where they have one
    dimension, and buffers there stay. The global generator is left as it was.

    Args:
        encoder: stays as it is.
        seed: of the weights.
    """
    # Drawn on the CPU, so that a seed gives the same weights wherever the encoder is.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        architecture = getattr(encoder, "architecture", None)
        if isinstance(architecture, Architecture):
            fresh = build_encoder(**architecture.arguments())
        else:
            fresh = copy.deepcopy(encoder).cpu()
            for module in fresh.modules():
                _draw(module)
    first = next(encoder.parameters(), None)
    fresh = fresh if first is None else fresh.to(first.device)
    return fresh.train(encoder.training)


def _draw(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
        return
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.zeros_(parameter)


def raw_pixels() -> nn.Module:
    """Stands in for an encoder whose features are the pixels themselves."""
    return nn.Flatten()
