"""The training loop: small steps with names, and a state that can be put down and picked up
anywhere between two of them."""

from __future__ import annotations

import contextlib
import copy
import platform
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import BarlowTwinsLoss, __version__, reference
from ..data import Batch, ImageDataset, ViewLoader
from ..data.sources import ArraySource, Source
from ..evaluation import extract_features, knn_accuracy
from ..models import build_model
from .checkpoint import load_checkpoint, save_checkpoint
from .config import PretrainConfig
from .feeding import Feeding, choose_views
from .hooks import Hook, Record
from .schedule import learning_rate

# Views for measuring C are drawn from an epoch that no training reaches, with one after it.
MEASURED_EPOCH = 2**32 - 2
MEASURED_SAMPLES = 512
MEASURED_DIMENSIONS = 64


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


class TrainingInterrupted(Exception):
    """A stop was asked for; the state was saved first if the trainer has a checkpoint path."""


class Trainer:
    """Pretrains an encoder on a data set in memory, or on image files.

        trainer = Trainer(configure("digits"), load("digits"), checkpoint_path="checkpoint.pt")
        trainer.run()
        trainer.model.encoder

    Sample order and views are pure functions of (seed, epoch), so the state is: weights,
    optimizer, step and the loader's position. A run that stops at any step and resumes on the same
    CPU ends with the same bits as one that never stopped.

    Args:
        config: the run.
        data: images in memory with labels, or any source of images: then nothing is scored, and
            `knn` is None throughout.
        device: where to compute.
        checkpoint_path: written after every epoch that is scored, and at a stop; None to write
            none.
        hooks: see `Hook`.
        feeding: how images are read; worker processes end with `close`, or with the trainer as a
            context manager.

    Raises:
        ValueError: a batch larger than the data set; no views for the data, or views that do not
            fit it; an unknown loss backend.
        RuntimeError: a loss backend that cannot run here.
        ImportError: a loader that cannot be used here.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: ImageDataset | Source,
        device: torch.device | str = "cpu",
        checkpoint_path: Path | str | None = None,
        hooks: Iterable[Hook] = (),
        feeding: Feeding | None = None,
    ) -> None:
        in_memory = isinstance(data, ImageDataset)
        self.dataset = data if in_memory else None
        self.source = ArraySource.of_dataset(data) if in_memory else data
        self.views = choose_views(config.views, data)
        if config.batch_size > len(self.source):
            raise ValueError(
                f"batch_size {config.batch_size} is larger than the data set: {data.name} has "
                f"{len(self.source)} training images"
            )
        self.config = config
        self.feeding = feeding or Feeding()
        self.device = torch.device(device)
        self.checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self.hooks = list(hooks)
        # channels_last makes the small convolutions of a CPU twice as fast, and is what tensor
        # cores want.
        self.model = build_model(
            len(self.views.mean),
            config.encoder_widths,
            config.projector,
            config.seed,
            config.encoder_grid,
        ).to(self.device, memory_format=torch.channels_last)
        self.optimizer = self.build_optimizer()
        self.criterion = BarlowTwinsLoss(lambd=config.lambd, backend=config.backend)
        # Last, because it may start processes.
        self.loader = self.build_loader(self.source, config.batch_size)
        self.steps_per_epoch = len(self.loader)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0
        self.history: list[Record] = []
        self.before: dict[str, Any] = {}
        self.stop_requested = False
        self._totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._seconds = 0.0
        self._batches: Iterator[Batch] = iter(())

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on weight matrices and filters only."""
        parameters = list(self.model.parameters())
        return torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if p.ndim > 1],
                    "weight_decay": self.config.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.config.learning_rate,
            fused=True,
        )

    @property
    def epoch(self) -> int:
        """The epoch that `step` belongs to, from 0."""
        return self.step // self.steps_per_epoch

    def build_loader(self, source: Source, batch_size: int, **changes: Any) -> ViewLoader:
        """Batches of this run's views."""
        return ViewLoader(
            source,
            self.views,
            batch_size,
            seed=self.config.seed,
            device=self.device,
            **{**self.feeding.arguments(), **changes},
        )

    def next_batch(self) -> Batch:
        """The views of the current step. The epoch's remainder is left out.

        Raises:
            BadImageError: an image cannot be read and is not to be skipped.
            RuntimeError: a worker died.
        """
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def close(self) -> None:
        """Ends the loader's processes. May be called again."""
        self.loader.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of encoder, projector and loss."""
        precision = self.config.precision
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" else "fp32"
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def train_step(self) -> Record:
        """One batch: views, embeddings, loss, gradient, update. Returns what `Hook.stepped` gets.

        Raises:
            TrainingDiverged: the loss is not finite; the weights are then still those of the step
                before.
        """
        self.set_learning_rate()
        view_a, view_b = self.next_batch().views
        with self.autocast():
            z_a, z_b = self.model(view_a, view_b)
            loss, terms = self.criterion(z_a, z_b, return_terms=True)
        # On a GPU the check would wait for the device at every step; there it is made at the end
        # of the epoch.
        if self.device.type == "cpu":
            self.check_finite(loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        values = (loss.detach(), terms.on_diagonal_mean, terms.off_diagonal_mean)
        self._totals += torch.stack([value.double() for value in values])
        self.step += 1
        return dict(zip(("loss", "on_diagonal_mean", "off_diagonal_mean"), values, strict=True))

    def set_learning_rate(self) -> None:
        rate = learning_rate(
            self.step,
            self.total_steps,
            self.config.learning_rate,
            self.config.warmup_epochs * self.steps_per_epoch,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def check_finite(self, value: Tensor) -> None:
        """Raises TrainingDiverged, with step and last checkpoint named, unless all of `value` is
        finite."""
        if torch.isfinite(value).all():
            return
        kept = self.checkpoint_path
        advice = f"; the last good checkpoint is {kept}" if kept and kept.exists() else ""
        raise TrainingDiverged(
            f"training diverged at step {self.step + 1} of {self.total_steps} "
            f"(epoch {self.epoch + 1}): the loss or a weight is not finite. A lower learning rate "
            f"than {self.config.learning_rate:g} usually helps{advice}"
        )

    def run(self) -> None:
        """Trains from the current step to the last.

        Raises:
            TrainingDiverged: see `train_step`. The checkpoint keeps the last state that was finite.
            TrainingInterrupted: `stop_requested` was set; the checkpoint holds the state.
        """
        try:
            if not self.step:
                self.before = {
                    "raw": self.score(nn.Flatten()),
                    "before": self.score(),
                    "correlation": self.correlation(),
                }
            self._notify("started")
            while self.step < self.total_steps:
                self.train_epoch()
        finally:
            self._notify("ended")

    def train_epoch(self) -> None:
        """The rest of the current epoch, then its record, score and checkpoint."""
        epoch = self.epoch
        self.model.train()
        start = time.perf_counter()
        while self.step < (epoch + 1) * self.steps_per_epoch:
            if self.stop_requested:
                self._seconds += time.perf_counter() - start
                self.save()
                raise TrainingInterrupted(f"stopped after step {self.step} of {self.total_steps}")
            self._notify("stepped", self.train_step())
        self.check_finite(self._totals)
        self._seconds += time.perf_counter() - start
        self.close_epoch(epoch)

    def close_epoch(self, epoch: int) -> None:
        """Appends the epoch's record to the history; scores and saves when it is time."""
        loss, on_diagonal, off_diagonal = (self._totals / self.steps_per_epoch).tolist()
        last = self.step == self.total_steps
        scored = last or (epoch + 1) % self.config.evaluate_every == 0
        record = {
            "epoch": epoch + 1,
            "step": self.step,
            "loss": loss,
            "on_diagonal_mean": on_diagonal,
            "off_diagonal_mean": off_diagonal,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self._seconds,
            "images_per_second": self.steps_per_epoch * self.config.batch_size / self._seconds,
            "knn": self.score() if scored else None,
        }
        self.history.append(record)
        self._totals.zero_()
        self._seconds = 0.0
        if scored:
            self.save()
        self._notify("epoch_ended", record)

    def _notify(self, moment: str, *details: Record) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(self, *details)

    @property
    def scores(self) -> bool:
        """Whether there are labelled images to score features on."""
        return self.dataset is not None and None not in (
            self.dataset.train_labels,
            self.dataset.test_labels,
        )

    def score(self, encoder: nn.Module | None = None) -> float | None:
        """k-NN accuracy, in [0, 1], of the encoder's features: neighbours among training images,
        scored on test images. None where there are no labels.

        `nn.Flatten()` in place of the encoder scores the raw pixels.
        """
        if not self.scores:
            return None
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (self.views.mean, self.views.std)
        )
        encoder = self.model.encoder if encoder is None else encoder
        train, test = (
            extract_features(encoder, images, mean, std, self.device)
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

    @torch.inference_mode()
    def correlation(self) -> Tensor:
        """The first dimensions of C on test images, or where there are none on one batch of
        training images: (d, d) float32 on the CPU, d = min(64, D).

        As the loss sees it: batch norm uses these images' statistics. The model stays as it is.
        """
        if self.dataset is not None:
            images = self.dataset.test_images[:MEASURED_SAMPLES].movedim(1, -1)
            source, count = ArraySource(images), len(images)
        else:
            source, count = self.source, self.config.batch_size
        # An image that cannot be read is the training's business.
        with self.build_loader(source, count, loader="auto", on_bad_image="skip") as loader:
            loader.set_epoch(MEASURED_EPOCH)
            views = next(iter(loader)).views
        # A copy, because batch norm in training mode would move its running statistics.
        model = copy.deepcopy(self.model).train()
        z_a, z_b = (z[:, :MEASURED_DIMENSIONS].float() for z in model(*views))
        return reference.cross_correlation(z_a, z_b).cpu()

    def provenance(self) -> Record:
        """Settings, data, versions and hardware, as plain values."""
        hardware = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        return {
            "config": self.config.to_dict(),
            "dataset": self.fingerprint(),
            "versions": {
                "barlow_fast": __version__,
                # A str subclass, which a checkpoint that loads without running code may not hold.
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "device": f"{self.device} ({hardware})",
        }

    def fingerprint(self) -> Record:
        """What must not change between a stop and a resume: the training images and how views are
        drawn from them."""
        found = {
            "name": self.source.name,
            "images": self.source.fingerprint(),
            "views": self.views.fingerprint(),
        }
        if self.dataset is not None:
            # Of all pixels, where the source looks at some.
            images = self.dataset.train_images.contiguous()
            found |= {"shape": list(images.shape), "crc32": zlib.crc32(images.numpy().data)}
        return found

    def save(self) -> None:
        """Writes the checkpoint, unless there is no path for it.

        Raises:
            TrainingDiverged: a weight is not finite; the old checkpoint stays.
            OSError: see `save_checkpoint`.
        """
        if self.checkpoint_path is None:
            return
        for parameter in self.model.parameters():
            self.check_finite(parameter.detach())
        save_checkpoint(self.checkpoint_path, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in plain containers."""
        return {
            **self.provenance(),
            "step": self.step,
            "epoch": self.epoch,
            "loader": self.loader.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "totals": self._totals.cpu(),
            "seconds": self._seconds,
            "history": self.history,
            "before": self.before,
            # Nothing in this loop draws from it; an encoder with dropout would.
            "torch_rng_state": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, as `state_dict` returned it.

        Raises:
            ValueError: it belongs to other settings, other data or another architecture; nothing
                is loaded then.
        """
        differing = different_settings(self.config.to_dict(), state["config"])
        if differing:
            raise ValueError(f"the checkpoint was made with other settings: {', '.join(differing)}")
        if self.fingerprint() != state["dataset"]:
            raise ValueError(
                "the checkpoint was made with other images or views: "
                + ", ".join(different_settings(self.fingerprint(), state["dataset"]))
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the checkpoint does not fit the model: {error}") from error
        self.loader.load_state_dict(state["loader"])
        self._batches = iter(())
        self.step = state["step"]
        self._totals = state["totals"].to(self.device)
        self._seconds = state["seconds"]
        self.history = list(state["history"])
        self.before = state["before"]
        torch.set_rng_state(state["torch_rng_state"])

    def resume(self, path: Path) -> None:
        """Loads the checkpoint at `path`; errors are those of `load_checkpoint` and
        `load_state_dict`."""
        self.load_state_dict(load_checkpoint(path))


def different_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """'name (theirs there, ours here)' for every value that differs."""
    return [
        f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
