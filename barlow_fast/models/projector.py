"""What stands between an encoder and the loss while it learns, and is thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


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
