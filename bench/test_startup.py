"""The suite `startup` under pytest-benchmark: `pytest bench --benchmark-only --suite startup`."""

from __future__ import annotations


def test_startup(replayed):
    replayed()
