"""What is trained, made from the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..losses.barlow_twins import BarlowTwinsLoss
from ..losses.catalogue import BARLOW_TWINS, FROSSL, LOSSES, MIXED, VICREG
from ..losses.frossl import FroSSLLoss
from ..losses.mixed_barlow_twins import MixedBarlowTwinsLoss, mix_inputs
from ..losses.vicreg import VICRegLoss
from ..models import BarlowTwinsModel, build_twins
from .config import PretrainConfig

MODULES: dict[str, type[nn.Module]] = {
    BARLOW_TWINS: BarlowTwinsLoss,
    VICREG: VICRegLoss,
    MIXED: MixedBarlowTwinsLoss,
    FROSSL: FroSSLLoss,
}


def build_network(config: PretrainConfig, channels: int, sizes: Sequence[int]) -> BarlowTwinsModel:
    """Encoder and projector, with the weights that a run begins with.

    Args:
        config: settings.
        channels: of the images.
        sizes: pixels a side of each view.

    Raises:
        ValueError, ModuleNotFoundError: see `build_twins`.
    """
    return build_twins(
        config.encoder,
        channels=channels,
        image_size=sizes[0],
        stem=config.stem,
        encoder_widths=config.encoder_widths,
        encoder_grid=config.encoder_grid,
        projector=config.projector,
        seed=config.seed,
        one_pass=config.one_pass,
        other_sizes=sorted(set(sizes) - {sizes[0]}),
    )


def build_criterion(config: PretrainConfig, alone: bool) -> nn.Module:
    """The loss; that of all ranks together unless one is `alone`."""
    weights = {name: getattr(config, name) for name in LOSSES[config.loss].weights}
    return MODULES[config.loss](
        **{name: weight for name, weight in weights.items() if weight is not None},
        scale=config.scale,
        backend=config.backend,
        process_group=None if alone else "world",
    )


def network_inputs(
    config: PretrainConfig, views: Sequence[Tensor], step: int
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """(What passes through the network, what the loss takes beside the embeddings of it): the
    views and nothing, or of mixed-barlow-twins also the mixed images, and how they were mixed.

    What is drawn is a function of the seed and the step alone: ranks mix in the same proportion.
    """
    if config.loss != MIXED:
        return tuple(views), ()
    mixed_seed = np.random.SeedSequence([config.seed, step])
    generator = torch.Generator().manual_seed(int(mixed_seed.generate_state(1, np.uint64)[0] >> 1))
    mixed, *how = mix_inputs(*views, generator=generator)
    return (*views, mixed), tuple(how)


def loss_of(
    criterion: nn.Module, embeddings: Sequence[Tensor], how: tuple[Any, ...]
) -> tuple[Tensor, Any]:
    """(The loss, its terms) of the embeddings of `network_inputs`."""
    if how:
        return criterion(*embeddings, *how, return_terms=True)
    return criterion(tuple(embeddings), return_terms=True)


def shown_terms(config: PretrainConfig, terms: Any) -> dict[str, Tensor]:
    """The terms that a run shows, by name."""
    return {name: getattr(terms, name) for name in LOSSES[config.loss].terms}
