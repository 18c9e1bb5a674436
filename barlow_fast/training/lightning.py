"""Pretraining under Lightning's `Trainer`: the same network, loss, optimizer and schedule.

Needs `lightning` or `pytorch_lightning`; where both are installed, the module is of the one that
was imported before this one, and of `lightning` if both were or none.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..models import checkpoint_activations
from ..models.batch_norm import synchronise
from .config import PretrainConfig
from .network import build_criterion, build_network, loss_of, network_inputs, shown_terms
from .optimizers import build_optimizer
from .schedule import learning_rate

__all__ = ["BarlowTwinsModule"]

LIBRARIES = ("lightning.pytorch", "pytorch_lightning")


def _lightning() -> ModuleType:
    imported = [name for name in LIBRARIES if name in sys.modules]
    for name in (*imported, *LIBRARIES):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Its own import failed otherwise.
            if error.name not in (name, name.split(".")[0]):
                raise
    raise ModuleNotFoundError(
        "barlow_fast.training.lightning needs lightning or pytorch_lightning: "
        "pip install 'barlow-fast[lightning]'",
        name="lightning",
    )


class BarlowTwinsModule(_lightning().LightningModule):
    """Encoder, projector, loss, optimizer and schedule as a `LightningModule`.

        config = configure("cifar10", epochs=100)
        module = BarlowTwinsModule(config, image_size=32)
        lightning.Trainer(max_epochs=config.epochs, devices=4).fit(module, loader)

    A batch is a `Batch` of `ViewLoader`, a sequence that begins with two views or more, or one that
    begins with such a sequence. On several devices the loss is that of all of them together, with
    its exact gradient (`process_group="world"`). The learning rate follows `learning_rate` over
    the steps of the Trainer, whose `max_epochs` or `max_steps` decides.

    Of the settings those of the network, the loss and the optimizer count. Precision, compilation,
    checkpoints and the number of epochs are the Trainer's. Do not accumulate gradients over
    batches: that is the loss of the small batches, not of the large one.

    Checkpoints that the Trainer writes are read by `load_encoder`.

    Args:
        config: settings, or a dict of them (`PretrainConfig.to_dict`).
        channels: of the images.
        image_size: pixels a side of the views.
        mean: of the pixels by channel, in [0, 1]; stored for `load_encoder`, as is `std`.
        std: of the pixels.

    Attributes:
        model: encoder and projector, a `BarlowTwinsModel`.

    Raises:
        ValueError: see `build_twins`; `micro_batch_size` is set.
    """

    def __init__(
        self,
        config: PretrainConfig | Mapping[str, Any],
        *,
        channels: int = 3,
        image_size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, PretrainConfig):
            config = PretrainConfig.from_dict(dict(config))
        if config.micro_batch_size is not None:
            raise ValueError(
                f"micro_batch_size is {config.micro_batch_size}: Lightning's Trainer takes whole "
                "batches; use barlow_fast.training.Trainer, or backward_in_microbatches"
            )
        self.config = config
        # Plain values: files with them load without running code.
        normalisation = {
            name: None if values is None else [float(value) for value in values]
            for name, values in (("mean", mean), ("std", std))
        }
        sizes = {"channels": channels, "image_size": image_size}
        self.save_hyperparameters({"config": config.to_dict(), **sizes, **normalisation})
        small = [config.small_size] if config.small_size else []
        self.model = build_network(config, channels, [image_size, *small]).to(
            memory_format=torch.channels_last
        )
        if config.checkpoint_activations:
            checkpoint_activations(self.model.encoder)
        self.criterion: nn.Module | None = None

    def setup(self, stage: str) -> None:
        """The loss of all devices, and batch norm over them."""
        config, alone = self.config, self.trainer.world_size == 1
        self.criterion = build_criterion(config, alone)
        if not alone and config.sync_batch_norm:
            self.model = synchronise(self.model, self.trainer.strategy.root_device.type)

    def forward(self, images: Tensor) -> Tensor:
        """Features: (B, channels, H, W) -> (B, features)."""
        return self.model.encoder(images)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a batch; logged with its terms."""
        views = _views(batch)
        inputs, how = network_inputs(self.config, views, self.global_step)
        loss, terms = loss_of(self.criterion, self.model(*inputs), how)
        options = {"batch_size": len(views[0])}
        self.log("loss", loss.detach(), prog_bar=True, **options)
        for name, value in shown_terms(self.config, terms).items():
            self.log(name, value, **options)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the settings, and the schedule by steps."""
        optimizer = build_optimizer(self.model, self.config)
        schedule = _Schedule(optimizer, self.config, *self._steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> tuple[int, int]:
        """(of the whole run, of its warm-up)."""
        trainer = self.trainer
        # With max_steps the Trainer has not looked at the loader yet.
        trainer.fit_loop.setup_data()
        total = trainer.estimated_stepping_batches
        batches = trainer.num_training_batches / trainer.accumulate_grad_batches
        if not (math.isfinite(total) and total > 0):
            raise ValueError("the schedule needs an end: give the Trainer max_epochs or max_steps")
        warmup = self.config.warmup_epochs
        if warmup and not math.isfinite(batches):
            raise ValueError(
                "warmup_epochs counts epochs, and the loader has no length: give it one, the "
                "Trainer limit_train_batches, or set warmup_epochs=0"
            )
        return int(total), min(int(total), warmup and math.ceil(warmup * batches))


class _Schedule(torch.optim.lr_scheduler.LRScheduler):
    """The rates of `learning_rate`, those of weights and those of biases and norms."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: PretrainConfig, steps: int, warmup: int
    ) -> None:
        self.shape = (steps, warmup, config.final_learning_rate)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Those of the step that comes next."""
        steps, warmup, final = self.shape
        step = min(self.last_epoch, steps)
        return [learning_rate(step, steps, peak, warmup, final) for peak in self.base_lrs]


def _views(batch: Any) -> tuple[Tensor, ...]:
    values = batch
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (tuple, list)):
        values = batch[0]
    if not isinstance(values, (tuple, list)):
        values = ()
    views = tuple(itertools.takewhile(_is_view, values))
    if len(views) < 2:
        raise TypeError(
            "a batch must be two views or more, or begin with a sequence of them, each (B, "
            f"channels, H, W); got {type(batch).__name__}"
        )
    return views


def _is_view(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4
