"""The loss of all ranks of a group as one differentiable function.

    agree on the call -> choose a layout -> forward; backward of the same layout

Gradients. With `exact`, a rank's gradient is W times its part of the derivative of the global
loss, so that the mean over ranks that DistributedDataParallel and FSDP take is the derivative
itself; with `official`, it is that part alone, whose mean is 1/W of it, as in the original
implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..arguments import Options
from ..differentiable import (
    refuse_double_backward,
    refuse_forward_mode,
    refuse_transforms,
    save_for_backward,
    saved_tensors,
)
from ..kernels import load
from . import agreement, correlation, cost, features, rows
from .call import Call
from .collectives import total
from .groups import Group, node

LAYOUT = {"features": features, "rows": rows, "correlation": correlation}


def forward(
    z_a: Tensor, z_b: Tensor, options: Options, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal) of the samples of all ranks, without `scale`.

    z_a, z_b: (n_r, D) samples of this rank, checked. options: checked, precision and backend not
    'auto'.

    Raises:
        ValueError, TypeError: on all ranks, what was wrong on one of them, or in what their calls
            differ.
        RuntimeError: a rank has stopped.
    """
    with agreement.errors_reported(group):
        refuse_transforms("the loss of a process group")
    shared = agreement.call_of(z_a, z_b, **_compared(options))
    agreed = agreement.agree(shared, z_a.shape[0], node(), group)
    statistics, precision = options.statistics, options.precision
    agreed.check(statistics)
    network = cost.network_of(z_a.device.type, agreed.nodes, precision)
    layout = cost.choose_layout(
        options.layout, options.form, agreed.samples, z_a.shape[1], z_a.dtype, precision, network,
        statistics,
    )  # fmt: skip
    call = Call(
        load(options.backend, precision), group, agreed.samples, z_a.shape[1], z_a.dtype,
        options.lambd, options.eps, precision, statistics, use_all_reduce(group, z_a, agreed.nodes),
    )  # fmt: skip
    need = shared["z_a_requires_grad"] or shared["z_b_requires_grad"]
    return DistributedLoss.apply(z_a, z_b, call, layout, options.gradient == "exact", need)


def _compared(options: Options) -> dict[str, Any]:
    """The options that all ranks must have in common."""
    shared = options._asdict()
    del shared["process_group"], shared["backend"]
    return shared


def use_all_reduce(group: Group, z: Tensor, nodes: int) -> bool:
    """Whether sums over ranks are the backend's own all-reduce: NCCL's, between machines."""
    return nodes > 1 and not group.through_host(z)


class DistributedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z_a, z_b, call: Call, layout: str, exact: bool, need: bool):
        # Not ctx.needs_input_grad: under no_grad it is what the inputs would need without.
        with plan.without_autocast(z_a.device.type):
            outputs, (tensors, pending) = LAYOUT[layout].forward(call, z_a, z_b, need)
        if pending is not None and _capturing(z_a):
            pending.wait()  # forward and backward may become graphs of their own
        save_for_backward(ctx, z_a, z_b, *tensors)
        ctx.pending, ctx.call, ctx.layout, ctx.exact = pending, call, layout, exact
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, grad, *_):
        need = ctx.needs_input_grad[:2]
        gradients = DistributedGradient.apply(
            grad, ctx.call, ctx.layout, ctx.exact, ctx.pending, need, *saved_tensors(ctx)
        )
        return *gradients, None, None, None, None

    jvp = staticmethod(refuse_forward_mode)


class DistributedGradient(torch.autograd.Function):
    """The backward pass as a node of its own: differentiating it again raises an error.

    z_a and z_b are what it would be differentiated by; layouts have what they use in `tensors`.
    """

    @staticmethod
    def forward(ctx, grad, call, layout, exact, pending, need, z_a, z_b, *tensors):
        # All ranks' losses are one number, and each may enter that rank's objective with a weight
        # of its own: the derivative is that of the sum of all.
        scale = total("scale", grad.reshape(1).double(), call.group)
        if not exact:
            scale = scale / call.group.size
        with plan.without_autocast(grad.device.type):
            return LAYOUT[layout].backward(
                call, (tensors, pending), scale.reshape(()).to(grad.dtype), need
            )

    @staticmethod
    def backward(ctx, *_):
        refuse_double_backward()


def _capturing(z: Tensor) -> bool:
    return z.is_cuda and torch.cuda.is_current_stream_capturing()
