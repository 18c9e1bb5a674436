"""The whole network of a pretraining run: an encoder and its projector, seen twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .encoders import Stem, build_encoder
from .projector import Projector


class BarlowTwinsModel(nn.Module):
    """Encoder and projector, and how the two views pass through them.

    Batch norm decides what difference that makes. By default each view passes on its own, as in
    the official code: batch norm never mixes the two views' statistics, and running statistics
    move twice a step. With `one_pass` both views are one batch of 2 B, as in lightly's ImageNet
    bench: one statistic of both views, one move a step, and fewer, larger kernels. In eval mode,
    and for encoders and projectors without batch norm, both give the same. The loss standardises
    each view by itself either way.

    Args:
        encoder: (B, C, H, W) -> (B, features).
        projector: (B, features) -> (B, D).
        one_pass: both views in one forward.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, *, one_pass: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.one_pass = one_pass

    def forward(self, view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice -> the embeddings of the two views, (B, D) twice."""
        if self.one_pass:
            embeddings = self.projector(self.encoder(torch.cat((view_a, view_b))))
            z_a, z_b = embeddings.split((len(view_a), len(view_b)))
            return z_a, z_b
        return self.projector(self.encoder(view_a)), self.projector(self.encoder(view_b))


def build_twins(
    encoder: str = "small",
    *,
    channels: int = 3,
    image_size: int = 224,
    stem: Stem = "auto",
    encoder_widths: Sequence[int] = (32, 64, 128),
    encoder_grid: int = 2,
    projector: Sequence[int] = (8192, 8192, 8192),
    seed: int = 0,
    one_pass: bool = False,
) -> BarlowTwinsModel:
    """A model whose initial weights depend on `seed` and nothing else; the global generator is
    left as it was.

    Args:
        encoder, channels, image_size, stem, encoder_widths, encoder_grid: see `build_encoder`.
        projector: widths; see `Projector`.
        seed: of the weights.
        one_pass: see `BarlowTwinsModel`.

    Raises:
        ValueError: see `build_encoder` and `Projector`.
        ModuleNotFoundError: see `build_encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_encoder(
            encoder,
            channels=channels,
            image_size=image_size,
            stem=stem,
            widths=encoder_widths,
            grid=encoder_grid,
        )
        return BarlowTwinsModel(
            network, Projector(int(network.features), projector), one_pass=one_pass
        )
