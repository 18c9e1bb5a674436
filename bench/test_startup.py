"""`pytest bench --benchmark-only --suite startup`, see `bench/replay/startup.py`."""

from __future__ import annotations


def test_startup(replayed):
    replayed()
