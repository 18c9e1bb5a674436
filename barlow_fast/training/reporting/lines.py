"""A log that programs read: one JSON object per line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import append_text, write_whole
from ..callbacks import Hook, Record
from .readings import StepReadings

if TYPE_CHECKING:
    from ..loop import Trainer


class JsonLinesLog(Hook):
    """One JSON object per line, by `event`: `started` or `resumed` (settings, versions, hardware),
    `epoch`, and `step` where requested.

    A resumed run takes the lines that are there up to its step, and those epochs from the
    checkpoint that are missing. A number that is not finite is null, as JSON has none.

    Args:
        path: the file; its folder must exist.
        every: a line for every so many steps too; None for none.
    """

    def __init__(self, path: Path | str, every: int | None = None) -> None:
        self.path = Path(path)
        self._readings = None if every is None else StepReadings(every)

    def started(self, trainer: Trainer) -> None:
        kept = self._lines_until(trainer) if trainer.step else []
        event = "resumed" if trainer.step else "started"
        header = {"event": event, "step": trainer.step, **trainer.provenance()}
        write_whole(self.path, "".join(map(_line, [*kept, header])))

    def stepped(self, trainer: Trainer, step: Record) -> None:
        if self._readings is not None:
            self._write_steps(self._readings.add(trainer, step))

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        if self._readings is not None:
            self._write_steps(self._readings.read())
        self._write([{"event": "epoch", **record}])

    def ended(self, trainer: Trainer) -> None:
        if self._readings is not None:
            self._write_steps(self._readings.read_last())

    def _lines_until(self, trainer: Trainer) -> list[Record]:
        """What is logged up to the trainer's step: what ran after the checkpoint was written will
        run again."""
        lines = [line for line in self._lines() if line["step"] <= trainer.step]
        logged = {line["step"] for line in lines if line["event"] == "epoch"}
        missing = [r for r in trainer.history if r["step"] not in logged]
        lines += [{"event": "epoch", **record} for record in missing]
        # Stable, so that what is of one step stays in its order.
        return sorted(lines, key=lambda line: line["step"]) if missing else lines

    def _lines(self) -> list[Record]:
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            # A killed process may leave half a line.
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int) and "event" in line:
                found.append(line)
        return found

    def _write_steps(self, steps: list[Record]) -> None:
        self._write([{"event": "step", **step} for step in steps])

    def _write(self, lines: list[Record]) -> None:
        if lines:
            append_text(self.path, "".join(map(_line, lines)))


def _line(record: Record) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Containers with null for every number that is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
