"""What a checkpoint holds: every field with its type, checked once, right after it was read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Phases of a step, in the order of the step; see `StepClock`.
PHASES = ("data", "forward", "loss", "backward", "update")

Check = Callable[[Any], bool]


def check_fields(state: dict[str, Any]) -> None:
    """Compares the fields that are there with what they must be.

    Raises:
        ValueError: the first that is something else.
    """
    for name, (accepted, check) in FIELDS.items():
        if name in state and not check(state[name]):
            raise ValueError(f"its {name} must be {accepted}, not {_shown(state[name])}")


def check_complete(state: dict[str, Any], total_steps: int, steps_per_epoch: int) -> None:
    """Whether a run of so many steps can continue from a state.

    Raises:
        ValueError: a field is missing or of a wrong type, or its position is outside the run.
    """
    missing = [name for name in FIELDS if name not in state]
    if missing:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}")
    check_fields(state)
    step, records = state["step"], len(state["history"])
    if step > total_steps:
        raise ValueError(
            f"the checkpoint is of step {step}, the run has {total_steps}: epochs must be at least "
            f"{-(-step // steps_per_epoch)}, got {total_steps // steps_per_epoch}"
        )
    if records < step // steps_per_epoch:
        raise ValueError(f"the checkpoint has the records of {records} epochs at step {step}")


def check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Whether an optimizer's state is of its parameters: torch finds out at the next step.

    Raises:
        ValueError: tensors of other shapes or names, or settings of other types.
    """
    # Of every parameter: its shape, and what is kept of it.
    known = [
        (p.shape, _MOMENTUM if group.get(MATRICES) else _STATE_NAMES[type(optimizer).__name__])
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    for index, values in state["state"].items():
        if index >= len(known):
            raise ValueError(f"the optimizer's state {index} is of no parameter")
        like, names = known[index]
        if set(values) != names:
            raise ValueError(f"the optimizer's state {index} is not {', '.join(sorted(names))}")
        if any(value.shape not in ((), like) for value in values.values()):
            raise ValueError(f"the optimizer's state {index} is not of the shape of its parameter")
    for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=False):
        if ours.get(MATRICES) is not theirs.get(MATRICES):
            raise ValueError("the optimizer's matrices are others")
        # The rate is that of a step, and set before each.
        wrong = [
            key
            for key in ours.keys() & theirs.keys() - {"params", "lr"}
            if not _same_setting(ours[key], theirs[key])
        ]
        if wrong:
            raise ValueError(f"the optimizer's {wrong[0]} is {_shown(theirs[wrong[0]])}")


MATRICES = "matrices"  # of a group of Muon: whether it is one of them
_ADAMW, _MOMENTUM = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
# Muon's are those of what is no matrix.
_STATE_NAMES = {"AdamW": _ADAMW, "LARS": _MOMENTUM, "Muon": _ADAMW, "SGD": _MOMENTUM}


def _same_setting(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (list, tuple)):
        return isinstance(theirs, (list, tuple)) and list(ours) == list(theirs)
    # Which kernels are used may differ.
    return ours == theirs if _number(ours) else isinstance(theirs, type(ours))


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:40]}..."


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _duration(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _plain(value: Any) -> bool:
    """Numbers, text and containers of them, by name."""
    return _named(value) and all(map(_plain_value, value.values()))


def _plain_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain_value, value))
    if isinstance(value, dict):
        return _plain(value)
    return value is None or isinstance(value, (str, int, float))


def _weights(value: Any) -> bool:
    return _named(value) and all(isinstance(each, Tensor) for each in value.values())


def _position(value: Any) -> bool:
    numbers = ("epoch", "batch", "ranks")
    return (
        _named(value)
        and all(_whole(value.get(name)) for name in numbers)
        and _plain(value.get("fingerprint"))
        and _text(value.get("loader", ""))
    )


def _optimizer(value: Any) -> bool:
    if not _named(value) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return (
        all(_whole(key) and _weights(each) for key, each in value["state"].items())
        and isinstance(groups, list)
        and all(_named(group) and isinstance(group.get("params"), list) for group in groups)
    )


def _totals(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype == torch.float64


def _shares(value: Any) -> bool:
    return _named(value) and set(value) == set(PHASES) and all(map(_duration, value.values()))


# Which terms a loss has is known to the run that continues.
_MEASURED = ("loss", "learning_rate", "images_per_second")


def _record(value: Any) -> bool:
    return (
        _named(value)
        and all(_whole(value.get(name)) for name in ("epoch", "step"))
        and all(_number(value.get(name)) for name in _MEASURED)
        and _duration(value.get("seconds"))
        and value["seconds"] > 0
        and "knn" in value
        and all(_number(each) for name, each in value.items() if name != "knn")
        and (value["knn"] is None or _number(value["knn"]))
    )


def _history(value: Any) -> bool:
    return isinstance(value, list) and all(map(_record, value))


def _before(value: Any) -> bool:
    if not _named(value):
        return False
    scores = [value.get(name) for name in ("raw", "before")]
    matrix = value.get("correlation")
    square = isinstance(matrix, Tensor) and matrix.ndim == 2 and len(matrix) == matrix.shape[1]
    return all(each is None or _number(each) for each in scores) and (matrix is None or square)


# name -> (what it must be, in words; whether it is)
FIELDS: dict[str, tuple[str, Check]] = {
    "config": ("settings by name", _plain),
    "dataset": ("a fingerprint", _plain),
    "image": ("values by name", _plain),
    "versions": ("versions by name", _plain),
    "device": ("text", _text),
    "ranks": ("a whole number", _whole),
    "step": ("a whole number", _whole),
    "epoch": ("a whole number", _whole),
    "loader": ("the position of a loader", _position),
    "model": ("tensors by name", _weights),
    "optimizer": ("the state of an optimizer", _optimizer),
    "scaler": ("the state of a GradScaler", _plain),
    "totals": ("sums of a loss and its terms in float64", _totals),
    "images": ("a whole number", _whole),
    "seconds": ("a number of seconds", _duration),
    "shares": (f"seconds of {', '.join(PHASES)}", _shares),
    "history": ("the records of epochs", _history),
    "before": ("scores before training", _before),
}
