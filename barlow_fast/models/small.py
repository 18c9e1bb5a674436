"""A compact convolutional encoder for small images and for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallEncoder(nn.Sequential):
    """A convolutional encoder for CPUs: (B, C, H, W) float -> (B, features), for 8 pixels a side
    and more.

    One stage per width: two 3 x 3 convolutions with batch norm and ReLU; all stages start by
    halving the image, the first one only if asked to: at full size it takes most of the time. What
    remains is averaged to grid x grid positions, side by side in the feature: where a stroke is
    distinguishes a 6 from a 9.

    Args:
        channels: of the images.
        widths: of the stages.
        grid: positions a side that are kept; `features` is widths[-1] * grid ** 2.
        halve_first: whether the first stage halves the image too.

    Raises:
        ValueError: no widths, or a width, grid or number of channels below 1.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        grid: int = 2,
        halve_first: bool = False,
    ) -> None:
        if not widths or min(*widths, channels, grid) < 1:
            raise ValueError(
                "widths, channels and grid must be positive, "
                f"got {tuple(widths)}, {channels} and {grid}"
            )
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for step in range(2):
                stride = 2 if (stage or halve_first) and not step else 1
                layers += [
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        super().__init__(*layers, GridPool(grid), nn.Flatten())
        self.features = widths[-1] * grid**2


class GridPool(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` to grid x grid positions, whose gradient has the layout of its input.

    A flattening behind it returns a contiguous gradient. In a network in channels-last layout, the
    backward passes of the pooling and of the layers before would copy or stride through it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, grid, grid)."""
        already = input.shape[-2:] == (self.output_size, self.output_size)
        output = input if already else super().forward(input)
        # The compiler chooses layouts itself.
        eager = output.requires_grad and not torch.compiler.is_compiling()
        if eager and output.is_contiguous(memory_format=torch.channels_last):
            output.register_hook(_in_channels_last)
        return output


def _in_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
