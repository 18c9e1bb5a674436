"""States of LARS optimizers of other libraries, in the layout of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

MOMENTUM, OFFICIAL_MOMENTUM = "momentum_buffer", "mu"
# By the first match: (library, keys that a group has, keys that it lacks, key of the momentum).
LAYOUTS = (
    (
        "barlow_fast",
        {"trust_coefficient", "weight_decay_filter", "lars_adaptation_filter"},
        {"eta", "dampening"},
        MOMENTUM,
    ),
    (
        "facebookresearch/barlowtwins",
        {"eta", "weight_decay_filter", "lars_adaptation_filter"},
        {"trust_coefficient", "dampening"},
        OFFICIAL_MOMENTUM,
    ),
    (
        "solo-learn",
        {"eta", "clip_lr", "exclude_bias_n_norm", "dampening", "nesterov"},
        {"trust_coefficient"},
        MOMENTUM,
    ),
    (
        "lightly",
        {"trust_coefficient", "dampening", "nesterov"},
        {"eta", "weight_decay_filter"},
        MOMENTUM,
    ),
)
# Settings whose update `LARS` does not compute, with the value that leaves them off.
REFUSED = {"dampening": 0, "nesterov": False, "clip_lr": False, "maximize": False}


def translated_state(
    state_dict: Mapping[str, Any], own_groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A copy of `state_dict` in the layout of `barlow_fast.training.LARS`.

    Args:
        state_dict: of any of `LAYOUTS`.
        own_groups: the groups of the optimizer that loads it.

    Raises:
        ValueError: another layout, other groups, settings that `LARS` does not have, or momentum of
            other shapes.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else state_dict
        raise ValueError(
            "state_dict must be that of an optimizer, with 'state' and 'param_groups', got "
            f"{found!r:.200}"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    sizes, ours = ([len(g["params"]) for g in gs] for gs in (groups, own_groups))
    if sizes != ours:
        raise ValueError(f"state_dict has groups of {sizes} parameters, this optimizer of {ours}")
    names = {_layout_of(group)[0] for group in groups}
    if len(names) > 1:
        raise ValueError(f"state_dict has groups of several layouts: {sorted(names)}")
    new_groups, new_state = [], dict(state)
    for group, mine in zip(groups, own_groups, strict=True):
        new_groups.append(_translated_group(group, mine))
        key = _layout_of(group)[1]
        for index, parameter in zip(group["params"], mine["params"], strict=True):
            if index in state:
                new_state[index] = _translated_momentum(index, state[index], key, parameter)
    return {**state_dict, "state": new_state, "param_groups": new_groups}


def _layout_of(group: Mapping[str, Any]) -> tuple[str, str]:
    """(The library whose layout a group has, its key of the momentum).

    Raises:
        ValueError: an unknown layout.
    """
    for name, present, absent, key in LAYOUTS:
        if present <= set(group) and not absent & set(group):
            return name, key
    # mmpretrain's looks like solo-learn's but for the ratio's clipping, and its momentum has the
    # learning rate in it: it must not pass for one of the others.
    raise ValueError(
        "state_dict is not of a LARS that can be read: a group has "
        f"{sorted(set(group) - {'params'})}; known are those of "
        f"{', '.join(name for name, *_ in LAYOUTS)}"
    )


def _translated_group(group: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """A group of any known layout with our keys."""
    name, _ = _layout_of(group)
    if name == "barlow_fast":
        return dict(group)
    for key, accepted in REFUSED.items():
        if group.get(key, accepted) != accepted:
            raise ValueError(
                f"state_dict is of a run of {name} with {key} = {group[key]!r}; this optimizer can "
                f"only continue from {key} = {accepted!r}"
            )
    known = {"lr", "weight_decay", "momentum", "initial_lr", "params"}
    new = {key: value for key, value in group.items() if key in known}
    new["trust_coefficient"] = group.get("eta", group.get("trust_coefficient"))
    for flag in ("weight_decay_filter", "lars_adaptation_filter"):
        new[flag] = group.get(flag, group.get("exclude_bias_n_norm", mine[flag]))
    return new


def _translated_momentum(
    index: Any, state: Mapping[str, Any], key: str, parameter: Tensor
) -> dict[str, Any]:
    """One parameter's state with our key."""
    if set(state) - {key}:
        raise ValueError(
            f"state_dict has {sorted(state)} for parameter {index}; expected {key!r} alone"
        )
    if state.get(key) is None:
        return {}
    momentum = state[key]
    if not isinstance(momentum, Tensor) or momentum.shape != parameter.shape:
        found = tuple(momentum.shape) if isinstance(momentum, Tensor) else type(momentum).__name__
        raise ValueError(
            f"state_dict has a {key!r} of {found} for parameter {index}, whose shape is "
            f"{tuple(parameter.shape)}"
        )
    return {MOMENTUM: momentum}
