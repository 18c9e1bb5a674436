"""`VICReg` of the authors' code (facebookresearch/vicreg, `main_vicreg.py`, 4e12602).

    x = projector(backbone(x)),                      y likewise
    loss = sim_coeff * i + std_coeff * v + cov_coeff * c

with i, v and c of `adapters/variance_covariance.py`, eps 1e-4, the variances and covariances over
the samples of all ranks. The module is backbone, projector and loss in one.

Kept: covariances are divided by `args.batch_size` - 1, that of all ranks, also for a shorter last
batch, whose covariances are then too small; variances by N - 1. The gradient is exact under
DistributedDataParallel, whose mean it is of.

Differs: it also runs where torch.distributed is not initialised. The backbone is torchvision's
ResNet-50 or one that is passed. The loss under autocast is float32, with no sum in half precision.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..arguments import as_number
from .batch_normalised import check_matrices, joined_ranks
from .official import resnet50
from .variance_covariance import loss_of_gathered

__all__ = ["VICReg"]

EPS = 1e-4


class VICReg(nn.Module):
    """Backbone, projector and loss of the original, the loss computed by barlow_fast.

    Args:
        args: has `mlp` (widths, such as '8192-8192-8192'), `batch_size` (of all ranks),
            `sim_coeff`, `std_coeff` and `cov_coeff`.
        backbone: (B, 3, H, W) -> (B, features); None for a ResNet-50, which needs torchvision.
        features: what the backbone returns.
    """

    def __init__(
        self, args: Any, *, backbone: nn.Module | None = None, features: int = 2048
    ) -> None:
        super().__init__()
        self.args = args
        self.num_features = int(args.mlp.split("-")[-1])
        self.backbone = resnet50() if backbone is None else backbone
        self.projector = _projector([features, *map(int, args.mlp.split("-"))])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of two (B, 3, H, W) batches of views.

        Raises:
            ValueError: B = 1.
            RuntimeError: views that do not fit the backbone, or each other.
        """
        z_x, z_y = (self.projector(self.backbone(view)) for view in (x, y))
        check_matrices(z_x, z_y, ("x", "y"), RuntimeError, joined_ranks())
        sim, std, cov = (
            as_number(f"args.{name}", getattr(self.args, name))
            for name in ("sim_coeff", "std_coeff", "cov_coeff")
        )
        ranks = 1 if joined_ranks() is None else dist.get_world_size()
        shorter = (z_x.shape[0] * ranks - 1) / (self.args.batch_size - 1)
        weights = (sim, std, cov * shorter**2)
        return loss_of_gathered(z_x, z_y, weights, EPS)


def _projector(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
