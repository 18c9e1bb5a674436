"""The training loop. Its state can be saved and restored between any two steps."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import platform
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..checkpoints.state import PHASES, check_complete, check_optimizer
from ..checkpoints.training import load_checkpoint, save_checkpoint
from ..data import Batch, ImageDataset
from ..data.faults import BadImages
from ..data.sources import ArraySource, Source
from ..distributed import agreement
from ..distributed.micro_batches import sharing
from ..evaluation import LabelledSplits
from ..losses.catalogue import LOSSES
from ..microbatch import backward_in_microbatches, buffers_of_first_rank
from ..models import BarlowTwinsModel
from . import parallel
from .callbacks import Hook, Record
from .clock import StepClock
from .config import PretrainConfig
from .diagnosis import first_bad_tensor, gradients_finite
from .estimate import resolved_precision
from .feeding import Feeding, check_batch, image_size, view_sizes, views_of_run
from .folder_lock import FolderLock
from .network import build_criterion, build_network, loss_of, network_inputs, shown_terms
from .optimizers import build_optimizer, set_learning_rates
from .ranks import Ranks
from .watching import Watcher

LOG = logging.getLogger("barlow_fast.training")


class TrainingDiverged(RuntimeError):
    """The loss, a gradient or a weight is no longer a finite number."""


class TrainingInterrupted(Exception):
    """A stop was requested; the state was saved first if the trainer has a checkpoint path."""


class Trainer:
    """Pretrains an encoder on a data set in memory, or on image files, on one or several ranks.

        trainer = Trainer(configure("digits"), load("digits"), checkpoint_path="checkpoint.pt")
        trainer.run()
        trainer.model.encoder

    Sample order, views and what an encoder draws itself (dropout) are pure functions of (seed,
    step), so the state is: weights, optimizer, step and the loader's position. A run that stops at
    any step and resumes on the same CPU ends with the same bits as one that never stopped. For
    that, torch's global generators are seeded anew at every step.

    Args:
        config: the run.
        data: images in memory with labels, or any source of images: then nothing is scored without
            `splits`, and `knn` is None throughout.
        device: where to compute; None for that of `ranks`.
        checkpoint_path: written by the first rank, at the times that `config` states and at a stop;
            None to write none.
        hooks: see `Hook`; the first rank's alone are called.
        feeding: how images are read; its threads end with `close`, or with the trainer as a
            context manager.
        ranks: the processes of the run; see `joined`. Every one needs a trainer of its own, with
            the same settings and data, and calls the same methods.
        splits: labelled files, such as `held_out_splits` finds, that the features of a run on files
            are scored on; None: they are not.

    Attributes:
        model: encoder and projector, with torchvision's or timm's names for the encoder.
        network: what a step calls: `model`, or what wraps it on several ranks.
        folder_lock: of the checkpoint's folder; None: other runs may write there.
        clock: seconds per phase of the steps since it was read.
        options: of the command that started the run, by name, as far as no checkpoint holds them;
            commands that are printed repeat them.

    Raises:
        ValueError: a batch larger than the data set or one that the ranks cannot share; no views
            for the data, or views that do not fit it, the loss or the encoder; an unknown encoder
            or loss backend.
        RuntimeError: a loss backend that cannot run here.
        ImportError: a loader that cannot be used here, or the library of an encoder.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: ImageDataset | Source,
        device: torch.device | str | None = None,
        checkpoint_path: Path | str | None = None,
        hooks: Iterable[Hook] = (),
        feeding: Feeding | None = None,
        ranks: Ranks | None = None,
        splits: LabelledSplits | None = None,
    ) -> None:
        if not isinstance(config, PretrainConfig):
            raise TypeError(
                f'config must be a PretrainConfig, such as configure("digits"), got {config!r}'
            )
        if not isinstance(data, (ImageDataset, Source)):
            raise TypeError(
                f'data must be a data set or a source, such as load("digits"), got {data!r}'
            )
        self.ranks = ranks or Ranks(torch.device(device or "cpu"))
        self.device = self.ranks.device
        in_memory = isinstance(data, ImageDataset)
        self.dataset = data if in_memory else None
        self.source = ArraySource.of_dataset(data) if in_memory else data
        self.config = config
        self.feeding = feeding or Feeding()
        self.checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self.folder_lock: FolderLock | None = None
        self.hooks = list(hooks)
        self.options: dict[str, Any] = {}
        self._failure: Exception | None = None
        # One for everything that reads images in this run: a bad one is reported once.
        self._bad = BadImages(self.feeding.on_bad_image)
        with self._together("a trainer"):
            self.views = views_of_run(config, data)
            check_batch(config.batch_size, len(self.source), data.name, self.ranks.size)
            self.precision = resolved_precision(config, self.device)
            plain = self.initial_model()
        self.criterion = build_criterion(config, self.ranks.alone)
        self.model = parallel.prepare(plain, config, self.ranks)
        self.network = parallel.wrap(self.model, config, self.ranks)
        # The ranks that wait in the loss while this rank computes embeddings.
        self._listening = None if sharing(self.network)[1] else self.ranks.group
        self.optimizer = build_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision == torch.float16
        )
        self.watcher = Watcher(
            config,
            self.views,
            self.device,
            self.dataset,
            self.source,
            None if in_memory else splits,
            self.feeding.workers,
            self._bad,
        )
        # Last, because it may start processes.
        with self._together("a loader"):
            self.loader = self.feeding.open(self.source, self.views, config, self.ranks, self._bad)
        self.steps_per_epoch = len(self.loader)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0
        self.history: list[Record] = []
        self.before: dict[str, Any] = {}
        self.stop_requested = False
        # Of the epoch's steps: the loss, then its terms.
        self._values = ("loss", *LOSSES[config.loss].terms)
        self._totals = torch.zeros(len(self._values), dtype=torch.float64, device=self.device)
        self._images = 0
        self._seconds = 0.0
        self._shares = dict.fromkeys(PHASES, 0.0)
        self.clock = StepClock(self.device)
        self._batches: Iterator[Batch] = iter(())
        self._unread: tuple[int, _Arriving] | None = None
        self._first_call = True

    def __repr__(self) -> str:
        return (
            f"Trainer({self.source!r}, encoder={self.config.encoder!r}, step {self.step} of "
            f"{self.total_steps}, device='{self.device}', rank {self.ranks.rank} of "
            f"{self.ranks.size}, "
            f"checkpoint_path={self.checkpoint_path and str(self.checkpoint_path)!r})"
        )

    def initial_model(self) -> BarlowTwinsModel:
        """A model with the weights that this run began with, on the CPU."""
        sizes = view_sizes(self.views, self.dataset)
        return build_network(self.config, len(self.views.mean), sizes)

    @property
    def epoch(self) -> int:
        """The epoch that `step` belongs to, from 0."""
        return self.step // self.steps_per_epoch

    def next_batch(self) -> Batch:
        """The views of the current step. The epoch's remainder is left out.

        Raises:
            BadImageError: an image cannot be read and is not to be skipped.
            RuntimeError: a thread of the loader failed, or storage does not answer.
        """
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def close(self) -> None:
        """Ends the loader's threads, and lets others into the folder. May be called again."""
        self.loader.close()
        if self.folder_lock is not None:
            self.folder_lock.release()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of encoder, projector and loss."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def train_step(self) -> Record:
        """One batch: views, embeddings, loss, gradient, update. Returns what `Hook.stepped` gets.

        Raises:
            TrainingDiverged: the loss or a gradient is not finite. On a CPU the weights are then
                still those of the step before; on a GPU, which is not waited for, it is found out
                one step later.
        """
        set_learning_rates(
            self.optimizer, self.config, self.step, self.total_steps, self.steps_per_epoch
        )
        self.clock.start()
        with self._together("the next batch"):
            batch = self.next_batch()
            if self.ranks.alone and len(batch.index) < 2:
                raise RuntimeError(
                    f"step {self.step + 1}: of {self.config.batch_size} images only "
                    f"{len(batch.index)} can be read, and the loss takes two at least"
                )
        self.clock.mark("data")
        self._seed_generators()
        self._keep_buffers()
        self.optimizer.zero_grad(set_to_none=True)
        values = self._backward(batch)
        self.clock.mark("backward")
        self._guard(batch, values["loss"])
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.clock.mark("update")
        self._totals += torch.stack([values[name].double() for name in self._values])
        self._images += len(batch.index)
        self.step += 1
        return values

    def _keep_buffers(self) -> None:
        """Those of before the step, for `_report`; on a GPU it comes too late to need them."""
        if self.device.type == "cpu":
            self._buffers = {n: b.clone() for n, b in self.model.named_buffers()}

    def _seed_generators(self) -> None:
        """For dropout and its like: another stream for every step and rank, and the same one when
        the step is done again."""
        mixed = np.random.SeedSequence([self.config.seed, self.step, self.ranks.rank])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))

    def _backward(self, batch: Batch) -> Record:
        """Gradients into the parameters; the loss and its terms."""
        try:
            values = self._backward_of(batch)
        except (TrainingDiverged, KeyboardInterrupt):
            raise
        except Exception as error:
            if not self._first_call or not parallel.uncompile(self.network, error):
                raise
            self.optimizer.zero_grad(set_to_none=True)
            values = self._backward_of(batch)
        self._first_call = False
        return values

    def _backward_of(self, batch: Batch) -> Record:
        micro = self.config.micro_batch_size
        inputs, how = network_inputs(self.config, batch.views, self.step)
        # Not by this batch's size, which may be smaller here than on other ranks.
        if micro is not None and micro < self.loader.batch_size:
            loss, terms = self._backward_in_parts(inputs, how, micro)
            return {"loss": loss, **shown_terms(self.config, terms)}
        with self.autocast():
            with buffers_of_first_rank(self.network), agreement.errors_reported(self._listening):
                embeddings = self.network(*inputs)
            self.clock.mark("forward")
            # Detached from the network, so that the loss's share of the time can be measured.
            leaves = [z.detach().requires_grad_() for z in embeddings]
            loss, terms = loss_of(self.criterion, leaves, how)
        gradients = torch.autograd.grad(self.scaler.scale(loss), leaves)
        self.clock.mark("loss")
        torch.autograd.backward(embeddings, gradients)
        return {"loss": loss.detach(), **shown_terms(self.config, terms)}

    def _backward_in_parts(
        self, inputs: tuple[Tensor, ...], how: tuple[Any, ...], micro: int
    ) -> tuple[Tensor, Any]:
        """The same gradient, a few samples in memory at a time; the loss and its terms."""
        phase = "forward"

        def call(*views: Tensor) -> tuple[Tensor, ...]:
            nonlocal phase
            if phase == "loss":
                self.clock.mark("loss")
                phase = "backward"
            return self.network(*views)

        def criterion(*embeddings: Tensor) -> tuple[Tensor, Any]:
            nonlocal phase
            self.clock.mark("forward")
            phase = "loss"
            return loss_of(self.criterion, embeddings, how)

        return backward_in_microbatches(
            self.network,
            inputs,
            criterion,
            micro,
            call=call,
            autocast=self.autocast,
            scaler=self.scaler if self.scaler.is_enabled() else None,
        )

    def _guard(self, batch: Batch, loss: Tensor) -> None:
        """Stops before numbers that are none reach the weights (on a CPU), or a step after (on a
        GPU: there the answer of the step before is read, which has arrived by now)."""
        finite = loss.isfinite().all()
        if not self.scaler.is_enabled() and not parallel.is_sharded(self.model):
            # GradScaler checks scaled gradients itself.
            finite = finite & gradients_finite(self.model).to(finite.device)
        if self.device.type == "cpu":
            if not finite:
                self._report(batch, self.step)
            return
        before, self._unread = self._unread, (self.step, _Arriving(finite))
        if before is not None and not before[1]:
            self._report(batch, before[0])

    def _report(self, batch: Batch, step: int) -> None:
        """Names the first bad step and tensor, and keeps the state from before where it is still
        there."""
        culprit = "a tensor that is not known any more"
        with contextlib.suppress(Exception):
            if not parallel.is_sharded(self.model):
                culprit = first_bad_tensor(self.plain_model(), batch.views, self.autocast,
                                           batch.index)  # fmt: skip
        kept = self.checkpoint_path
        with contextlib.suppress(RuntimeError, OSError):
            if step == self.step:
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(self._buffers[name])
                self._rewind_loader()
                self.save()
        there = kept is not None and kept.exists()
        advice = f"; the last good checkpoint is {kept}" if there else ""
        raise TrainingDiverged(
            f"training diverged at step {step + 1} of {self.total_steps} "
            f"(epoch {step // self.steps_per_epoch + 1}): the first value that is not finite is in "
            f"{culprit}. A lower learning rate than {self.config.learning_rate:g} usually helps"
            f"{advice}"
        )

    def _rewind_loader(self) -> None:
        """To the batch of the current step, which was handed out but not learned from."""
        state = self.loader.state_dict()
        state["epoch"], state["batch"] = divmod(self.step, self.steps_per_epoch)
        self.loader.load_state_dict(state)
        self._batches = iter(())

    def run(self) -> None:
        """Trains from the current step to the last.

        Raises:
            TrainingDiverged: see `train_step`. The checkpoint keeps the last state that was finite.
            TrainingInterrupted: `stop_requested` was set; the checkpoint holds the state.
        """
        self._compare_ranks()
        try:
            if not self.step:
                self._measure_before()
            self._saved_at = time.monotonic()
            with self._together("the start"):
                self._notify("started")
            while self.step < self.total_steps:
                self.train_epoch()
        finally:
            self._notify("ended")

    def _compare_ranks(self) -> None:
        """ValueError on all ranks unless all are about to do the same."""
        if self.ranks.alone:
            return
        # Where files lie may differ; what is in them is in the fingerprint.
        paths = ("dataset", "views")
        self.ranks.compare(
            {"step": self.step, "steps of an epoch": self.steps_per_epoch}
            | {f"setting {k}": v for k, v in self.config.to_dict().items() if k not in paths}
            | {f"data {k}": v for k, v in self.fingerprint.items() if k != "name"}
        )

    def _measure_before(self) -> None:
        model = self.plain_model(copied=True)
        with self._together("measuring"):
            if not self.ranks.first:
                return
            raw, before = self.watcher.score_pixels(), self.watcher.score(model.encoder)
            correlation, _ = self.watcher.measure(model)
            self.before = {"raw": raw, "before": before, "correlation": correlation}

    def train_epoch(self) -> None:
        """The rest of the current epoch, then its record, score and checkpoint."""
        epoch = self.epoch
        self.network.train()
        start = time.perf_counter()
        while self.step < (epoch + 1) * self.steps_per_epoch:
            if self._stops():
                self._seconds += time.perf_counter() - start
                self._add_shares()
                self.save()
                raise TrainingInterrupted(f"stopped after step {self.step} of {self.total_steps}")
            record = self.train_step()
            try:
                self._notify("stepped", record)
            except Exception as error:
                if self.ranks.alone:
                    raise
                self._failure = error
            if self._save_is_due():
                self._seconds += time.perf_counter() - start
                self._add_shares()
                self.save()
                start = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds += time.perf_counter() - start
        self._add_shares()
        self.close_epoch(epoch)

    def _stops(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.ranks.agree(self.stop_requested)

    def _save_is_due(self) -> bool:
        if self.checkpoint_path is None or self.step % self.steps_per_epoch == 0:
            return False
        due = time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes
        # Rank 0 decides, because the clocks of ranks differ; checked every 16 steps.
        if self.ranks.alone:
            return due
        return self.step % 16 == 0 and self.ranks.agree(due and self.ranks.first)

    def _add_shares(self) -> None:
        for phase, seconds in self.clock.read().items():
            self._shares[phase] += seconds

    def close_epoch(self, epoch: int) -> None:
        """Appends the epoch's record to the history; scores and saves when it is time."""
        means = (self._totals / self.steps_per_epoch).tolist()
        if not math.isfinite(means[0]):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch + 1}: its mean loss is not finite"
            )
        last = self.step == self.total_steps
        scored = last or (epoch + 1) % self.config.evaluate_every == 0
        saved = scored
        if self.config.checkpoint_every is not None:
            saved = last or (epoch + 1) % self.config.checkpoint_every == 0
        images = self.ranks.total(self._images)
        # In the next epoch another rank meets them, and need not report them again.
        self._bad.share(self.ranks.gather)
        busy = max(sum(self._shares.values()), 1e-9)
        record: Record = {
            "epoch": epoch + 1,
            "step": self.step,
            **dict(zip(self._values, means, strict=True)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self._seconds,
            "images_per_second": images / self._seconds,
            "data_wait_share": self._shares["data"] / busy,
            **{f"{p}_share": s / busy for p, s in self._shares.items() if p != "data"},
            "knn": None,
        }
        if scored:
            record |= self._scored()
        self.history.append(record)
        self._totals.zero_()
        self._images, self._seconds = 0, 0.0
        self._shares = dict.fromkeys(self._shares, 0.0)
        if saved:
            self.save()
        with self._together("the end of an epoch"):
            self._notify("epoch_ended", record)

    def _scored(self) -> Record:
        """k-NN and monitors; empty on ranks other than the first, which wait."""
        model = self.plain_model(copied=True)
        found: Record = {}
        with self._together("scoring"):
            self._check_weights(model.state_dict())
            if self.ranks.first:
                found["knn"] = self.watcher.score(model.encoder)
                found |= self.watcher.measure(model)[1]
        return found

    @contextlib.contextmanager
    def _together(self, purpose: str) -> Iterator[None]:
        """As `Ranks.together`; also raises, on all ranks, what a hook has raised since the last."""
        with self.ranks.together(purpose):
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            yield

    def plain_model(self, copied: bool = False) -> BarlowTwinsModel:
        """Encoder and projector with whole weights and without any exchange between ranks: the
        model itself where it is so, unless a copy is requested. Where weights are sharded, all
        ranks must call it."""
        if self.ranks.alone and not copied:
            return self.model
        if self.ranks.alone:
            return copy.deepcopy(self.model)
        plain = self.initial_model().to(self.device, memory_format=torch.channels_last)
        plain.load_state_dict(parallel.model_state(self.model))
        for ours, theirs in zip(self.model.parameters(), plain.parameters(), strict=True):
            if not hasattr(ours, "device_mesh"):
                theirs.grad = ours.grad
        return plain

    def _notify(self, moment: str, *details: Record) -> None:
        if self.ranks.first:
            for hook in self.hooks:
                getattr(hook, moment)(self, *details)

    @property
    def scores(self) -> bool:
        """Whether there are labelled images to score features on."""
        return self.watcher.scores

    def score(self) -> float | None:
        """k-NN accuracy, in [0, 1], of the encoder's features; None where there are no labels. On
        several ranks all must call it, and the first one's answer counts."""
        model = self.plain_model()
        return self.watcher.score(model.encoder) if self.ranks.first else None

    def correlation(self) -> Tensor | None:
        """The first dimensions of C on test images, or where there are none on one batch of
        training images: (d, d) float32 on the CPU, d = min(64, D). The model stays as it is. On
        several ranks all must call it; None on all but the first."""
        model = self.plain_model(copied=True)
        return self.watcher.measure(model)[0] if self.ranks.first else None

    def provenance(self) -> Record:
        """Settings, data, versions and hardware, as plain values."""
        hardware = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        return {
            "config": self.config.to_dict(),
            "dataset": self.fingerprint,
            "image": {
                "channels": len(self.views.mean),
                "size": image_size(self.views, self.dataset),
                "mean": list(self.views.mean),
                "std": list(self.views.std),
            },
            "versions": {
                "barlow_fast": __version__,
                # A str subclass, which a checkpoint that loads without running code may not hold.
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "device": f"{self.device} ({hardware})",
            "ranks": self.ranks.size,
        }

    @functools.cached_property
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
        """Writes the checkpoint, unless there is no path for it. On several ranks all must call it.

        Raises:
            TrainingDiverged: a weight or buffer is not finite; the old checkpoint stays.
            FolderInUse: another run has taken over the folder.
            OSError: see `save_checkpoint`.
        """
        if self.checkpoint_path is None:
            return
        self._saved_at = time.monotonic()
        state = self.state_dict()
        with self._together("a checkpoint"):
            if self.ranks.first:
                self._check_weights(state["model"])
                if self.folder_lock is not None:
                    self.folder_lock.check()
                save_checkpoint(self.checkpoint_path, state, self.config.keep_checkpoints)

    def _check_weights(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if not value.isfinite().all():
                kept = self.checkpoint_path
                there = kept is not None and kept.exists()
                raise TrainingDiverged(
                    f"training diverged by step {self.step} of {self.total_steps}: {name} is not "
                    f"finite{f'; the last good checkpoint is {kept}' if there else ''}"
                )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in plain containers; where weights are sharded, all ranks
        must call it."""
        return {
            **self.provenance(),
            "step": self.step,
            "epoch": self.epoch,
            "loader": self.loader.state_dict(),
            "model": parallel.model_state(self.model),
            "optimizer": parallel.optimizer_state(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "totals": self._totals.cpu(),
            "images": self.ranks.total(self._images),
            "seconds": self._seconds,
            "shares": dict(self._shares),
            "history": self.history,
            "before": self.before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, as `state_dict` returned it; between two epochs the number of
        ranks may differ.

        Raises:
            ValueError: it belongs to other settings, other data or another architecture; nothing
                is loaded then.
        """
        before = self.loader.state_dict()
        with self._together("a state"):
            check_complete(state, self.total_steps, self.steps_per_epoch)
            self._check_fits(state)
            self.loader.load_state_dict(state["loader"])
        try:
            check_optimizer(self.optimizer, state["optimizer"])
            parallel.load_model_state(self.model, state["model"])
            parallel.load_optimizer_state(self.model, self.optimizer, state["optimizer"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            self.loader.load_state_dict(before)
            reason = str(error).split("\n", 1)[0]
            raise ValueError(f"the checkpoint does not fit the model: {reason}") from error
        self._batches = iter(())
        self.step = state["step"]
        self._totals = state["totals"].to(self.device)
        # Counted once for all ranks.
        self._images = state["images"] if self.ranks.first else 0
        self._seconds = state["seconds"]
        self._shares = dict(state["shares"])
        self.history = list(state["history"])
        self.before = state["before"]

    def _check_fits(self, state: dict[str, Any]) -> None:
        """ValueError where it lacks something, or belongs to other settings or other data."""
        check_complete(state, self.total_steps, self.steps_per_epoch)
        free = self.config.MAY_CHANGE
        theirs = self.config.LATER | state["config"]
        differing = different_settings(
            {k: v for k, v in self.config.to_dict().items() if k not in free},
            {k: v for k, v in theirs.items() if k not in free},
        )
        if differing:
            raise ValueError(f"the checkpoint was made with other settings: {', '.join(differing)}")
        if len(state["totals"]) != len(self._values) or not all(
            name in record for record in state["history"] for name in self._values
        ):
            raise ValueError(f"the checkpoint lacks terms of its loss: {', '.join(self._values)}")
        if self.fingerprint != state["dataset"]:
            raise ValueError(
                "the checkpoint was made with other images or views: "
                + ", ".join(different_settings(self.fingerprint, state["dataset"]))
            )

    def resume(self, path: Path) -> None:
        """Loads the checkpoint at `path`; errors are those of `load_checkpoint` and
        `load_state_dict`."""
        with self._together("a checkpoint"):
            state = load_checkpoint(path)
        self.load_state_dict(state)


def different_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """'name (theirs there, ours here)' for every value that differs."""
    return [
        f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]


class _Arriving:
    """A flag on its way from the GPU; reading it waits for it."""

    def __init__(self, value: Tensor) -> None:
        self._copy = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        self._copy.copy_(value, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def __bool__(self) -> bool:
        self._event.synchronize()
        return bool(self._copy)
