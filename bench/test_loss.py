"""`pytest bench --benchmark-only --suite loss`, see `bench/replay/loss.py`."""

from __future__ import annotations


def test_loss(replayed):
    replayed()
