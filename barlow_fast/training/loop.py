"""The training loop: small steps with names, and a state that can be put down and picked up
anywhere between two of them."""

from __future__ import annotations

import contextlib
import copy
import platform
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import BarlowTwinsLoss, __version__, reference
from ..data import PRESETS as VIEW_PRESETS
from ..data import ImageDataset, draw, order, render
from ..evaluation import extract_features, knn_accuracy
from .checkpoint import load_checkpoint, save_checkpoint
from .config import PretrainConfig
from .hooks import Hook, Record
from .model import build_model
from .schedule import learning_rate

# Views for measuring C are drawn from an epoch that no training reaches.
MEASURED_EPOCH = 2**32 - 1
MEASURED_SAMPLES = 512
MEASURED_DIMENSIONS = 64


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


class TrainingInterrupted(Exception):
    """A stop was asked for; the state was saved first if the trainer has a checkpoint path."""


class Trainer:
    """Pretrains an encoder on a data set in memory.

        trainer = Trainer(configure("digits"), load("digits"), checkpoint_path="checkpoint.pt")
        trainer.run()
        trainer.model.encoder

    Sample order and views are pure functions of (seed, epoch), so the state is: weights,
    optimizer, step. A run that stops at any step and resumes on the same CPU ends with the same
    bits as one that never stopped.

    Args:
        config: the run.
        dataset: images in memory.
        device: where to compute.
        checkpoint_path: written after every epoch that is scored, and at a stop; None to write
            none.
        hooks: see `Hook`.

    Raises:
        ValueError: a batch larger than the data set; no view preset for the data set; an unknown
            loss backend.
        RuntimeError: a loss backend that cannot run here.
    """

    def __init__(
        self,
        config: PretrainConfig,
        dataset: ImageDataset,
        device: torch.device | str = "cpu",
        checkpoint_path: Path | str | None = None,
        hooks: Iterable[Hook] = (),
    ) -> None:
        if config.batch_size > len(dataset.train_images):
            raise ValueError(
                f"batch_size {config.batch_size} is larger than the data set: {dataset.name} has "
                f"{len(dataset.train_images)} training images"
            )
        if dataset.name not in VIEW_PRESETS:
            raise ValueError(f"no views are specified for data set {dataset.name!r}")
        self.config = config
        self.dataset = dataset
        self.device = torch.device(device)
        self.checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self.hooks = list(hooks)
        self.views = VIEW_PRESETS[dataset.name].views
        self.mean, self.std = dataset.normalisation()
        self.images = dataset.train_images.to(self.device)
        # channels_last makes the small convolutions of a CPU twice as fast, and is what tensor
        # cores want.
        self.model = build_model(
            dataset.channels,
            config.encoder_widths,
            config.projector,
            config.seed,
            config.encoder_grid,
        ).to(self.device, memory_format=torch.channels_last)
        self.optimizer = self.build_optimizer()
        self.criterion = BarlowTwinsLoss(lambd=config.lambd, backend=config.backend)
        self.steps_per_epoch = len(dataset.train_images) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0
        self.history: list[Record] = []
        self.before: dict[str, Any] = {}
        self.stop_requested = False
        self._totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._seconds = 0.0
        self._order: tuple[int, np.ndarray] | None = None

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

    def batch(self) -> np.ndarray:
        """The samples of the current step: (batch_size,) int64 indices. The epoch's remainder is
        left out."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, order(self.config.seed, self.epoch, len(self.images)))
        position = self.step % self.steps_per_epoch * self.config.batch_size
        return self._order[1][position : position + self.config.batch_size]

    def render_views(
        self, images: Tensor, samples: np.ndarray, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Two views of (B, C, H, W) uint8 images that are samples number `samples`; float32,
        normalised."""
        view_a, view_b = (
            render(
                images,
                draw(view, self.config.seed, epoch, samples, number),
                view,
                self.mean,
                self.std,
            )
            for number, view in enumerate(self.views)
        )
        return view_a, view_b

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
        samples = self.batch()
        images = self.images[torch.from_numpy(samples).to(self.device)]
        view_a, view_b = self.render_views(images, samples, self.epoch)
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

    def score(self, encoder: nn.Module | None = None) -> float:
        """k-NN accuracy, in [0, 1], of the encoder's features: neighbours among training images,
        scored on test images.

        `nn.Flatten()` in place of the encoder scores the raw pixels.
        """
        encoder = self.model.encoder if encoder is None else encoder
        train, test = (
            extract_features(encoder, images, self.mean, self.std, self.device)
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
        """The first dimensions of C on test images: (d, d) float32 on the CPU, d = min(64, D).

        As the loss sees it: batch norm uses these images' statistics. The model stays as it is.
        """
        images = self.dataset.test_images[:MEASURED_SAMPLES].to(self.device)
        views = self.render_views(images, np.arange(len(images)), MEASURED_EPOCH)
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
        images = self.dataset.train_images.contiguous()
        return {
            "name": self.dataset.name,
            "shape": list(images.shape),
            "crc32": zlib.crc32(images.numpy().data),
            "views": [repr(view) for view in self.views],
        }

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
