"""`pytest bench --benchmark-only --suite startup`; what is measured: `bench/replay/startup.py`."""

from __future__ import annotations


def test_startup(replayed):
    replayed()
