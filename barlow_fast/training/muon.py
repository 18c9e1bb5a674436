"""Muon for the matrices of an encoder, with AdamW for what is none.

With g the gradient of a matrix p of n rows and m columns, such as the (outputs, inputs x height x
width) of a convolution:

    mu = momentum * mu + (1 - momentum) * g
    u  = orthogonal((1 - momentum) * g + momentum * mu)
    p  = (1 - lr * weight_decay) * p - lr * 0.2 * sqrt(max(n, m)) * u

`orthogonal` moves all singular values towards 1 by five Newton-Schulz iterations, so every
direction of a gradient moves its matrix equally far. The factor gives u the usual size of AdamW's
updates: one learning rate does for both. Sources: Jordan et al., *Muon: An optimizer for hidden
layers in neural networks* (2024), also for the coefficients; the factor: Liu et al., *Muon is
Scalable for LLM Training* (2025), section 2.2. `torch.optim.Muon` is the same for parameters of two
dimensions; it takes no convolutions, and no other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.state import MATRICES

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Updates groups with `matrices=True` as the module's text says, and the others by AdamW.

        optimizer = Muon([{"params": matrices(encoder), "matrices": True}, {"params": others}], lr)

    Args:
        params: parameters or groups. All dimensions of a matrix but the first count as columns.
        lr: learning rate of both kinds.
        momentum: of matrices.
        kwargs: those of `torch.optim.AdamW`; of them weight_decay alone is also of matrices.

    Raises:
        ValueError: a matrix of less than two dimensions, or a sharded one; what AdamW refuses.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, **kwargs: Any) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        defaults = torch.optim.AdamW([torch.empty(0, device="cpu")], lr, **kwargs).defaults
        super().__init__(params, {**defaults, "momentum": momentum, MATRICES: False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's; raises what the class raises."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"] if param_group[MATRICES] else ():
            if p.ndim < 2 or hasattr(p, "device_mesh"):
                raise ValueError(
                    f"Muon takes matrices that are whole, got {type(p).__name__} {tuple(p.shape)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others = torch.optim.AdamW([torch.empty(0, device="cpu")])
        others.param_groups = [group for group in self.param_groups if not group[MATRICES]]
        others.state = self.state
        others.step()
        for group in self.param_groups:
            for p in group["params"] if group[MATRICES] else ():
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[p], group["momentum"], group["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        mu = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        rows = gradient.lerp(mu, momentum).flatten(1)
        size = 0.2 * math.sqrt(max(rows.shape))
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(orthogonal(rows).view(p.shape), alpha=-lr * size)


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights of its linear layers and of its convolutions of all channels, for Muon:
    weights of a few inputs each, such as of depthwise convolutions, are left out."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [each for each in module.modules() if isinstance(each, kinds)]
    whole = [each.weight for each in layers if getattr(each, "groups", 1) == 1]
    return [weight for weight in dict.fromkeys(whole) if weight.requires_grad]


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix` and singular values between about 0.7 and 1.2
    where those of `matrix` are not near zero: (n, m) -> (n, m), of the same dtype.

    On GPUs its products are of bfloat16.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.T if wide is not matrix else x
    return x.to(matrix.dtype)
