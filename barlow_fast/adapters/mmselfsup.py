"""`LatentCrossCorrelationHead` and `CrossCorrelationLoss` of mmselfsup, tested with 1.0.0.

The arithmetic, what is kept and what differs are those of `adapters.mmpretrain`; here the head is
called instead of its method `loss`, and `loss` is the module that the configuration stands for.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Gradient
from .mmpretrain import CrossCorrelation, CrossCorrelationLoss, built

__all__ = ["CrossCorrelationLoss", "LatentCrossCorrelationHead"]


class LatentCrossCorrelationHead(CrossCorrelation):
    """mmselfsup's head, computed by barlow_fast.

    Args:
        in_channels: D.
        loss: `dict(type="CrossCorrelationLoss", lambd=...)`, or a module that makes a scalar of the
            (D, D) matrix.
        gradient: 'official', mmselfsup's 1/W, or 'exact'.

    Raises:
        ValueError: a configuration of another loss.
    """

    def __init__(self, in_channels: int, loss: dict, *, gradient: Gradient = "official") -> None:
        super().__init__(in_channels, gradient)
        self.loss = built(loss)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of two (N, in_channels) batches of features.

        Raises:
            ValueError: inputs that are not (N, in_channels), or N = 1.
            RuntimeError: different shapes.
        """
        return self.loss_by(self.loss, input, target)
