"""The whole network of a pretraining run: an encoder and its projector, seen twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .projector import Projector
from .small import SmallEncoder


class BarlowTwinsModel(nn.Module):
    """Encoder and projector. Each view passes on its own, so batch norm never mixes the two views'
    statistics."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice -> the embeddings of the two views, (B, D) twice."""
        return self.projector(self.encoder(view_a)), self.projector(self.encoder(view_b))


def build_model(
    channels: int,
    encoder_widths: Sequence[int],
    projector_widths: Sequence[int],
    seed: int,
    encoder_grid: int = 2,
) -> BarlowTwinsModel:
    """A model whose initial weights depend on `seed` and nothing else; the global generator is
    left as it was.

    Raises:
        ValueError: widths that are not positive.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SmallEncoder(channels, encoder_widths, encoder_grid)
        return BarlowTwinsModel(encoder, Projector(encoder.features, projector_widths))
