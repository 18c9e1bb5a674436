"""`pytest bench --benchmark-only --suite train`; what is measured: `bench/replay/train.py`."""

from __future__ import annotations


def test_train(replayed):
    replayed()
