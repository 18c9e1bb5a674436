"""`BarlowTwinsLoss` of MONAI (`monai.losses.BarlowTwinsLoss`), tested with MONAI 1.4 to 1.6.

    u = (z - mean) / (std + 1e-6)                    per column, unbiased std
    C = u_input^T u_target / N
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2

Kept: `lambd` is rounded to torch's default dtype, because MONAI makes a tensor of it; the unbiased
std over a division by N caps the diagonal at (N - 1) / N, so that the loss of two equal views is
about D / N^2, not 0; a dead (constant) feature has C_ii = 0; each process has a loss of its own.

Differs: a 1-D input is refused with ValueError, as one of other shapes is; MONAI fails on it inside
torch.mm. The loss of half-precision embeddings is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ..arguments import as_number
from .standardised import deviation_loss

__all__ = ["BarlowTwinsLoss"]


class BarlowTwinsLoss(_Loss):
    """MONAI's loss, computed by barlow_fast.

    Args:
        lambd: weight of the off-diagonal term.
    """

    def __init__(self, lambd: float = 5e-3) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The scalar loss of two (N, D) batches of embeddings.

        Raises:
            ValueError: inputs that are not (N, D), different shapes, N = 1.
        """
        if input.dim() != 2 or target.dim() != 2:
            raise ValueError(
                f"input and target must be (N, D), got target {tuple(target.shape)} and input "
                f"{tuple(input.shape)}"
            )
        if target.shape != input.shape:
            raise ValueError(
                f"target has differing shape {tuple(target.shape)} from input {tuple(input.shape)}"
            )
        if target.shape[0] <= 1:
            raise ValueError(
                "Batch size must be greater than 1 to compute the loss, got "
                f"{target.shape[0]} (a last batch of one? use drop_last=True)"
            )
        lambd = as_number("lambd", self.lambd)
        if not torch.compiler.is_compiling():
            lambd = float(torch.as_tensor(lambd, device="cpu"))
        return deviation_loss(input, target, lambd, eps_outside=1e-6)
