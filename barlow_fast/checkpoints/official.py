"""Checkpoints in the layout of facebookresearch/barlowtwins, both ways.

    {"epoch": int, "model": {"module.backbone.*", "module.projector.*", "module.bn.*"},
     "optimizer": {"state": {index: {"mu"}}, "param_groups": [weights, biases and norms]}}

`bn` is the batch norm without weights in front of their loss. In training it uses the batch's
statistics and only collects its running ones, which nothing reads; our loss keeps none. They are
written as those of a fresh layer: mean 0, variance 1, nothing counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import whole_file
from ..models import BarlowTwinsModel
from . import archive
from .lars import MOMENTUM, OFFICIAL_MOMENTUM
from .layouts import COUNTERS, take_apart
from .reading import read_checkpoint

# Theirs and ours.
MOMENTUM_KEYS = (OFFICIAL_MOMENTUM, MOMENTUM)
TRUST_KEYS = ("eta", "trust_coefficient")


def to_official(
    model: BarlowTwinsModel, *, epoch: int, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """A checkpoint that the official `main.py` resumes from, if the encoder is its ResNet-50 and
    the projector has no biases.

    Args:
        model: encoder and projector.
        epoch: the next to train, from 0, as the official code counts.
        optimizer: a LARS over exactly the model's parameters, in any groups; None leaves the
            momentum out, and the official code then cannot resume, only be read.

    Raises:
        ValueError: another optimizer than LARS, other parameters than the model's, or settings
            that differ among weights or among biases.
    """
    state = {f"module.backbone.{key}": v for key, v in model.encoder.state_dict().items()}
    state |= {f"module.projector.{key}": v for key, v in model.projector.state_dict().items()}
    dimensions = _dimensions(model.projector)
    state |= {
        "module.bn.running_mean": torch.zeros(dimensions, device="cpu"),
        "module.bn.running_var": torch.ones(dimensions, device="cpu"),
        "module.bn.num_batches_tracked": torch.tensor(0, device="cpu"),
    }
    state = {key: value.detach().cpu().clone() for key, value in state.items()}
    content: dict[str, Any] = {"epoch": int(epoch), "model": state}
    if optimizer is not None:
        content["optimizer"] = _optimizer_state(model, optimizer)
    return content


def save_official(
    path: Path | str,
    model: BarlowTwinsModel,
    *,
    epoch: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Writes `to_official` to a file, whole or not at all.

    Raises:
        ValueError: see `to_official`.
        OSError: the file cannot be written; an old one stays.
    """
    content = to_official(model, epoch=epoch, optimizer=optimizer)
    with whole_file(path) as temporary:
        archive.save(content, temporary)


def load_official(
    path: Path | str, model: BarlowTwinsModel, optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Loads an official `checkpoint.pth` into a model, and its momentum into a LARS over the
    model's parameters. Returns the epoch to continue with.

    The optimizer keeps its own settings: a schedule sets them anyway.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not of this layout, or not of this model; nothing is loaded then.
    """
    content, _ = read_checkpoint(path)
    parts = take_apart(content, path)
    if parts.format != "official":
        raise ValueError(f"{path} is a checkpoint of {parts.format}, not an official one")
    if not isinstance(content.get("epoch"), int):
        raise ValueError(f"{path} holds no epoch")
    for name, part, state in (
        ("encoder", model.encoder, parts.encoder),
        ("projector", model.projector, parts.projector),
    ):
        _check(part.state_dict(), state, f"{path} does not fit the model's {name}")
    momenta = {} if optimizer is None else _momenta(content.get("optimizer"), model, path)
    if optimizer is not None:
        _check_optimizer(model, optimizer)
    model.encoder.load_state_dict(parts.encoder)
    model.projector.load_state_dict(parts.projector)
    if optimizer is not None:
        theirs = "eta" in optimizer.param_groups[0]
        for parameter, momentum in momenta.items():
            kept = momentum.to(parameter.device, parameter.dtype, copy=True)
            optimizer.state[parameter] = {MOMENTUM_KEYS[0 if theirs else 1]: kept}
    return content["epoch"]


def _dimensions(projector: nn.Module) -> int:
    return [layer for layer in projector.modules() if isinstance(layer, nn.Linear)][-1].out_features


def _ordered(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights, then biases and weights of norms: the two official groups, in their order."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.ndim != 1], [p for p in parameters if p.ndim == 1]


def _groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if not any(key in optimizer.param_groups[0] for key in TRUST_KEYS):
        raise ValueError(f"optimizer must be a LARS, got {type(optimizer).__name__}")
    if {p for p, _ in _groups(optimizer)} != set(model.parameters()):
        raise ValueError("the optimizer has other parameters than the model")


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    _check_optimizer(model, optimizer)
    group_of = dict(_groups(optimizer))
    state: dict[int, dict[str, Tensor]] = {}
    written = []
    for name, members in zip(("weights", "biases and norms"), _ordered(model), strict=True):
        settings = [_official_settings(group_of[parameter]) for parameter in members]
        if any(other != settings[0] for other in settings):
            raise ValueError(f"the optimizer's settings differ among the {name}")
        start = len(state) if not written else len(written[0]["params"])
        written.append({**settings[0], "params": list(range(start, start + len(members)))})
        for index, parameter in enumerate(members, start):
            kept = optimizer.state.get(parameter, {})
            momentum = next((kept[key] for key in MOMENTUM_KEYS if key in kept), None)
            if momentum is not None:
                state[index] = {OFFICIAL_MOMENTUM: momentum.detach().cpu().clone()}
    return {"state": state, "param_groups": written}


def _official_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    trust = next(group[key] for key in TRUST_KEYS if key in group)
    return {
        "lr": float(group["lr"]),
        "weight_decay": float(group["weight_decay"]),
        "momentum": float(group["momentum"]),
        "eta": float(trust),
        "weight_decay_filter": bool(group.get("weight_decay_filter", True)),
        "lars_adaptation_filter": bool(group.get("lars_adaptation_filter", True)),
    }


def _momenta(optimizer: Any, model: nn.Module, path: Path | str) -> dict[nn.Parameter, Tensor]:
    """The file's momentum by parameter of ours."""
    groups = _ordered(model)
    try:
        indices = [list(group["params"]) for group in optimizer["param_groups"]]
        state = dict(optimizer["state"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no optimizer state of the official layout") from error
    if [len(group) for group in indices] != [len(group) for group in groups]:
        raise ValueError(
            f"{path} has an optimizer of {[len(group) for group in indices]} parameters, the model "
            f"has {[len(group) for group in groups]} (weights, biases and norms)"
        )
    found = {}
    for members, positions in zip(groups, indices, strict=True):
        for parameter, position in zip(members, positions, strict=True):
            kept = state.get(position)
            if kept is None:
                continue
            momentum = kept.get(OFFICIAL_MOMENTUM) if isinstance(kept, Mapping) else None
            if not isinstance(momentum, Tensor) or momentum.shape != parameter.shape:
                raise ValueError(
                    f"{path}: the momentum of parameter {position} is not a tensor of shape "
                    f"{tuple(parameter.shape)}"
                )
            found[parameter] = momentum
    return found


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], words: str) -> None:
    differing = [
        key
        for key in {**expected, **state}
        if not key.endswith(COUNTERS)
        and (key not in state or key not in expected or state[key].shape != expected[key].shape)
    ]
    if differing:
        raise ValueError(f"{words}: missing, unexpected or of another shape: {differing[:3]}")
