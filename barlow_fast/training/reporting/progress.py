"""Progress of a run: a bar on a terminal, occasional lines in a log file."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ...losses.catalogue import LOSSES
from ..callbacks import Hook, Record
from .pace import Pace, duration

if TYPE_CHECKING:
    from ..loop import Trainer

# Reading the terms waits for the device.
SECONDS_BETWEEN_READINGS = 0.25
# In a log file, where epochs are long.
SECONDS_BETWEEN_LINES = 300.0
# Columns that a terminal needs for all there is to say.
WIDE = 110


def _without_a_terminal_too(method: Callable) -> Callable:
    """Goes quiet where the output is gone: a terminal that was closed, a pipe that nobody reads,
    at which rich asks to exit. The run is worth more."""

    @functools.wraps(method)
    def call(self: ProgressReport, *arguments: object) -> None:
        try:
            method(self, *arguments)
        except (OSError, SystemExit):
            self.console.quiet = True
            self.progress = None

    return call


class ProgressReport(Hook):
    """Epoch, loss terms, images/s, the wait for data and the time left; a scored epoch leaves a
    line behind."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None

    @_without_a_terminal_too
    def started(self, trainer: Trainer) -> None:
        self.pace = Pace()
        self.read, self.printed = 0.0, time.perf_counter()
        self.data_wait = ""
        if not self.console.is_terminal or self.console.quiet:
            return
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24 if self.console.width >= WIDE else 8),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task(
            "",
            total=trainer.total_steps,
            completed=trainer.step,
            epoch=trainer.epoch + 1,
            epochs=trainer.config.epochs,
            words="",
        )
        self.progress.start()

    @_without_a_terminal_too
    def stepped(self, trainer: Trainer, step: Record) -> None:
        self.pace.step(trainer.config.batch_size)
        now = time.perf_counter()
        if self.progress is None:
            if now - self.printed >= SECONDS_BETWEEN_LINES:
                self._print(trainer, (trainer.step - 1) // trainer.steps_per_epoch + 1, step)
            return
        if now - self.read < SECONDS_BETWEEN_READINGS:
            return
        self.read = now
        words = [_terms(trainer, step), f"{self.pace.images_per_second:,.0f} images/s"]
        if self.data_wait and self.console.width >= WIDE:
            words.append(self.data_wait)
        words.append(self._time_left(trainer))
        self.progress.update(
            self.task,
            completed=trainer.step,
            epoch=(trainer.step - 1) // trainer.steps_per_epoch + 1,
            words="  ".join(words),
        )

    @_without_a_terminal_too
    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        scored = "effective_rank" in record
        self.pace.resume(scored)
        self.data_wait = f"data wait {100 * record['data_wait_share']:.0f} %"
        if scored or not trainer.scores:
            self._print(trainer, record["epoch"], record)

    @_without_a_terminal_too
    def ended(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _print(self, trainer: Trainer, epoch: int, values: Record) -> None:
        """A line of an epoch's record, or of a step's values where no epoch has ended for long."""
        self.printed = time.perf_counter()
        # Of the whole epoch where there is one: the recent past may be a second.
        rate = values.get("images_per_second", self.pace.images_per_second)
        parts = [f"epoch {epoch:>4}/{trainer.config.epochs}", _terms(trainer, values)]
        if values.get("knn") is not None:
            parts.append(f"k-NN {100 * values['knn']:5.2f} %")
        if "effective_rank" in values:
            parts.append(f"rank {values['effective_rank']:.0f}")
        parts += [f"{rate:,.0f} images/s", self.data_wait, self._time_left(trainer)]
        self.console.print(
            "  ".join(part for part in parts if part),
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def _time_left(self, trainer: Trainer) -> str:
        seconds = self.pace.seconds_left(trainer.total_steps - trainer.step, _scores_left(trainer))
        return "" if seconds is None else f"{duration(seconds)} left"


def _scores_left(trainer: Trainer) -> int:
    """Scored epochs that are still to end; the last one always is."""
    every, epochs = trainer.config.evaluate_every, trainer.config.epochs
    left = epochs // every - trainer.epoch // every
    return left + (epochs % every > 0 and trainer.epoch < epochs)


def _terms(trainer: Trainer, values: Record) -> str:
    parts = [f"loss {float(values['loss']):8.2f}"]
    for name, term in LOSSES[trainer.config.loss].terms.items():
        parts.append(f"{term.label} {float(values[name]):.{term.decimals}f}")
    return "  ".join(parts)
