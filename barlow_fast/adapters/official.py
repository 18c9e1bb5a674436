"""`BarlowTwins` of the authors' code (facebookresearch/barlowtwins, `main.py`, 8e8d284).

    z = projector(backbone(y)),    z_hat = bn(z): eps 1e-5, biased variance
    C = sum over ranks of z_hat_1^T z_hat_2 / args.batch_size
    loss = sum_i (C_ii - 1)^2 + args.lambd * sum over i != j of C_ij^2

The module is backbone, projector and loss in one, with the state dict of the original: its
checkpoints load here, and ours there.

Kept: `bn` is a module, whose buffers move with both views in each step, and converting the model to
SyncBN makes the statistics those of all ranks, as `main.py` does; C is divided by the option
`batch_size`, which is that of all ranks, also for a shorter last batch; the matrix is added up
without autograd's knowledge, so that DistributedDataParallel's gradient is 1/W of the exact one,
which the published learning rate of biases presumes (`gradient="exact"` for that one); a dead
(constant) feature has C_ii = 0.

Differs: it also runs where torch.distributed is not initialised. The loss under autocast is
float32, with no sum in half precision, so that GradScaler's first scales do not overflow.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import Gradient, as_number
from .normalising import loss_with_norm

__all__ = ["BarlowTwins", "off_diagonal"]


def off_diagonal(x: Tensor) -> Tensor:
    """The D (D - 1) elements off the diagonal of a (D, D) matrix, row by row, as a flat copy.

    Raises:
        AssertionError: a matrix that is not square.
    """
    d, columns = x.shape
    if d != columns:
        raise AssertionError(f"x must be square, got {tuple(x.shape)}")
    outside = ~torch.eye(d, dtype=torch.bool, device=x.device)
    return x[outside]


def resnet50() -> nn.Module:
    """torchvision's ResNet-50 without its last layer, which returns (B, 2048) features."""
    import torchvision

    backbone = torchvision.models.resnet50(zero_init_residual=True)
    backbone.fc = nn.Identity()
    return backbone


class BarlowTwins(nn.Module):
    """Backbone, projector and loss of the original, the loss computed by barlow_fast.

    Args:
        args: has `projector` (widths, such as '8192-8192-8192'), `batch_size` (of all ranks) and
            `lambd`.
        backbone: (B, 3, H, W) -> (B, features); None for the original's ResNet-50, which needs
            torchvision.
        features: what the backbone returns.
        gradient: 'official', the original's 1/W, or 'exact'.
    """

    # Of a module that was pickled as the peer's own, which has no such attribute.
    gradient: Gradient = "official"

    def __init__(
        self,
        args: Any,
        *,
        backbone: nn.Module | None = None,
        features: int = 2048,
        gradient: Gradient = "official",
    ) -> None:
        super().__init__()
        self.args = args
        self.gradient = gradient
        self.backbone = resnet50() if backbone is None else backbone
        sizes = [features, *map(int, args.projector.split("-"))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(inputs, outputs, bias=False))
            layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.projector = nn.Sequential(*layers)
        self.bn = nn.BatchNorm1d(sizes[-1], affine=False)

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        """The scalar loss of two (B, 3, H, W) batches of views.

        Raises:
            ValueError: B = 1.
            RuntimeError: views that do not fit the backbone, or each other.
        """
        z1 = self.projector(self.backbone(y1))
        z2 = self.projector(self.backbone(y2))
        return loss_with_norm(
            self.bn,
            z1,
            z2,
            as_number("args.lambd", self.args.lambd),
            lambda n: self.args.batch_size,
            self.gradient,
        )
