"""Weights that show every mistake."""

from __future__ import annotations

from torch import nn


def scramble(module: nn.Module) -> nn.Module:
    """Norms that are not the identity, so that no forgotten buffer goes unseen; eval mode."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d)):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.0)
                nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module.eval()
