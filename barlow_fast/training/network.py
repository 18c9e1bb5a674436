"""What is trained, made from the settings of a run."""

from __future__ import annotations

from ..losses.barlow_twins import BarlowTwinsLoss
from ..models import BarlowTwinsModel, build_twins
from .config import PretrainConfig


def build_network(config: PretrainConfig, channels: int, image_size: int) -> BarlowTwinsModel:
    """Encoder and projector, with the weights that a run begins with.

    Args:
        config: settings.
        channels: of the images.
        image_size: pixels a side of the views.

    Raises:
        ValueError, ModuleNotFoundError: see `build_twins`.
    """
    return build_twins(
        config.encoder,
        channels=channels,
        image_size=image_size,
        stem=config.stem,
        encoder_widths=config.encoder_widths,
        encoder_grid=config.encoder_grid,
        projector=config.projector,
        seed=config.seed,
        one_pass=config.one_pass,
    )


def build_criterion(config: PretrainConfig, alone: bool) -> BarlowTwinsLoss:
    """The loss; that of all ranks together unless one is `alone`."""
    return BarlowTwinsLoss(
        lambd=config.lambd,
        scale=config.scale,
        backend=config.backend,
        process_group=None if alone else "world",
    )
