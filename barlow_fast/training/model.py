"""The network: a small convolutional encoder and the projector that the loss looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallEncoder(nn.Sequential):
    """A convolutional encoder for images of 8 to 64 pixels a side: (B, C, H, W) float -> (B,
    features).

    One stage per width: two 3 x 3 convolutions with batch norm and ReLU; all stages but the first
    start by halving the image. What remains is averaged to grid x grid positions, side by side in
    the feature: where a stroke is tells a 6 from a 9.

    Args:
        channels: of the images.
        widths: of the stages.
        grid: positions a side that are kept; `features` is widths[-1] * grid ** 2.

    Raises:
        ValueError: no widths, or a width, grid or number of channels below 1.
    """

    def __init__(
        self, channels: int = 1, widths: Sequence[int] = (32, 64, 128), grid: int = 2
    ) -> None:
        if not widths or min(*widths, channels, grid) < 1:
            raise ValueError(
                "widths, channels and grid must be positive, "
                f"got {tuple(widths)}, {channels} and {grid}"
            )
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for step in range(2):
                stride = 2 if stage and not step else 1
                layers += [
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.features = widths[-1] * grid**2


class Projector(nn.Sequential):
    """Linear, batch norm, ReLU for every width but the last, then Linear; no biases, as in the
    paper.

    (B, features) -> (B, widths[-1]). The loss standardises its input, so the last layer has no
    norm of its own.

    Raises:
        ValueError: no widths, or a width below 1.
    """

    def __init__(self, features: int, widths: Sequence[int] = (1024, 1024, 1024)) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(f"projector widths must be positive, got {tuple(widths)}")
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            layers += [
                nn.Linear(features, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
            ]
            features = width
        super().__init__(*layers, nn.Linear(features, widths[-1], bias=False))


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
