"""How fast a run goes at present, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class Pace:
    """Times of the latest steps; pauses between epochs, for scores and checkpoints, are counted
    apart.

    Args:
        window: seconds of stepping that `images_per_second` looks back.
        clock: seconds, from any start.
    """

    def __init__(
        self, window: float = 20.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._window, self._clock = window, clock
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds, self._images = 0.0, 0
        self._pause: float | None = None
        self._last = clock()

    def step(self, images: int) -> None:
        """At the end of a step of so many images."""
        now = self._clock()
        self._steps.append((now - self._last, images))
        self._seconds += now - self._last
        self._images += images
        self._last = now
        while len(self._steps) > 1 and self._seconds - self._steps[0][0] >= self._window:
            seconds, count = self._steps.popleft()
            self._seconds -= seconds
            self._images -= count

    def resume(self, scored: bool = False) -> None:
        """At the end of what is no step: the time since the last one is not a step's. `scored`
        states that it was the kind of pause that `seconds_left` counts."""
        now = self._clock()
        if scored:
            self._pause = now - self._last
        self._last = now

    @property
    def images_per_second(self) -> float:
        """Over the recent past; 0 before the first step."""
        return self._images / self._seconds if self._seconds > 0 else 0.0

    def seconds_left(self, steps: int, pauses: int) -> float | None:
        """Of so many steps and scored pauses, at the present pace; None before the first step."""
        if not self._steps:
            return None
        return steps * self._seconds / len(self._steps) + pauses * (self._pause or 0.0)


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '5 h 07 min' or '2 d 04 h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
