"""The lines that describe a run before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...data import ImageDataset, Views
from ...data.sources import ArraySource, Source, passed_over
from .. import estimate
from ..config import PretrainConfig
from ..feeding import check_batch, image_size, view_sizes, views_in_words, views_of_run
from ..images import held_out, planned_images
from ..loop import Trainer
from ..ranks import Ranks


@dataclass(frozen=True)
class RunPlan:
    """What a run would do, for `--dry-run`."""

    data: ImageDataset | Source
    described: str  # `data` in words
    scoring: str  # see `held_out`
    views: Views
    source: Source
    memory: estimate.Memory

    def lines(self, config: PretrainConfig, ranks: Ranks) -> Iterator[str]:
        """Data, steps, learning rates, memory and kernels."""
        size = image_size(self.views, self.data)
        steps = len(self.source) // config.batch_size
        weights, biases = config.learning_rates
        yield f"data      {self.described}; views {self.views.name} of {size} pixels"
        if self.scoring:
            yield f"k-NN      {self.scoring}"
        yield (
            f"steps     {config.epochs} epochs of {steps}: {config.epochs * steps} in all, "
            f"{config.batch_size} images x {views_in_words(self.views)} each on {ranks.size} "
            "process(es)"
        )
        yield (
            f"rates     {config.optimizer}: weights {weights:g}, biases and norms {biases:g} at "
            f"their peak after {config.warmup_epochs} epochs"
        )
        yield f"memory    {self.memory}"
        available = estimate.available_memory(ranks.device)
        if available is not None:
            verdict = "fits" if self.memory.total <= available else "does not fit"
            yield f"          {verdict}: {ranks.device} has {available / 2**30:.2f} GiB"
        views = len(self.views.views)
        yield str(estimate.plan_loss(config, views, ranks.device, ranks.size, ranks.nodes))


def plan_of(config: PretrainConfig, data_dir: Path | None, ranks: Ranks) -> RunPlan:
    """The plan of a run.

    Raises:
        ValueError: views or a batch size that do not fit the images.
    """
    data, described = planned_images(config, data_dir, ranks)
    scoring = held_out(config, data)[1]
    views = views_of_run(config, data)
    source = ArraySource.of_dataset(data) if isinstance(data, ImageDataset) else data
    check_batch(config.batch_size, len(source), data.name, ranks.size)
    sizes = view_sizes(views, data)
    memory = estimate.estimate_memory(config, len(views.mean), sizes, ranks.device, ranks.size)
    return RunPlan(data, described, scoring, views, source, memory)


def describe(trainer: Trainer, scoring: str) -> Iterator[str]:
    """Data, views, network and kernels of a run.

    Args:
        trainer: that runs it.
        scoring: see `held_out`.
    """
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    data = trainer.dataset or f"{trainer.source.name}: {len(trainer.source)} training images"
    yield f"data      {data}"
    splits = trainer.watcher.splits
    left = passed_over(trainer.source, None if splits is None else splits.test)
    if left:
        yield f"          {left}"
    yield f"views     {trainer.views.name}, by {trainer.loader.chosen} ({trainer.loader.reason})"
    if scoring:
        yield f"k-NN      {scoring}"
    elif not trainer.scores:
        yield "k-NN      is skipped: it takes labelled images for training and for tests"
    name = config.encoder
    if name == "small":
        name = f"convolutions of width {'-'.join(map(str, config.encoder_widths))}"
    encoder, projector = (
        sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.projector)
    )
    yield f"encoder   {name}, {model.encoder.features} features, {encoder:,} parameters"
    micro = config.micro_batch_size
    in_parts = f", {micro} in memory at a time" if micro else ""
    yield (
        f"projector {'-'.join(map(str, config.projector))}, {projector:,} parameters; "
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"{config.batch_size} images x {views_in_words(trainer.views)} each{in_parts}"
    )
    if not ranks.alone:
        yield (
            f"ranks     {ranks.size} on {ranks.nodes} machine(s), by {config.parallel}, "
            f"{config.batch_size // ranks.size} images each"
        )
    views = len(trainer.views.views)
    yield str(estimate.plan_loss(config, views, trainer.device, ranks.size, ranks.nodes))
