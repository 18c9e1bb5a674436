"""Curves for TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callbacks import Hook, Record
from .readings import StepReadings

if TYPE_CHECKING:
    from ..loop import Trainer

# Pixels a side of one entry of C.
ENTRY = 4


def why_no_tensorboard() -> str | None:
    """What to do before a `TensorBoardLog` can write; None where it can."""
    if importlib.util.find_spec("tensorboard") is None:
        return "no TensorBoard log: pip install tensorboard writes one"
    return None


class TensorBoardLog(Hook):
    """Scalars of every so many steps (`step/loss`, ...) and of every epoch (`epoch/knn`, ...) over
    the number of steps, the settings as text, and C as an image when it is scored.

    A resumed run takes back what was written after its checkpoint, so that no curve doubles; in a
    folder that has no log yet it starts with the epochs of the checkpoint.

    Args:
        folder: made where it is not there.
        every: steps between two readings of the loss.

    Raises:
        ValueError: fewer than one step.
        ImportError: at the start of a run, without the library `tensorboard`.
    """

    def __init__(self, folder: Path | str, every: int = 10) -> None:
        self.folder = Path(folder)
        self._readings = StepReadings(every)
        self._writer: Any = None

    def started(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        new = not any(self.folder.glob("events.out.tfevents.*"))
        # Of what is there, TensorBoard drops the steps from this one on.
        purged = None if new else trainer.step + 1 if trainer.step else 0
        self._writer = SummaryWriter(self.folder, purge_step=purged)
        settings = {**trainer.config.to_dict(), "device": trainer.provenance()["device"]}
        self._writer.add_text("settings", _table(settings), trainer.step)
        if new or not trainer.step:
            self._write_start(trainer)
            for record in trainer.history:
                self._write_epoch(record)
        self._writer.flush()

    def stepped(self, trainer: Trainer, step: Record) -> None:
        self._write_steps(self._readings.add(trainer, step))

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        self._write_steps(self._readings.read())
        self._write_epoch(record)
        if "effective_rank" in record and trainer.watcher.correlation is not None:
            self._write_matrix(trainer.watcher.correlation, record["step"])
        # What is in the checkpoint is never missing from the log of a killed process.
        self._writer.flush()

    def ended(self, trainer: Trainer) -> None:
        if self._writer is None:
            return
        self._write_steps(self._readings.read_last())
        self._writer.close()
        self._writer = None

    def _write_start(self, trainer: Trainer) -> None:
        before = trainer.before
        if before.get("before") is not None:
            self._writer.add_scalar("epoch/knn", before["before"], 0)
        if before.get("correlation") is not None:
            self._write_matrix(before["correlation"], 0)

    def _write_steps(self, steps: list[Record]) -> None:
        for step in steps:
            self._write_scalars("step", step)

    def _write_epoch(self, record: Record) -> None:
        self._write_scalars("epoch", {k: v for k, v in record.items() if k != "epoch"})

    def _write_scalars(self, group: str, record: Record) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, record["step"])

    def _write_matrix(self, matrix: Tensor, step: int) -> None:
        self._writer.add_image("C", heat_map(matrix), step)


def heat_map(matrix: Tensor) -> Tensor:
    """(3, 4 d, 4 d) uint8 of a (d, d) matrix: red for 1, white for 0, blue for -1, beyond them as
    at them, and gray for what is no number."""
    values = matrix.float().clamp(-1, 1)
    fades = 1 - values.abs()
    rgb = torch.stack(
        [torch.where(values < 0, fades, 1.0), fades, torch.where(values > 0, fades, 1.0)]
    )
    rgb = torch.where(matrix.isnan(), 0.5, rgb)
    rgb = rgb.repeat_interleave(ENTRY, 1).repeat_interleave(ENTRY, 2)
    return (255 * rgb).round().to(torch.uint8)


def _table(settings: Record) -> str:
    """Markdown; backticks keep a value from being read as such."""
    rows = [f"| {name} | `{str(value).replace('`', '')}` |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
