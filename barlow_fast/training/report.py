"""Progress for people: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .hooks import Hook, Record

if TYPE_CHECKING:
    from .loop import Trainer

# Reading the terms waits for the device, and nobody reads faster.
SECONDS_BETWEEN_READINGS = 0.25


class ProgressReport(Hook):
    """Epoch, loss terms, images/s and the time left; a scored epoch leaves a line behind."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None

    def started(self, trainer: Trainer) -> None:
        self.first_step, self.start, self.read = trainer.step, time.perf_counter(), 0.0
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[terms]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task(
            "",
            total=trainer.total_steps,
            completed=trainer.step,
            epoch=trainer.epoch + 1,
            epochs=trainer.config.epochs,
            terms="",
        )
        self.progress.start()

    def stepped(self, trainer: Trainer, step: Record) -> None:
        now = time.perf_counter()
        if self.progress is None or now - self.read < SECONDS_BETWEEN_READINGS:
            return
        self.read = now
        rate = (trainer.step - self.first_step) * trainer.config.batch_size / (now - self.start)
        self.progress.update(
            self.task,
            completed=trainer.step,
            epoch=(trainer.step - 1) // trainer.steps_per_epoch + 1,
            terms=f"loss {step['loss']:.1f}  on {step['on_diagonal_mean']:.3f}  "
            f"off {step['off_diagonal_mean']:.4f}  {rate:,.0f} images/s",
        )

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        if record["knn"] is None and trainer.scores:
            return
        score = "" if record["knn"] is None else f"k-NN {100 * record['knn']:5.2f} %  "
        done = trainer.step - self.first_step
        left = (time.perf_counter() - self.start) / done * (trainer.total_steps - trainer.step)
        self.console.print(
            f"epoch {record['epoch']:>4}/{trainer.config.epochs}  loss {record['loss']:8.2f}  "
            f"on {record['on_diagonal_mean']:.4f}  off {record['off_diagonal_mean']:.5f}  "
            f"{score}{record['images_per_second']:,.0f} images/s  {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )

    def ended(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
