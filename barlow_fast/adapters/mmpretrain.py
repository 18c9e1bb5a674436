"""`LatentCrossCorrelationHead` and `CrossCorrelationLoss` of mmpretrain, tested with 1.2.0.

    z_hat = bn(z),  bn = BatchNorm1d(in_channels, affine=False): eps 1e-5, this rank's statistics
    C = sum over ranks of z_hat_input^T z_hat_target / (N W)
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

Kept: `bn` is a module of the head, so that its buffers are in the state dict, move with both views
in each step and are used in eval mode, and a conversion to SyncBN makes the statistics those of all
ranks; W is what it was when the head was built; the matrix is added up without autograd's
knowledge, so that DistributedDataParallel's gradient is 1/W of the exact one (`gradient="exact"`
for that one); a dead (constant) feature has C_ii = 0.

Differs: `CrossCorrelationLoss` leaves the matrix that it is given as it was, where mmpretrain's
overwrites its diagonal; `loss` may be a module instead of a configuration, but other configurations
than that of CrossCorrelationLoss need mmpretrain's registry and are refused. The head is an
nn.Module, not a `BaseModule`: `init_cfg` is kept, and there is nothing that it could initialise.
The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from ..differentiable import refuse_double_backward, refuse_forward_mode, refuse_transforms
from .batch_normalised import check_matrices, joined_ranks
from .normalising import loss_with_norm

__all__ = ["CrossCorrelationLoss", "LatentCrossCorrelationHead"]


class CrossCorrelationLoss(nn.Module):
    """The loss of a cross-correlation matrix.

    Args:
        lambd: weight of the off-diagonal term.
    """

    def __init__(self, lambd: float = 0.0051) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, cross_correlation_matrix: Tensor) -> Tensor:
        """The scalar loss of a (D, D) matrix.

        Raises:
            AssertionError: a matrix that is not square.
        """
        shape = tuple(cross_correlation_matrix.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise AssertionError(f"cross_correlation_matrix must be (D, D), got {shape}")
        refuse_transforms("CrossCorrelationLoss")
        function = _MatrixLoss if torch.compiler.is_compiling() else _EagerMatrixLoss
        return function.apply(cross_correlation_matrix, as_number("lambd", self.lambd))

    def off_diagonal(self, x: Tensor) -> Tensor:
        """The D (D - 1) elements off the diagonal of a (D, D) matrix, row by row."""
        d = x.shape[0]
        if x.shape != (d, d):
            raise AssertionError(f"x must be (D, D), got {tuple(x.shape)}")
        return _off_diagonal(x).flatten()


class CrossCorrelation(nn.Module):
    """The batch norm, the number of ranks and the arithmetic that both packages' heads have."""

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "official"

    def __init__(self, in_channels: int, gradient: str) -> None:
        super().__init__()
        ready = dist.is_available() and dist.is_initialized()
        self.world_size = dist.get_world_size() if ready else 1
        self.bn = nn.BatchNorm1d(in_channels, affine=False)
        self.gradient = gradient

    def loss_by(self, module: nn.Module, input: Tensor, target: Tensor) -> Tensor:
        """What `module` makes of the views' matrix."""
        check_matrices(input, target, ("input", "target"), RuntimeError, joined_ranks())
        if isinstance(module, CrossCorrelationLoss):
            lambd = as_number("lambd", module.lambd)
            return loss_with_norm(
                self.bn, input, target, lambd, lambda n: n * self.world_size, self.gradient
            )
        if joined_ranks() is not None:
            _agree(input, target, self.gradient)
        matrix = self.bn(input).T @ self.bn(target) / (input.shape[0] * self.world_size)
        return module(_added_up(matrix, self.gradient))


class LatentCrossCorrelationHead(CrossCorrelation):
    """mmpretrain's head, computed by barlow_fast.

    Args:
        in_channels: D.
        loss: `dict(type="CrossCorrelationLoss", lambd=...)`, or a module that makes a scalar of the
            (D, D) matrix; the matrix is built only for other modules than CrossCorrelationLoss.
        init_cfg: kept as an attribute.
        gradient: 'official', mmpretrain's 1/W, or 'exact'.

    Raises:
        ValueError: a configuration of another loss.
    """

    def __init__(
        self,
        in_channels: int,
        loss: dict,
        init_cfg: dict | list[dict] | None = None,
        *,
        gradient: Gradient = "official",
    ) -> None:
        super().__init__(in_channels, gradient)
        self.init_cfg = init_cfg
        self.loss_module = built(loss)

    def loss(self, input: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of two (N, in_channels) batches of features.

        Raises:
            ValueError: inputs that are not (N, in_channels), or N = 1.
            RuntimeError: different shapes.
        """
        return self.loss_by(self.loss_module, input, target)


def built(loss: Any) -> nn.Module:
    """The module that a configuration stands for, or the module itself."""
    if isinstance(loss, nn.Module):
        return loss
    if not isinstance(loss, Mapping) or "type" not in loss:
        raise ValueError(f"loss must be a module or a dict with a 'type', got {loss!r}")
    options = dict(loss)
    kind = options.pop("type")
    options.pop("_scope_", None)
    name = kind if isinstance(kind, str) else kind.__name__
    if name.rpartition(".")[2] != "CrossCorrelationLoss":
        raise ValueError(
            f"loss must be a module or a dict of type 'CrossCorrelationLoss', got type {name!r}: "
            "build other losses with mmpretrain's registry and pass the module"
        )
    return CrossCorrelationLoss(**options)


def _off_diagonal(x: Tensor) -> Tensor:
    """(D - 1, D): the elements between neighbours of the diagonal, a view of contiguous x."""
    d = x.shape[0]
    return x.reshape(-1)[1:].view(d - 1, d + 1)[:, :d] if d > 1 else x.new_empty((0, 1))


class _MatrixLoss(torch.autograd.Function):
    """Saves the matrix alone and makes one more, its gradient."""

    @staticmethod
    def forward(ctx, c: Tensor, lambd: float) -> Tensor:
        ctx.save_for_backward(c)
        ctx.lambd = lambd
        dtype = torch.promote_types(c.dtype, torch.float32)
        rest = _off_diagonal(c).to(dtype)
        # Row by row, then in float64: no long sum in single precision, and no second matrix.
        off_diagonal = torch.linalg.vecdot(rest, rest).double().sum()
        on_diagonal = (c.diagonal().double() - 1).square().sum()
        return (on_diagonal + lambd * off_diagonal).to(dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _MatrixGradient.apply(grad, *ctx.saved_tensors, ctx.lambd), None


class _EagerMatrixLoss(_MatrixLoss):
    """torch.compile takes no function that has a jvp of its own."""

    jvp = staticmethod(refuse_forward_mode)


class _MatrixGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, c: Tensor, lambd: float) -> Tensor:
        gradient = c * (2 * lambd * grad).to(c.dtype)
        gradient.diagonal().copy_(2 * (c.diagonal() - 1) * grad)
        return gradient

    @staticmethod
    def backward(ctx, *_: Any) -> None:
        refuse_double_backward()


@torch.compiler.disable
def _agree(input: Tensor, target: Tensor, gradient: str) -> None:
    """All ranks are about to add up matrices of one size."""
    from . import across_ranks

    across_ranks.agree(input, target, gradient, "matrix")


def _added_up(matrix: Tensor, gradient: str) -> Tensor:
    """The sum over ranks, whose gradient is that of this rank's part, or W times it."""
    return matrix if joined_ranks() is None else _Added.apply(matrix, gradient == "exact")


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor, exact: bool) -> Tensor:
        from ..distributed import collectives, groups

        ctx.exact = exact
        matrix = matrix.clone(memory_format=torch.contiguous_format)
        return collectives.all_reduce("matrices", matrix, groups.resolve("world")).wait()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * dist.get_world_size() if ctx.exact else grad, None
