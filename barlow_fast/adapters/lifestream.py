"""`BarlowTwinsLoss` of pytorch-lifestream (`ptls.frames.coles.losses`), tested with 0.7.0.

    u_1, u_2 = rows 0, 2, 4, ... and rows 1, 3, 5, ... of the embeddings, as they are
    C = u_1^T u_2 / N
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

Kept: nothing is standardised here, so C is no correlation unless the model's head makes it one;
views are interleaved, and `target` must say so; each process has a loss of its own.

Differs: the loss of half-precision embeddings is float32.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import as_number
from .standardised import standardised_loss

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(nn.Module):
    """pytorch-lifestream's loss, computed by barlow_fast.

    Args:
        lambd: weight of the off-diagonal term.
    """

    def __init__(self, lambd: float) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, model_outputs: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of (2N, D) embeddings whose views are interleaved.

        Args:
            model_outputs: (2N, D): rows 2k and 2k + 1 are the views of sample k.
            target: (2N,): which sample each row is of.

        Raises:
            ValueError: embeddings that are not (2N, D), or an odd number of them.
            AssertionError: rows 2k and 2k + 1 of different samples.
        """
        if model_outputs.dim() != 2 or model_outputs.shape[0] % 2:
            raise ValueError(
                "model_outputs must be (2N, D), the views interleaved, got shape "
                f"{tuple(model_outputs.shape)}"
            )
        if not (target[0::2] == target[1::2]).all():
            raise AssertionError(
                "Wrong embedding positions: rows 2k and 2k + 1 must be of one target"
            )
        lambd = as_number("lambd", self.lambd)
        return standardised_loss(model_outputs[0::2], model_outputs[1::2], lambd)
