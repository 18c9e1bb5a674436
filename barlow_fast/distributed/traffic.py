"""Counts the bytes that this process sends to others, step by step.

with count_traffic() as traffic:
    criterion(z_a, z_b).backward()
print(traffic)
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

_lock = threading.Lock()
_open: list[Traffic] = []


class Traffic:
    """Bytes sent to other ranks, by step. All-gathers count as a ring or a direct exchange sends
    them: every share to every other rank, once."""

    def __init__(self) -> None:
        self.by_step: Counter[str] = Counter()

    @property
    def sent(self) -> int:
        """All bytes."""
        return self.by_step.total()

    def __str__(self) -> str:
        lines = [f"{self.sent / 2**20:.2f} MiB sent"]
        lines += [f"  {step:<12} {size / 2**20:10.3f} MiB" for step, size in self.by_step.items()]
        return "\n".join(lines)


@contextlib.contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Counts what losses of this process send while the context is open, backward passes (which
    may run in threads of autograd) included. Contexts may be nested."""
    traffic = Traffic()
    with _lock:
        _open.append(traffic)
    try:
        yield traffic
    finally:
        with _lock:
            _open.remove(traffic)


def record(step: str, sent: int) -> None:
    """Adds `sent` bytes to all open counters."""
    with _lock:
        for traffic in _open:
            traffic.by_step[step] += sent
