"""The optimizer of a run's settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..checkpoints.state import MATRICES
from .config import MUON, PretrainConfig
from .lars import LARS, parameter_groups
from .muon import Muon, matrices
from .schedule import learning_rate


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Groups of weights (more than one dimension) first, with Muon the encoder's matrices before
    the others; then biases and norms, which have no weight decay.

    Raises:
        ValueError: nothing to train.
    """
    weights, biases = config.learning_rates
    groups = parameter_groups(
        model, weights_lr=weights, biases_lr=biases, weight_decay=config.weight_decay
    )
    if config.optimizer == "lars":
        return LARS(
            groups,
            lr=weights,
            momentum=config.momentum,
            trust_coefficient=config.trust_coefficient,
        )
    for group in groups:
        del group["weight_decay_filter"], group["lars_adaptation_filter"]
    # Sharded parameters have no fused kernel everywhere.
    fused = not any(hasattr(p, "device_mesh") for p in model.parameters())
    if config.optimizer == MUON:
        return Muon(_matrices_apart(groups, model), weights, config.momentum, fused=fused)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=weights, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=weights, fused=fused)


def _matrices_apart(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups, that of the weights in two: the encoder's matrices, and the others."""
    chosen = set(matrices(model.encoder))
    parts = []
    for group in groups:
        ours = [p for p in group["params"] if p in chosen]
        others = [p for p in group["params"] if p not in chosen]
        parts += [{**group, "params": ours, MATRICES: True}, {**group, "params": others}]
    return [part for part in parts if part["params"]]


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    config: PretrainConfig,
    step: int,
    total_steps: int,
    steps_per_epoch: int,
) -> None:
    """Those of a step: a pure function of it."""
    for group in optimizer.param_groups:
        # The group of biases may stand alone: identified by its parameters, not by its place.
        of_biases = all(p.ndim <= 1 for p in group["params"])
        group["lr"] = learning_rate(
            step,
            total_steps,
            config.learning_rates[of_biases],
            config.warmup_epochs * steps_per_epoch,
            config.final_learning_rate,
        )
