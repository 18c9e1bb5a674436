"""Measurements during and after a run: k-NN scores, C, signs of collapse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..data import ImageDataset, ViewLoader, Views
from ..data.faults import BadImages
from ..data.sources import ArraySource, Source
from ..evaluation import (
    AVERAGE_POOL,
    ImageFormat,
    LabelledSplits,
    Reading,
    extract_features,
    features_of_source,
    knn_accuracy,
    raw_pixels,
)
from ..evaluation.splits import subset
from ..models import BarlowTwinsModel
from ..statistics import singular_values
from .config import PretrainConfig
from .monitors import collapse_monitors

# Views for measuring C are drawn from an epoch that no training reaches, with one after it.
MEASURED_EPOCH = 2**32 - 2
MEASURED_SAMPLES = 512
MEASURED_DIMENSIONS = 64
# Points of a map of features: enough to see clusters, few enough to lay out in a second.
MAPPED_IMAGES = 400


@dataclass(frozen=True)
class Portrait:
    """One model of a run, as figures show it; all on the CPU."""

    correlation: Tensor  # (d, d) float32: the first dimensions of C
    monitors: dict[str, float]  # see `collapse_monitors`
    singular_values: Tensor  # (K,) float64: of view a's embeddings, from large to small
    features: Tensor | None  # (N, F) float32: of test images; None without images in memory
    labels: Tensor | None  # (N,) int64, or None where there are none


class Watcher:
    """Measures models of one run, on one rank.

    Args:
        config, views, device: of the run.
        dataset: images in memory, or None.
        source: of the training images; for the embeddings where there is no data set in memory.
        splits: labelled files that features are scored on where there is no data set in memory.
        workers: processes that read them; see `Reading`.
        bad: the run's policy and record of images that cannot be read.

    Attributes:
        correlation: what `measure` found last; None before.
    """

    def __init__(
        self,
        config: PretrainConfig,
        views: Views,
        device: torch.device,
        dataset: ImageDataset | None,
        source: Source,
        splits: LabelledSplits | None = None,
        workers: int | None = None,
        bad: BadImages | None = None,
    ) -> None:
        self.config, self.views, self.device = config, views, device
        self.dataset, self.source = dataset, source
        self.splits, self.workers = splits, workers
        self.bad = BadImages() if bad is None else bad
        self.correlation: Tensor | None = None

    @property
    def scores(self) -> bool:
        """Whether there are labelled images to score features on."""
        if self.dataset is None:
            return self.splits is not None
        return None not in (self.dataset.train_labels, self.dataset.test_labels)

    def score(self, encoder: nn.Module) -> float | None:
        """k-NN accuracy, in [0, 1], of the encoder's features: neighbours among training images,
        scored on test images. None where there are no labels. Of files at most `neighbour_images`
        of each part are read, spread evenly over it."""
        if not self.scores:
            return None
        if self.dataset is None:
            return self._score_files(encoder)
        train, test = (
            self._features(encoder, images)
            for images in (
                self.dataset.train_images[: self.config.neighbour_images],
                self.dataset.test_images,
            )
        )
        return knn_accuracy(
            train,
            self.dataset.train_labels[: len(train)].to(self.device),
            test,
            self.dataset.test_labels.to(self.device),
            k=self.config.neighbours,
        )

    def score_pixels(self) -> float | None:
        """`score` with the pixels as features; None for files, whose pixels are too many."""
        return None if self.dataset is None else self.score(raw_pixels())

    def _score_files(self, encoder: nn.Module) -> float:
        shape = self.views.views[0].shape
        form = ImageFormat(shape, len(self.views.mean), self.views.mean, self.views.std)
        reading = Reading(
            self.device,
            workers=self.workers,
            on_bad_image=self.bad,
            reduced_decoding=self.views.reduced_decoding,
        )
        (train, labels), (test, truth) = (
            features_of_source(
                encoder,
                subset(part, _spread(len(part), self.config.neighbour_images).numpy()),
                form,
                reading,
            )
            for part in (self.splits.train, self.splits.test)
        )
        k = self.config.neighbours
        return knn_accuracy(train[AVERAGE_POOL], labels, test[AVERAGE_POOL], truth, k=k)

    def _features(self, encoder: nn.Module, images: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (self.views.mean, self.views.std)
        )
        return extract_features(encoder, images, mean, std, self.device)

    @torch.inference_mode()
    def embeddings(self, model: BarlowTwinsModel) -> tuple[Tensor, Tensor]:
        """(N, D) twice, float32: of the first two views of up to 512 test images, or where there
        are none of one batch of training images.

        As the loss receives them: batch norm uses these images' statistics, which move the model's
        own: hand over a copy.
        """
        if self.dataset is not None:
            images = self.dataset.test_images[:MEASURED_SAMPLES].movedim(1, -1)
            source, count = ArraySource(images), len(images)
        else:
            source, count = self.source, min(self.config.batch_size, MEASURED_SAMPLES)
        with ViewLoader(
            source,
            replace(self.views, views=self.views.views[:2]),
            count,
            seed=self.config.seed,
            workers=self.workers,
            device=self.device,
            on_bad_image=self.bad,
        ) as loader:
            loader.set_epoch(MEASURED_EPOCH)
            views = next(iter(loader)).views
        # What the model draws itself (dropout) is the run's, not the process's.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            z_a, z_b = (z.float() for z in model.train()(*views))
        return z_a, z_b

    def measure(self, model: BarlowTwinsModel) -> tuple[Tensor, dict[str, Any]]:
        """(The first dimensions of C, (d, d) float32 on the CPU with d = min(64, D); see
        `collapse_monitors`), of a model that this may change."""
        z_a, z_b = self.embeddings(model)
        monitors = collapse_monitors(z_a, z_b)
        self.correlation = _part_of_c(z_a, z_b)
        return self.correlation, monitors

    def portrait(self, model: BarlowTwinsModel) -> Portrait:
        """All that figures show of a model that this may change."""
        # Before the embeddings, which move the statistics that features are computed with.
        features = labels = None
        if self.dataset is not None:
            chosen = _spread(len(self.dataset.test_images), MAPPED_IMAGES)
            features = self._features(model.encoder, self.dataset.test_images[chosen]).cpu()
            if self.dataset.test_labels is not None:
                labels = self.dataset.test_labels[chosen].cpu()
        z_a, z_b = self.embeddings(model)
        # Of embeddings that are not finite there are none.
        singular = singular_values(z_a) if z_a.isfinite().all() else z_a.new_zeros(0)
        return Portrait(
            correlation=_part_of_c(z_a, z_b),
            monitors=collapse_monitors(z_a, z_b, singular),
            singular_values=singular.cpu(),
            features=features,
            labels=labels,
        )


def _part_of_c(z_a: Tensor, z_b: Tensor) -> Tensor:
    parts = (z[:, :MEASURED_DIMENSIONS] for z in (z_a, z_b))
    return reference.cross_correlation(*parts).cpu()


def _spread(count: int, most: int) -> Tensor:
    """At most so many indices, evenly over all: data sets may be sorted by class."""
    return torch.linspace(0, count - 1, min(count, most), device="cpu").round().long()
