"""The suite `train` under pytest-benchmark: `pytest bench --benchmark-only --suite train`."""

from __future__ import annotations


def test_train(replayed):
    replayed()
