"""Batch norm over all ranks on any device: torch's own `SyncBatchNorm` takes CUDA tensors only.

Statistics and gradients are those of the ranks' batches put together, of any sizes. With
x̂ = (x - μ)/σ over all M values of a channel, the gradient is

    dx = γ/σ · (dy - mean(dy) - x̂ · mean(dy · x̂)),

both means over all ranks; the gradients of γ and β stay this rank's, since the trainer (DDP)
adds up or averages those of parameters itself. Source: Ioffe and Szegedy, *Batch Normalization*
(ICML 2015), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed.collectives import communication_errors


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of (B, C, ...) inputs with the statistics of all ranks' batches, in training.

    Parameters, buffers and their names are those of `nn.BatchNorm2d`. Every rank must call it
    equally often.

    Args:
        num_features: C.
        process_group: the ranks; None for all.
        Others: see `nn.BatchNorm2d`.

    Raises:
        ValueError: fewer than two values per channel over all ranks.
    """

    def __init__(self, num_features: int, *args: Any, process_group: Any = None, **kwargs: Any):
        super().__init__(num_features, *args, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input must be (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        alone = not dist.is_initialized() or dist.get_world_size(self.process_group) == 1
        if alone or not (self.training or self.running_mean is None):
            return super().forward(input)
        y, mean, variance, count = _Normalise.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        if self.track_running_stats:
            self._track(mean, variance, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # None while a block is computed a second time (`checkpoint_activations`).
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / self.num_batches_tracked.to(mean.dtype)
        unbiased = variance * (count / (count - 1)).to(variance.dtype)
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.add_(share * (now.to(running.dtype) - running))


def synchronise(model: nn.Module, device_type: str, process_group: Any = None) -> nn.Module:
    """The model with every batch norm replaced by one over all ranks, weights and all.

    On CUDA that is torch's own `nn.SyncBatchNorm`; the keys of the state dict stay as they are.
    """
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group)
    for name, child in list(model.named_children()):
        setattr(model, name, synchronise(child, device_type, process_group))
    if not isinstance(model, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return model
    norm = SyncBatchNorm(
        model.num_features,
        model.eps,
        model.momentum,
        model.affine,
        model.track_running_stats,
        process_group=process_group,
    )
    norm.load_state_dict(model.state_dict())
    if model.affine:
        # The same parameters, so that an optimizer made before stays valid.
        norm.weight, norm.bias = model.weight, model.bias
    return norm.train(model.training)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, group):
        # float64 for the sums: E[x²] - E[x]² would lose a large mean's digits in float32.
        wide = _rows(x).double()
        channels = wide.shape[0]
        sums = torch.cat([wide.sum(1), wide.square().sum(1), wide.new_tensor([wide.shape[1]])])
        with communication_errors():
            dist.all_reduce(sums, group=group)
        count = sums[-1]
        if count < 2:
            raise ValueError("batch norm needs more than one value per channel over all ranks")
        mean = sums[:channels] / count
        variance = (sums[channels : 2 * channels] / count - mean.square()).clamp_min(0)
        inverse = (variance + eps).rsqrt()
        kind = x.dtype if x.dtype == torch.float64 else torch.float32
        x_hat = ((wide - mean[:, None]) * inverse[:, None]).to(kind)
        y = x_hat
        if weight is not None:
            y = y * weight.to(kind)[:, None] + bias.to(kind)[:, None]
        ctx.save_for_backward(x_hat, inverse, weight, count)
        ctx.group, ctx.shape = group, x.shape
        ctx.mark_non_differentiable(mean, variance, count)
        # Memory of its own: a ReLU in place may follow, and x̂ is kept for the backward pass.
        return torch.empty_like(x).copy_(_back(y, x)), mean, variance, count

    @staticmethod
    def backward(ctx, grad, *_):
        x_hat, inverse, weight, count = ctx.saved_tensors
        dy = _rows(grad).to(x_hat.dtype)
        sum_dy, sum_dy_x = dy.double().sum(1), (dy.double() * x_hat).sum(1)
        sums = torch.cat([sum_dy, sum_dy_x])
        with communication_errors():
            dist.all_reduce(sums, group=ctx.group)
        mean_dy, mean_dy_x = (sums / count).to(dy.dtype).chunk(2)
        dx = dy - mean_dy[:, None] - x_hat * mean_dy_x[:, None]
        factor = inverse if weight is None else inverse * weight
        dx = torch.empty_like(grad).copy_(_back(dx * factor.to(dx.dtype)[:, None], grad))
        if weight is None:
            return dx, None, None, None, None
        return dx, sum_dy_x.to(weight.dtype), sum_dy.to(weight.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """(B, C, ...) -> (C, all other positions)."""
    return x.movedim(1, 0).flatten(1)


def _back(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    shape = (like.shape[1], like.shape[0], *like.shape[2:])
    return rows.reshape(shape).movedim(0, 1)
