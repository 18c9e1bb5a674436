"""Hooks that end runs, and what runs leave behind."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from barlow_fast.training import Hook

SHARES = {f"{phase}_share" for phase in ("data_wait", "forward", "loss", "backward", "update")}
MEASURED_TIMES = {"seconds", "images_per_second", "shares"} | SHARES


class StopAt(Hook):
    """Requests a stop once `step` steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, trainer, step):
        trainer.stop_requested = trainer.step == self.step


class KillAt(StopAt):
    def stepped(self, trainer, step):
        if trainer.step == self.step:
            raise KeyboardInterrupt


class Recording(Hook):
    """The moments of a run with the values of its steps, their learning rates, and its records."""

    def __init__(self) -> None:
        self.moments: list[str] = []
        self.steps: dict[int, dict[str, float]] = {}
        self.rates: list[list[float]] = []
        self.records: list[dict[str, Any]] = []

    def started(self, trainer):
        self.moments.append("started")

    def stepped(self, trainer, step):
        self.moments.append("stepped")
        self.steps[trainer.step] = {name: float(value) for name, value in step.items()}
        self.rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    def epoch_ended(self, trainer, record):
        self.moments.append("epoch_ended")
        self.records.append(record)

    def ended(self, trainer):
        self.moments.append("ended")

    def values(self, name: str) -> list[float]:
        return [step[name] for step in self.steps.values()]


def lines_of(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Of a log, those of one event alone where it is given."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def assert_same(a: Any, b: Any, path: str = "", left_out: Set[str] = MEASURED_TIMES) -> None:
    """Bitwise equality of nested containers, without the keys in `left_out`."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - left_out:
            assert_same(a[key], b[key], f"{path}/{key}", left_out)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}", left_out)
    else:
        assert a == b, path
