"""The values of single steps, read from the device rarely and many at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..callbacks import Record

if TYPE_CHECKING:
    from ..loop import Trainer

# Readings that wait on the device: one wait for all of them.
MOST_WAITING = 32


class StepReadings:
    """Keeps the loss and its terms of every so many steps as tensors, until they are read.

    Args:
        every: steps between two readings, counted from the run's first.

    Raises:
        ValueError: fewer than one step.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every = every
        self._waiting: list[tuple[Record, Tensor]] = []
        self._names: list[str] = []

    def add(self, trainer: Trainer, values: Record) -> list[Record]:
        """Takes the values of the step that was just done, as `Hook.stepped` got them. Returns
        what `read` returns once enough of them wait, and before that nothing."""
        if trainer.step % self.every:
            return []
        self._names = list(values)
        plain = {"step": trainer.step, "learning_rate": trainer.optimizer.param_groups[0]["lr"]}
        self._waiting.append((plain, torch.stack([v.detach().double() for v in values.values()])))
        return self.read() if len(self._waiting) >= MOST_WAITING else []

    def read(self) -> list[Record]:
        """Waits for the device. One record of plain numbers for each step: `step`,
        `learning_rate`, and the values."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        numbers = torch.stack([values for _, values in waiting]).tolist()
        return [
            {**plain, **dict(zip(self._names, row, strict=True))}
            for (plain, _), row in zip(waiting, numbers, strict=True)
        ]

    def read_last(self) -> list[Record]:
        """`read` at the end of a run, which may have come from an error of the device: then there
        is nothing to be read, and that error is the one to report."""
        with contextlib.suppress(RuntimeError):
            return self.read()
        return []
