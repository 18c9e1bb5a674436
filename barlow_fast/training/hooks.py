"""What may watch a run. A hook sees, it does not steer."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Trainer

Record = dict[str, Any]


class Hook:
    """The moments of a run; override those of interest."""

    def started(self, trainer: Trainer) -> None:
        """Before the first step of this process, after a checkpoint was loaded."""

    def stepped(self, trainer: Trainer, step: Record) -> None:
        """After each step. `step` has `loss`, `on_diagonal_mean`, `off_diagonal_mean` as 0-dim
        tensors on the device: reading one waits for the device, so read seldom."""

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        """After each epoch, its score and its checkpoint; `record` has plain numbers."""

    def ended(self, trainer: Trainer) -> None:
        """After the last epoch, an interruption or an error."""


class JsonLinesLog(Hook):
    """One JSON object per line: a header for every start (settings, versions, hardware), then one
    per epoch."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def started(self, trainer: Trainer) -> None:
        kept = self._lines_until(trainer.step) if trainer.step else []
        event = "resumed" if trainer.step else "started"
        header = {"event": event, "step": trainer.step, **trainer.provenance()}
        with open(self.path, "w", encoding="utf-8") as stream:
            stream.writelines(kept)
        self._write(header)

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        self._write({"event": "epoch", **record})

    def _lines_until(self, step: int) -> list[str]:
        """The lines of the file up to `step`: epochs that ran after the checkpoint was written
        will run again."""
        if not self.path.exists():
            return []
        lines = []
        with open(self.path, encoding="utf-8") as stream:
            for line in stream:
                # A killed process may leave half a line, and only as the last one.
                with contextlib.suppress(json.JSONDecodeError):
                    if json.loads(line)["step"] <= step:
                        lines.append(line)
        return lines

    def _write(self, line: Record) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
