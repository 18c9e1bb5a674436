"""`pytest bench --benchmark-only --suite distributed`, see `bench/replay/distributed.py`."""

from __future__ import annotations


def test_distributed(replayed):
    replayed()
