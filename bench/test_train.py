"""`pytest bench --benchmark-only --suite train`, see `bench/replay/train.py`."""

from __future__ import annotations


def test_train(replayed):
    replayed()
