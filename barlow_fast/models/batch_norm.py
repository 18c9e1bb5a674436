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
import torch.nn.functional as F
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
        mean, variance, count = _moments(x, group)
        # torch's kernels take 16-bit inputs beside float32 statistics and parameters.
        narrow = [None if t is None else t.to(_wide(x)) for t in (mean, variance, weight, bias)]
        ctx.save_for_backward(x, *narrow[:3], count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, *narrow, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx, dy, *_):
        x, mean, variance, weight, count = ctx.saved_tensors
        if x.numel():
            # Of fixed statistics: γ/σ · dy, and this rank's sums of dy · x̂ and of dy.
            dx, sum_dy_x, sum_dy = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            dx, sum_dy_x, sum_dy = dy.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
        sums = torch.stack([sum_dy_x, sum_dy]).double()
        with communication_errors():
            dist.all_reduce(sums, group=ctx.group)
        factor = (variance.double() + ctx.eps).rsqrt() * (1.0 if weight is None else weight)
        # x̂ · scale + shift, by the kernel that normalises.
        scale, shift = (factor * sums / count).to(mean.dtype)
        dx -= F.batch_norm(x, mean, variance, scale, shift, eps=ctx.eps)
        if weight is None:
            return dx, None, None, None, None
        return dx, sum_dy_x, sum_dy, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _moments(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel and the number of values of one, over all ranks, in
    float64.

    Raises:
        ValueError: fewer than two values per channel.
    """
    values = x.to(_wide(x))
    values = values.flatten(2) if x.dim() > 2 else values[:, :, None]
    own = values.numel() // x.shape[1]
    # Of differences from about this rank's mean, and over samples in float64:
    # E[x²] - E[x]² in float32 would lose a large mean's digits.
    near = values.mean((0, 2)) if own else values.new_zeros(x.shape[1])
    centred = values - near[:, None]
    near = near.double()
    total, squares = (t.sum(2).double().sum(0) for t in (centred, centred.square()))
    squares = squares + near * (2 * total + own * near)
    sums = torch.cat([total + own * near, squares, near.new_tensor([own])])
    with communication_errors():
        dist.all_reduce(sums, group=group)
    count = sums[-1]
    if count < 2:
        raise ValueError("batch norm needs more than one value per channel over all ranks")
    mean, square = (sums[:-1] / count).chunk(2)
    return mean, (square - mean.square()).clamp_min(0), count
