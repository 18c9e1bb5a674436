"""Time per phase of a step."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

from ..checkpoints.state import PHASES

# CUDA events that may wait to be read; those before them have long passed.
MOST_EVENTS = 512


class StepClock:
    """Seconds per phase, added up over steps.

    On a CPU a phase is what the clock on the wall says. On a GPU it is what passes between two
    events of the stream, so that asking never waits for the device: `data` is then the time that
    the device has nothing to do before the views are there.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = 0.0

    def start(self) -> None:
        """At the beginning of a step; the time since the last step's end is not counted."""
        if self._cuda:
            self._record("")
        else:
            self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """At the end of a phase: the time since the last mark is its own."""
        if self._cuda:
            self._record(phase)
            return
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds per phase since the last reading."""
        self._fold(0)
        seconds = {phase: self._seconds.get(phase, 0.0) for phase in PHASES}
        self._seconds.clear()
        return seconds

    def _record(self, phase: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((phase, event))
        if len(self._events) > 2 * MOST_EVENTS:
            self._fold(MOST_EVENTS)

    def _fold(self, kept: int) -> None:
        count = len(self._events) - kept
        if count < 2:
            return
        self._events[count - 1][1].synchronize()
        for (_, before), (phase, after) in zip(
            self._events[: count - 1], self._events[1:count], strict=True
        ):
            if phase:
                self._seconds[phase] += before.elapsed_time(after) / 1000
        self._events = self._events[count - 1 :] if kept else []
