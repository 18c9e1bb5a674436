"""The whole network of a pretraining run: an encoder and its projector, for all views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .encoders import Stem, build_encoder
from .projector import Projector


class BarlowTwinsModel(nn.Module):
    """Encoder and projector, and how the views pass through them.

    Batch norm decides what difference that makes. By default each view passes on its own, as in
    the official code: batch norm never mixes the views' statistics, and running statistics move
    once for each of them. With `one_pass` all V views of a size are one batch of V B, as in
    lightly's ImageNet bench: one statistic of these views, one move a step, and fewer, larger
    kernels. In eval mode, and for encoders and projectors without batch norm, both give the same.
    The loss standardises each view by itself either way.

    Args:
        encoder: (B, C, H, W) -> (B, features).
        projector: (B, features) -> (B, D).
        one_pass: all views of a size in one forward; views of another size in another one.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, *, one_pass: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.one_pass = one_pass

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) for each view -> the embeddings of each, (B, D)."""
        if not self.one_pass:
            return tuple(self.projector(self.encoder(view)) for view in views)
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, view in enumerate(views):
            alike.setdefault(tuple(view.shape[1:]), []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():
            group = [views[number] for number in numbers]
            embeddings = self.projector(self.encoder(torch.cat(group)))
            found |= zip(numbers, embeddings.split([len(view) for view in group]), strict=True)
        return tuple(found[number] for number in range(len(views)))


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
    other_sizes: Sequence[int] = (),
) -> BarlowTwinsModel:
    """A model whose initial weights depend on `seed` and nothing else; the global generator is
    left as it was.

    Args:
        encoder, channels, image_size, stem, encoder_widths, encoder_grid, other_sizes: see
            `build_encoder`.
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
            other_sizes=other_sizes,
        )
        return BarlowTwinsModel(
            network, Projector(int(network.features), projector), one_pass=one_pass
        )
