"""LARS as the original Barlow Twins uses it, over lists of tensors, without waiting for the device.

With g the gradient and p the parameter, both as whole tensors:

    d  = g + weight_decay * p
    q  = trust_coefficient * ||p|| / ||d||    where both norms are above 0, else 1
    mu = momentum * mu + q * d
    p  = p - lr * mu

Biases and the weights of norms (at most one dimension) go without decay and with q = 1.
Source: You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks* (2017), eq. 6, in
the variant of facebookresearch/barlowtwins: the norm is taken of the decayed gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.lars import MOMENTUM, translated_state


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates on top of SGD with momentum; the update is in the module's text.

        optimizer = LARS(parameter_groups(model, weights_lr=0.2, biases_lr=0.0048,
                                          weight_decay=1e-6))

    Any floating point type, any mix of devices and types. Norms of bfloat16 and float16 parameters
    are float32; the momentum has the parameter's type. Sharded parameters (DTensor, as FSDP2 makes
    them) are adapted by the norm of the whole tensor: all their norms travel in one all-reduce.
    FSDP1's flattened parameters have lost their layers: use FSDP2.

    Args:
        params: parameters or groups; each argument below may differ by group.
        lr: learning rate; a 0-dim tensor may change between replays of a CUDA graph.
        weight_decay: added to the gradient, times the parameter.
        momentum: 0 keeps no state.
        trust_coefficient: the ratio of update and parameter norm, for lr = 1; `eta` elsewhere.
        weight_decay_filter: parameters of at most one dimension go without decay. (Off by default
            in the original class, on in its recipe; so are both flags here.)
        lars_adaptation_filter: parameters of at most one dimension go without adaptation.

    Raises:
        TypeError: a number or flag of another type; complex parameters.
        ValueError: a number that is negative or not finite; momentum of 1 or more.
        RuntimeError: from `step`: a sparse gradient.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        weight_decay_filter: bool = True,
        lars_adaptation_filter: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "weight_decay_filter": weight_decay_filter,
            "lars_adaptation_filter": lars_adaptation_filter,
        }
        check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's; raises what the class raises."""
        check_settings(param_group)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex():
                self.param_groups.pop()
                raise TypeError(
                    f"parameters must be real floating point, got {parameter.dtype} of shape "
                    f"{tuple(parameter.shape)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns.

        Raises:
            RuntimeError: a sparse gradient; nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            refuse_sparse(group["params"])
        for group in self.param_groups:
            for (_, _, layout, decay, adapt), members in buckets(group).items():
                self._update(group, members, layout, decay, adapt)
        return loss

    def _update(
        self,
        group: dict[str, Any],
        members: list[Tensor],
        layout: Layout | None,
        decay: bool,
        adapt: bool,
    ) -> None:
        """One bucket: all its tensors are of one device, type and layout."""
        momentum, lr = group["momentum"], group["lr"]
        # All but the norms is elementwise, so the shards are updated as plain tensors.
        parameters = [local_part(p) for p in members]
        steps = [local_part(p.grad, layout) for p in members]
        fresh = False
        if decay:
            steps = torch._foreach_add(steps, parameters, alpha=group["weight_decay"])
            fresh = True
        if adapt:
            trusts = trust_ratios(parameters, steps, layout, group["trust_coefficient"])
            if fresh:
                torch._foreach_mul_(steps, trusts)
            else:
                steps = torch._foreach_mul(steps, trusts)
        if momentum != 0:
            buffers = [local_part(self._momentum_of(p)) for p in members]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, steps)
            steps = buffers
        if isinstance(lr, Tensor):
            # alpha=-lr would read the tensor's value, and wait for it.
            torch._foreach_add_(parameters, torch._foreach_mul(steps, -lr))
        else:
            torch._foreach_add_(parameters, steps, alpha=-lr)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[MOMENTUM]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Reads the state of this class, or of the LARS of facebookresearch/barlowtwins (`mu`),
        lightly or solo-learn (`momentum_buffer`).

        Of the latter two come momentum, rates and decay; the filters stay as they are here, unless
        solo-learn's `exclude_bias_n_norm` states them. Their trust ratio has another denominator:
        ||g|| + weight_decay ||p|| + eps.

        Raises:
            ValueError: a layout that is none of these, settings that this class does not have
                (Nesterov, dampening, clipped ratios), other groups, other shapes.
        """
        translated = translated_state(state_dict, self.param_groups)
        for group in translated["param_groups"]:
            check_settings(group)
        super().load_state_dict(translated)


def parameter_groups(
    model: nn.Module | Iterable[Tensor],
    *,
    weights_lr: float,
    biases_lr: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """The two groups of the original recipe, in its order: weights (more than one dimension), then
    biases and weights of norms, without decay or adaptation and with their own learning rate.

    model: a module or its parameters. Frozen parameters are left out; a kind that has none gets
    no group.

    Raises:
        ValueError: nothing to train.
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient")
    shared = {"weight_decay_filter": True, "lars_adaptation_filter": True}
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "lr": weights_lr,
            "weight_decay": weight_decay,
            **shared,
        },
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "lr": biases_lr,
            "weight_decay": 0.0,
            **shared,
        },
    ]
    return [group for group in groups if group["params"]]


class Layout(NamedTuple):
    """How a DTensor lies over ranks."""

    mesh: Any
    placements: tuple[Any, ...]


def layout_of_tensor(tensor: Tensor) -> Layout | None:
    """None for a plain tensor."""
    if hasattr(tensor, "device_mesh"):
        return Layout(tensor.device_mesh, tuple(tensor.placements))
    return None


def local_part(tensor: Tensor, layout: Layout | None = None) -> Tensor:
    """This rank's part of a DTensor, laid out as `layout` if that is given; a plain tensor as it
    is."""
    here = layout_of_tensor(tensor)
    if here is None:
        return tensor
    if layout is not None and here.placements != layout.placements:
        tensor = tensor.redistribute(layout.mesh, layout.placements)
    return tensor.to_local()


def buckets(group: Mapping[str, Any]) -> dict[tuple[Any, ...], list[Tensor]]:
    """A group's parameters that have gradients, by device, type, layout, decay and adaptation."""
    found: dict[tuple[Any, ...], list[Tensor]] = {}
    for p in group["params"]:
        if p.grad is None:
            continue
        decay = group["weight_decay"] != 0 and not (p.ndim <= 1 and group["weight_decay_filter"])
        adapt = not (p.ndim <= 1 and group["lars_adaptation_filter"])
        key = (p.device, p.dtype, layout_of_tensor(p), decay, adapt)
        found.setdefault(key, []).append(p)
    return found


def refuse_sparse(parameters: Iterable[Tensor]) -> None:
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise RuntimeError(
                f"LARS needs dense gradients, got {p.grad.layout} for a parameter of shape "
                f"{tuple(p.shape)} (an Embedding with sparse=True?)"
            )


def trust_ratios(
    parameters: list[Tensor], steps: list[Tensor], layout: Layout | None, coefficient: float
) -> list[Tensor]:
    """q of each parameter, 0-dim tensors on its device."""
    dtype = parameters[0].dtype
    # The square of a float16 value overflows from 256 on.
    dtype = torch.float32 if dtype.itemsize < 4 else dtype
    norms = torch.stack(torch._foreach_norm([*parameters, *steps], 2, dtype=dtype))
    if layout is not None:
        norms = over_shards(norms, layout)
    of_parameters, of_steps = norms.chunk(2)
    adapted = coefficient * of_parameters / of_steps
    return list(torch.where((of_parameters > 0) & (of_steps > 0), adapted, 1.0).unbind())


def over_shards(norms: Tensor, layout: Layout) -> Tensor:
    """Norms of whole tensors from those of this rank's shards, in one all-reduce per sharded
    dimension of the mesh."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    squares = DTensor.from_local(
        norms.square(),
        layout.mesh,
        [Replicate() if p.is_replicate() else Partial("sum") for p in layout.placements],
        run_check=False,
    )
    return squares.full_tensor().sqrt()


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises the error that `LARS` documents for the first bad setting."""
    for name in ("lr", "weight_decay", "momentum", "trust_coefficient"):
        if name not in settings:
            continue
        value = settings[name]
        if name == "lr" and isinstance(value, Tensor):
            if value.ndim or not value.is_floating_point():
                raise ValueError(
                    "lr must be a number or a 0-dim floating point tensor, got a tensor of shape "
                    f"{tuple(value.shape)} and {value.dtype}"
                )
            continue
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if name == "momentum" and value >= 1:
            raise ValueError(f"momentum must be below 1, got {value}")
    for name in ("weight_decay_filter", "lars_adaptation_filter"):
        if name in settings and not isinstance(settings[name], bool):
            raise TypeError(f"{name} must be True or False, got {settings[name]!r}")
