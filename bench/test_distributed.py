"""The suite `distributed` under pytest-benchmark: `pytest bench --benchmark-only --suite distributed`."""

from __future__ import annotations


def test_distributed(replayed):
    replayed()
